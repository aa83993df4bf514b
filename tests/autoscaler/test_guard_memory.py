"""What the guard remembers between cycles, and what it forgets; which figures its rules have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from autoscaler_views import KEY, pool, snapshot, view
from hypothesis import given
from hypothesis import strategies as st
from penstock.autoscaler.decisions.guard import Guarded, GuardRules, remember
from penstock.autoscaler.decisions.history import History
from penstock.autoscaler.decisions.plan import DeploymentPlan, Plan, Target, Why
from penstock.autoscaler.decisions.snapshot import DeploymentView

RULES = GuardRules()
NOW = 10_000.0
EMPTY = History(since=0.0)
SERVE, OTHER = ("team", "serve"), ("team", "other")


def planned(deployment: DeploymentView, why: Why, **replicas: int) -> DeploymentPlan:
    return DeploymentPlan(deployment.key, {name: Target(count) for name, count in replicas.items()}, why, "made up")


def remembered(
    deployment: DeploymentView, moves: dict[str, int], why: Why = Why.LOAD, gave_up: tuple[str, ...] = ()
) -> History:
    """The history after one cycle that wished for 3 workers of each pool and moved as told."""
    wish = planned(deployment, why, **{p.name: 3 for p in deployment.pools})
    done = Guarded(deployment.key, moves, gave_up=gave_up)
    return remember(EMPTY, Plan((wish,)), (done,), snapshot(deployment, now=NOW), RULES)


def two() -> DeploymentView:
    return view(pool(name="a", replicas=4), pool(name="b", replicas=4))


def test_the_rules_are_what_the_page_promises() -> None:
    """Five minutes of wishes, one between scale-ins, half a one to settle, ten for a class that gave nothing."""
    assert (RULES.window_s, RULES.pause_s, RULES.settle_s, RULES.retry_s) == (300.0, 60.0, 30.0, 600.0)
    assert (RULES.out_factor, RULES.out_least, RULES.in_share) == (2.0, 4, 0.34)


def test_scaled_rules_stretch_windows_and_not_steps() -> None:
    half = RULES.scaled(0.5)
    assert half == replace(RULES, window_s=150.0, pause_s=30.0, retry_s=300.0)


@pytest.mark.parametrize("why", list(Why))
def test_only_wishes_for_a_known_load_are_remembered(why: Why) -> None:
    """Holding what there is because nothing is known would keep it for a window more."""
    after = remembered(two(), {"a": 4, "b": 4}, why)
    measured = {Why.LOAD, Why.AT_LEAST, Why.AT_MOST}
    expected = {("team", "a"): ((NOW, 3),), ("team", "b"): ((NOW, 3),)} if why in measured else {}
    assert after.wishes == expected


def test_a_scale_in_of_any_pool_is_one_of_the_deployment() -> None:
    assert remembered(two(), {"a": 4, "b": 3}).scaled_in == {KEY: NOW}
    assert remembered(two(), {"a": 4, "b": 4}).scaled_in == {}
    assert remembered(two(), {"a": 9, "b": 4}).scaled_in == {}


def test_a_class_that_gave_nothing_is_left_alone_for_as_long_as_the_rules_say() -> None:
    after = remembered(two(), {"a": 4, "b": 4}, gave_up=("b",))
    assert after.given_up == {("team", "b"): NOW + RULES.retry_s}
    assert after.exhausted(("team", "b"), NOW + RULES.retry_s - 0.5)
    assert not after.exhausted(("team", "b"), NOW + RULES.retry_s)
    assert not after.exhausted(("team", "a"), 0.0)


def test_a_deployment_that_is_gone_is_not_wished_for() -> None:
    here, gone = two(), replace(view(pool(name="c")), key=("team", "gone"))
    plan = Plan((planned(gone, Why.LOAD, c=3), planned(here, Why.LOAD, a=3, b=3)))
    after = remember(EMPTY, plan, (Guarded(KEY, {"a": 4, "b": 4}),), snapshot(here, now=NOW), RULES)
    assert set(after.wishes) == {("team", "a"), ("team", "b")}


def test_wishes_older_than_the_window_are_forgotten() -> None:
    history = EMPTY.wishing({SERVE: 7}, 100.0, 60.0).wishing({SERVE: 2}, 150.0, 60.0)
    assert history.most_wished(SERVE, 100.0) == 7
    assert history.most_wished(SERVE, 100.5) == 2
    assert history.most_wished(SERVE, 151.0) is None
    assert history.most_wished(OTHER, 0.0) is None
    assert history.wishing({}, 160.0, 60.0).wishes == {SERVE: ((100.0, 7), (150.0, 2))}
    assert history.wishing({}, 160.5, 60.0).wishes == {SERVE: ((150.0, 2),)}
    assert history.wishing({OTHER: 1}, 999.0, 60.0).wishes == {OTHER: ((999.0, 1),)}


def test_forgetting_leaves_what_is_still_there() -> None:
    history = EMPTY.wishing({SERVE: 7, OTHER: 1}, 100.0, 60.0).giving_up(SERVE, 200.0).giving_up(OTHER, 200.0)
    history = history.after_scale_in(KEY, 90.0).after_scale_in(("team", "gone"), 95.0)
    kept = history.forgetting({SERVE}, {KEY}, 199.0)
    assert kept == History(0.0, {SERVE: ((100.0, 7),)}, {KEY: 90.0}, {SERVE: 200.0})
    assert history.forgetting({SERVE}, {KEY}, 200.0).given_up == {}


@given(
    wishes=st.lists(st.tuples(st.floats(0.1, 50.0), st.integers(0, 64)), min_size=1, max_size=40),
    window_s=st.floats(1.0, 200.0),
)
def test_the_largest_wish_of_the_window_is_known_whatever_was_forgotten(
    wishes: list[tuple[float, int]], window_s: float
) -> None:
    """And what is kept does not grow with the past."""
    history, now, all_of_them = EMPTY, NOW, []
    for seconds, count in wishes:
        now += seconds
        history = history.wishing({SERVE: count}, now, window_s)
        all_of_them.append((now, count))
    inside = [(at, count) for at, count in all_of_them if at >= now - window_s]
    assert history.most_wished(SERVE, now - window_s) == max(count for _, count in inside)
    assert len(history.wishes[SERVE]) == len(inside)
