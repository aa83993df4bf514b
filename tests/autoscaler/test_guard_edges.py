"""The guard's checks at their edges, with plans made up so that only the check in question has something to say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from autoscaler_views import KEY, PROFILE, load, pool, snapshot, view
from penstock.autoscaler.decisions.capacity import WorkerModel
from penstock.autoscaler.decisions.guard import Guarded, GuardRules, Refused, guard
from penstock.autoscaler.decisions.history import History
from penstock.autoscaler.decisions.plan import DeploymentPlan, Plan, Target, Why
from penstock.autoscaler.decisions.snapshot import DeploymentView, Pods, PoolView
from penstock.core.fleet import Signal

RULES = GuardRules()
NOW = 10_000.0
OLD = History(since=0.0)
EASY = GuardRules(out_least=100, in_share=1.0)
"""Steps of any size, so that other checks are seen alone."""


def serve(replicas: int, **more: object) -> PoolView:
    return pool(replicas=replicas, name="a", **more)


def guarded(
    deployment: DeploymentView,
    wishes: dict[str, int],
    *,
    history: History = OLD,
    rules: GuardRules = EASY,
    speed: float | None = 10.0,
    **plan: object,
) -> Guarded:
    """What is left of `wishes`, in a plan for workers of this many requests per second."""
    facts = {"needs": {each.role: 0.0 for each in deployment.pools}, "certain": True, **plan}
    targets = {name: Target(count, speed) for name, count in wishes.items()}
    made = replace(DeploymentPlan(KEY, targets, Why.LOAD, "made up"), **facts)
    (only,) = guard(Plan((made,)), snapshot(deployment, now=NOW), history, rules)
    return only


def refused(result: Guarded) -> list[Refused]:
    return [each.refused for each in result.refusals]


def test_what_the_plan_says_is_done_where_nothing_speaks_against_it() -> None:
    for wish in (1, 4, 6, 9):
        assert guarded(view(serve(6)), {"a": wish}) == Guarded(KEY, {"a": wish})


def test_a_pool_that_the_plan_does_not_know_stays_as_it_is() -> None:
    assert guarded(view(serve(6), pool(name="new", replicas=3)), {"a": 5}).moves == {"a": 5, "new": 3}


# ---- what is not known -------------------------------------------------------------------------


def test_growth_is_not_held_back_by_doubt() -> None:
    result = guarded(view(serve(2)), {"a": 5}, certain=False, doubtful=("PrefillDecode",))
    assert result.moves == {"a": 5}
    assert refused(result) == [Refused.SIGNALS_MISSING]  # It is said all the same.


def test_a_mode_that_computes_nothing_refuses_nothing() -> None:
    """`Off` has no certain load and needs none: no word of missing signals, of starting or of other writers."""
    late = serve(4, other_writer="keda", pods=Pods(ready=2, pending=2, pending_s=9e9))
    result = guarded(view(late, loads={}), {"a": 4}, why=Why.OFF, certain=False, doubtful=("PrefillDecode",))
    assert result == Guarded(KEY, {"a": 4})


def test_before_anything_could_be_known_it_settles() -> None:
    """An autoscaler that has just begun takes nobody away, and says so; a moment later silence is news."""
    unsure = {"certain": False, "doubtful": ("PrefillDecode",)}
    thin = view(serve(6), loads={"PrefillDecode": load(1.0, coverage=0.5)})
    rules = replace(EASY, window_s=0.0)  # The window would hold them too.
    young = guarded(thin, {"a": 2}, history=History(since=NOW - RULES.settle_s + 1), rules=rules, **unsure)
    assert (young.moves, refused(young), young.degraded) == ({"a": 6}, [Refused.SETTLING], None)
    grown = guarded(thin, {"a": 2}, history=History(since=NOW - RULES.settle_s), rules=rules, **unsure)
    assert (grown.moves, refused(grown)) == ({"a": 6}, [Refused.SIGNALS_MISSING])
    assert grown.degraded is not None and "50% of its workers" in grown.degraded.message
    assert guarded(thin, {"a": 2}, rules=rules, certain=True).moves == {"a": 2}


def test_no_profile_is_said_at_once() -> None:
    facts = {"why": Why.NO_PROFILE, "certain": False, "reason": "no profile says how fast workers are"}
    result = guarded(view(serve(6)), {"a": 6}, history=History(since=NOW), **facts)
    assert result.degraded is not None and result.degraded.message == "no profile says how fast workers are"


@pytest.mark.parametrize(("ready_s", "expected"), [(29.0, Refused.STARTING), (30.0, Refused.SIGNALS_MISSING)])
def test_the_longest_ready_worker_of_the_role_tells_whether_it_comes_up(ready_s: float, expected: Refused) -> None:
    """Neither workers of another role, nor a pool without a ready worker, say how long a role has served."""
    pools = (
        pool("Prefill", name="p", replicas=2),
        pool("Decode", name="d", replicas=2, pods=Pods(ready=1, starting=1, ready_s=ready_s)),
        pool("Decode", name="e", replicas=2, pods=Pods(ready=2, ready_s=0.5)),
        pool("Decode", name="f", replicas=2, pods=Pods(starting=2)),
    )
    seen = view(*pools, loads={"Prefill": load(1.0)})
    held = {each.name: 2 for each in pools}
    result = guarded(seen, dict.fromkeys(held, 1), certain=False, doubtful=("Decode",))
    assert result.moves == held
    assert refused(result)[0] is expected


def test_a_role_without_a_ready_worker_is_coming_up() -> None:
    rules = replace(EASY, settle_s=0.5)
    result = guarded(view(serve(2, pods=Pods(starting=2)), loads={}), {"a": 1}, rules=rules, certain=False,
                     doubtful=("PrefillDecode",))  # fmt: skip
    assert (result.moves, refused(result)[0]) == ({"a": 2}, Refused.STARTING)


# ---- scale to zero -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "plan", "said"),
    [
        (900.0, {}, True),
        (900.0, {"why": Why.UNUSED, "needs": {}}, True),
        (900.0, {"needs": {"PrefillDecode": 0.1}}, False),
        (900.0, {"needs": {"PrefillDecode": 0.0, "Decode": 0.1}}, False),
        (900.0, {"why": Why.UNMEASURED, "needs": {}}, False),
        (900.0, {"why": Why.OFF}, False),
        (None, {}, False),
    ],
)
def test_who_asked_for_no_worker_is_told_why_one_stays(asked: float | None, plan: dict[str, Any], said: bool) -> None:
    result = guarded(view(serve(1, least=0), to_zero_after_s=asked), {"a": 1}, **plan)
    assert (result.moves, refused(result)) == ({"a": 1}, [Refused.NOTHING_WAKES] if said else [])
    assert result.degraded is None, "that is how it works today, and no fault"
    assert not said or "scaleToZeroAfter is 900 s, but nothing wakes" in result.refusals[0].message


def test_another_refusal_is_the_harder_one() -> None:
    idle = view(serve(6, least=0), loads={"PrefillDecode": load(0.0)}, to_zero_after_s=900.0)
    result = guarded(idle, {"a": 1}, rules=RULES)
    assert (result.moves, refused(result)) == ({"a": 4}, [Refused.NOTHING_WAKES, Refused.STEP_LIMITED])


# ---- time --------------------------------------------------------------------------------------


def test_a_window_that_was_just_observed_is_enough() -> None:
    assert guarded(view(serve(6)), {"a": 2}, history=History(since=NOW - RULES.window_s)).moves == {"a": 2}
    assert guarded(view(serve(6)), {"a": 2}, history=History(since=NOW - RULES.window_s + 1)).moves == {"a": 6}


def test_a_window_without_a_wish_holds_nobody() -> None:
    idle = view(serve(6, least=0), loads={"PrefillDecode": load(0.0)})
    assert guarded(idle, {"a": 0}).moves == {"a": 0}


def test_a_wish_above_what_there_is_makes_no_growth_of_a_scale_in() -> None:
    history = OLD.wishing({("team", "a"): 9}, NOW - 10, RULES.window_s)
    result = guarded(view(serve(6)), {"a": 2}, history=history)
    assert (result.moves, refused(result)) == ({"a": 6}, [Refused.STABILISING])
    assert "within the last 300 s" in result.refusals[0].message


def test_a_pool_that_grows_is_not_held_by_the_window() -> None:
    grows = view(serve(6), pool(name="b", replicas=4))
    history = OLD.wishing({("team", "a"): 6, ("team", "b"): 30}, NOW - 10, RULES.window_s)
    assert guarded(grows, {"a": 5, "b": 8}, history=history).moves == {"a": 6, "b": 8}


@pytest.mark.parametrize(("ago", "moves"), [(59.0, {"a": 6}), (60.0, {"a": 2})])
def test_the_pause_ends_on_time(ago: float, moves: dict[str, int]) -> None:
    assert guarded(view(serve(6)), {"a": 2}, history=OLD.after_scale_in(KEY, NOW - ago)).moves == moves


def test_the_pause_of_another_deployment_is_not_ours() -> None:
    assert guarded(view(serve(6)), {"a": 2}, history=OLD.after_scale_in(("team", "b"), NOW)).moves == {"a": 2}


def test_a_roll_holds_workers_and_lets_others_come() -> None:
    rolling = view(serve(6), pool(name="b", replicas=2), moving=True)
    result = guarded(rolling, {"a": 2, "b": 4})
    assert (result.moves, refused(result)) == ({"a": 6, "b": 4}, [Refused.ROLLING_OUT])


# ---- steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replicas", "wish", "step"),
    [
        (0, 50, 4), (1, 50, 5), (3, 50, 7), (4, 50, 8), (5, 50, 10), (20, 50, 40),
        (1, 0, 0), (2, 0, 1), (3, 0, 2), (5, 0, 4), (6, 0, 4), (9, 0, 6), (30, 0, 20),
    ],
)  # fmt: skip
def test_a_step_is_double_or_four_more_and_a_third_or_one_less(replicas: int, wish: int, step: int) -> None:
    result = guarded(view(serve(replicas, least=0)), {"a": wish}, rules=RULES)
    assert (result.moves, refused(result)) == ({"a": step}, [Refused.STEP_LIMITED] if step != wish else [])


# ---- who carries the load ----------------------------------------------------------------------


def test_workers_go_where_exactly_enough_is_left() -> None:
    seen = view(serve(6))
    assert guarded(seen, {"a": 4}, needs={"PrefillDecode": 40.0}).moves == {"a": 4}
    result = guarded(seen, {"a": 4}, needs={"PrefillDecode": 40.5})
    assert (result.moves, refused(result)) == ({"a": 6}, [Refused.SERVING])


def test_nobody_goes_for_a_plan_that_knows_no_need() -> None:
    assert guarded(view(serve(6)), {"a": 4}, needs={}).moves == {"a": 6}


def test_workers_without_a_known_speed_carry_nothing() -> None:
    assert guarded(view(serve(6)), {"a": 4}, needs={"PrefillDecode": 1.0}, speed=None).moves == {"a": 6}


def test_those_that_never_served_may_go_whatever_the_load() -> None:
    """Only pods that are not ready are given back: a ReplicaSet ends those first."""
    starting = serve(6, pods=Pods(ready=3, starting=3))
    assert guarded(view(starting), {"a": 3}, needs={"PrefillDecode": 99.0}).moves == {"a": 3}
    assert guarded(view(starting), {"a": 2}, needs={"PrefillDecode": 99.0}).moves == {"a": 6}


def test_a_sibling_that_shrinks_carries_with_its_ready_workers_alone() -> None:
    """It is asked for three and has two that are ready: two is what it carries while the other gives one up."""
    one, other = serve(4, pods=Pods(ready=2, starting=2)), pool(name="b", replicas=4)
    wishes = {"a": 3, "b": 3}
    assert guarded(view(one, other), wishes, needs={"PrefillDecode": 50.0}).moves == wishes
    assert guarded(view(one, other), wishes, needs={"PrefillDecode": 51.0}).moves == {"a": 4, "b": 4}


def test_roles_are_judged_apart() -> None:
    """Prefill has too few left and decode enough. What one role may not do, the other waits for."""
    pools = pool("Prefill", name="p", replicas=4), pool("Decode", name="d", replicas=4)
    result = guarded(view(*pools), {"p": 2, "d": 2}, needs={"Prefill": 30.0, "Decode": 1.0})
    assert (result.moves, refused(result)) == ({"p": 4, "d": 4}, [Refused.SERVING, Refused.TOGETHER])


def busy(running: float, replicas: int = 6, coverage: float = 1.0) -> DeploymentView:
    inside = Signal(running, 1.0, coverage)
    return view(serve(replicas, running=inside, worker=WorkerModel(PROFILE, None, max_sequences=16)))


@pytest.mark.parametrize(("running", "left"), [(0.0, 2), (32.0, 2), (33.0, 3), (64.0, 4), (96.0, 6), (500.0, 6)])
def test_requests_that_run_keep_their_places(running: float, left: int) -> None:
    """Few requests arrive, but long ones run: as many workers stay as can hold them, and no more come for that."""
    assert guarded(busy(running), {"a": 2}).moves == {"a": left}


def test_running_requests_ask_for_no_workers() -> None:
    for wish in (6, 7):
        assert guarded(busy(500.0), {"a": wish}) == Guarded(KEY, {"a": wish})


def test_unknown_speed_or_number_of_requests_holds_nobody_by_itself() -> None:
    for each in (
        serve(6, worker=None, running=Signal(500.0, 1.0, 1.0)),
        serve(6, running=Signal(500.0, 1.0, 0.0)),
    ):
        assert guarded(view(each), {"a": 2}).moves == {"a": 2}


# ---- prefill and decode together ---------------------------------------------------------------


def apart(prefill: int, decode: int) -> DeploymentView:
    return view(pool("Prefill", name="p", replicas=prefill), pool("Decode", name="d", replicas=decode))


def test_both_go_the_same_share_of_their_way() -> None:
    """Prefill may take a third of its way at once, so decode does too."""
    result = guarded(apart(12, 6), {"p": 6, "d": 3}, rules=replace(RULES, in_share=0.17))
    assert (result.moves, refused(result)) == ({"p": 10, "d": 5}, [Refused.STEP_LIMITED])
    held = OLD.wishing({("team", "p"): 10}, NOW - 1, RULES.window_s)
    slowed = guarded(apart(12, 9), {"p": 6, "d": 3}, history=held)
    assert (slowed.moves, refused(slowed)) == ({"p": 10, "d": 7}, [Refused.STABILISING, Refused.TOGETHER])


def test_a_whole_worker_can_leave_where_a_part_of_one_should() -> None:
    held = OLD.wishing({("team", "p"): 11}, NOW - 1, RULES.window_s)
    assert guarded(apart(12, 2), {"p": 2, "d": 1}, history=held).moves == {"p": 11, "d": 1}


def test_one_that_grows_does_not_wait_and_holds_nobody() -> None:
    assert guarded(apart(4, 4), {"p": 8, "d": 2}).moves == {"p": 8, "d": 2}
    assert guarded(apart(4, 4), {"p": 4, "d": 2}).moves == {"p": 4, "d": 2}


def test_pools_of_one_role_move_as_they_may() -> None:
    held = OLD.wishing({("team", "a"): 6}, NOW - 1, RULES.window_s)
    assert guarded(view(serve(6), pool(name="b", replicas=6)), {"a": 3, "b": 3}, history=held).moves == {"a": 6, "b": 3}


# ---- capacity that does not come ---------------------------------------------------------------


@pytest.mark.parametrize(("waited", "given_up"), [(300.0, False), (300.5, True)])
def test_a_class_has_its_time(waited: float, given_up: bool) -> None:
    late = serve(8, pods=Pods(ready=2, starting=1, pending=5, pending_s=waited), give_up_s=300.0)
    result = guarded(view(late), {"a": 8})
    assert result.gave_up == (("a",) if given_up else ())
    assert result.moves == {"a": 3 if given_up else 8}
    assert (result.degraded is not None) == given_up


def test_one_pod_that_waits_is_enough_and_none_is_not() -> None:
    one = serve(4, pods=Pods(ready=3, pending=1, pending_s=400.0))
    assert guarded(view(one), {"a": 4}).gave_up == ("a",)
    none = serve(4, pods=Pods(ready=4, pending_s=400.0))
    assert guarded(view(none), {"a": 4}) == Guarded(KEY, {"a": 4})


def test_what_was_given_up_once_is_not_given_up_anew() -> None:
    """Or the class would never be tried again: each cycle would put off the time."""
    again = serve(4, pods=Pods(ready=3, pending=1, pending_s=400.0), exhausted=True)
    result = guarded(view(again), {"a": 4})
    assert (result.moves, result.gave_up) == ({"a": 3}, ())


def test_the_least_is_asked_for_though_it_does_not_come() -> None:
    late = serve(8, least=5, pods=Pods(ready=2, pending=6, pending_s=400.0))
    result = guarded(view(late), {"a": 8})
    assert result.moves == {"a": 5}
    assert result.degraded is not None and "6 of h100 for 400 s" in result.degraded.message


# ---- bounds ------------------------------------------------------------------------------------


def test_a_worker_pool_keeps_its_own_bounds() -> None:
    result = guarded(view(serve(4, least=2, most=6)), {"a": 9})
    assert (result.moves, refused(result)) == ({"a": 6}, [Refused.OUT_OF_BOUNDS])
    result = guarded(view(serve(4, least=2, most=6)), {"a": 0})
    assert (result.moves, refused(result)) == ({"a": 2}, [Refused.OUT_OF_BOUNDS])


def classes(first: int, second: int, **more: object) -> DeploymentView:
    """A pool over two classes, and another pool that its bounds are no matter of."""
    pools = [pool(name=name, replicas=n, least=0) for name, n in (("a", first), ("b", second))]
    return view(*pools, pool(name="z", pool="else", replicas=20), ranges={"serve": (3, 8)}, **more)


@pytest.mark.parametrize(
    ("now", "wish", "left"),
    [
        ((2, 2), (5, 5), (3, 5)),
        ((2, 2), (4, 4), (4, 4)),
        ((2, 2), (9, 0), (8, 0)),
        ((6, 2), (6, 4), (6, 2)),
        ((4, 4), (0, 9), (0, 8)),
        ((3, 1), (1, 1), (2, 1)),
        ((3, 1), (0, 0), (3, 0)),
        ((1, 4), (0, 1), (1, 2)),
        ((3, 1), (2, 1), (2, 1)),
        ((2, 0), (1, 0), (2, 0)),
    ],
)
def test_the_sum_over_classes_keeps_the_bounds_of_the_pool(
    now: tuple[int, int], wish: tuple[int, int], left: tuple[int, int]
) -> None:
    """Only growth is given back, and only what was there is kept: a check never asks for what the plan did not."""
    result = guarded(classes(*now), {"a": wish[0], "b": wish[1], "z": 25})
    assert result.moves == {"a": left[0], "b": left[1], "z": 25}
    assert refused(result) == ([Refused.OUT_OF_BOUNDS] if wish != left else [])


# ---- budgets -----------------------------------------------------------------------------------


def test_what_has_no_price_costs_nothing() -> None:
    free = serve(4, cost_per_hour=None)
    assert guarded(view(free, max_cost=1.0), {"a": 6}) == Guarded(KEY, {"a": 6})


def test_both_budgets_are_kept_and_told() -> None:
    result = guarded(view(serve(4), max_accelerators=7, max_cost=11.0), {"a": 9})
    assert (result.moves, refused(result)) == ({"a": 5}, [Refused.OVER_BUDGET])
    assert result.refusals[0].message == (
        "the budget is 7 accelerators, pods hold or were promised 4; "
        "the budget is 11 money per hour, pods hold or were promised 8"
    )
    alone = guarded(view(serve(4), max_accelerators=70, max_cost=11.0), {"a": 9})
    assert alone.refusals[0].message == "the budget is 11 money per hour, pods hold or were promised 8"


def test_a_lowered_budget_leaves_the_least() -> None:
    result = guarded(view(serve(8, least=6), max_accelerators=2), {"a": 8})
    assert (result.moves, refused(result)) == ({"a": 6}, [Refused.OVER_BUDGET])


# ---- what one look alone asks for --------------------------------------------------------------


def hedged(wish: int, sure: int, before: int | None, replicas: int = 3) -> tuple[int, list[Refused]]:
    """Workers, and what was refused, where `sure` of the wish is beyond doubt and the cycle before wished `before`."""
    history = OLD if before is None else OLD.wishing({(KEY[0], "a"): before}, NOW - 5.0, RULES.window_s)
    result = guarded(
        view(serve(replicas, most=20)),
        {"a": wish},
        history=history,
        rules=RULES,
        targets={"a": Target(wish, 10.0, sure)},
    )
    return result.moves["a"], refused(result)


def test_what_is_sure_is_added_at_once_and_the_rest_when_it_is_asked_for_again() -> None:
    assert hedged(wish=6, sure=6, before=None) == (6, [])
    assert hedged(wish=6, sure=4, before=None) == (4, [Refused.UNCONFIRMED])
    assert hedged(wish=6, sure=4, before=3) == (4, [Refused.UNCONFIRMED])
    assert hedged(wish=6, sure=4, before=5) == (5, [Refused.UNCONFIRMED])
    assert hedged(wish=6, sure=4, before=6) == (6, [])
    assert hedged(wish=6, sure=1, before=9) == (6, [])


def test_what_stands_already_needs_no_confirmation() -> None:
    assert hedged(wish=3, sure=1, before=1) == (3, [])
    assert hedged(wish=5, sure=1, before=1) == (3, [Refused.UNCONFIRMED])


def test_a_wish_that_goes_to_another_class_is_no_less_confirmed() -> None:
    one, other = serve(2, most=20), pool(name="b", replicas=2, accelerator="h100-80g", most=20)
    history = OLD.wishing({(KEY[0], "a"): 5, (KEY[0], "b"): 2}, NOW - 5.0, RULES.window_s)
    targets = {"a": Target(2, 10.0, 2), "b": Target(5, 10.0, 2)}
    assert guarded(view(one, other), {}, history=history, rules=RULES, targets=targets).moves == {"a": 2, "b": 5}
    twice = {"a": Target(4, 10.0, 2), "b": Target(5, 10.0, 2)}
    result = guarded(view(one, other), {}, history=history, rules=RULES, targets=twice)
    assert (sum(result.moves.values()), refused(result)) == (7, [Refused.UNCONFIRMED])
