"""The plan: enough for the load, together, cheapest first, and never fewer for more load."""

from __future__ import annotations

from dataclasses import replace

import pytest
from autoscaler_views import KEY, MIX, OBJECTIVES, PROFILE, load, pool, snapshot, view
from hypothesis import given
from hypothesis import strategies as st
from penstock.autoscaler.decisions.capacity import Objectives, WorkerModel, throughput
from penstock.autoscaler.decisions.demand import TokenMix
from penstock.autoscaler.decisions.plan import DeploymentPlan, PlanRules, Target, Why, plan
from penstock.autoscaler.decisions.snapshot import DeploymentView, Pods, PoolView

RULES = PlanRules()
ROLES = ("Prefill", "Decode", "PrefillDecode")
rates = st.floats(0.0, 200.0)


def planned(deployment: DeploymentView) -> DeploymentPlan:
    (only,) = plan(snapshot(deployment), RULES).deployments
    return only


def split(rate: float) -> DeploymentView:
    return view(pool("Prefill"), pool("Decode"), loads={"Prefill": load(rate), "Decode": load(rate)})


@given(rates, rates)
def test_replicas_never_fall_when_the_load_grows(one: float, two: float) -> None:
    low, high = sorted((one, two))
    before, after = planned(split(low)).moves, planned(split(high)).moves
    assert all(before[name] <= after[name] for name in before)


@given(rates, rates, st.floats(0.3, 3.0), st.floats(0.5, 9.0))
def test_planned_throughput_never_falls_over_classes(one: float, two: float, speed: float, price: float) -> None:
    other = pool(accelerator="a100", worker=WorkerModel(PROFILE.scaled(speed, speed), 400_000), cost_per_hour=price)
    low, high = sorted((one, two))

    def served(rate: float) -> float:
        deployment = view(pool(), other, loads={"PrefillDecode": load(rate)}, ranges={"serve": (0, 60)})
        return sum(t.replicas * (t.requests_per_s or 0) for t in planned(deployment).targets.values())

    assert served(low) <= served(high) + 1e-9


@given(st.floats(0.1, 100.0))
def test_what_is_planned_serves_the_load_or_says_that_it_cannot(rate: float) -> None:
    made = planned(split(rate))
    for role, need in made.needs.items():
        name = f"chat-{role.lower()}-h100"
        serves = made.targets[name].replicas * (made.targets[name].requests_per_s or 0.0)
        assert serves >= need or made.why is Why.AT_MOST
        assert (
            made.why is Why.AT_MOST
            or made.targets[name].replicas <= 1
            or ((made.targets[name].replicas - 1) * (made.targets[name].requests_per_s or 0.0) < need)
        )


def test_prefill_and_decode_are_sized_for_the_same_load() -> None:
    """A prefill pool that is full starves decode: its arrivals still count for both."""
    pools = pool("Prefill", startup_s=0.0), pool("Decode", startup_s=0.0)
    starved = view(*pools, loads={"Prefill": load(60.0), "Decode": load(5.0)})
    assert planned(starved).needs == {"Prefill": 60.0, "Decode": 60.0}


def served(of: PoolView, role: str = "PrefillDecode") -> float:
    """Requests a second that one worker serves when it is busy all the time."""
    assert of.worker is not None
    return throughput(role, of.worker, MIX, OBJECTIVES).requests_per_s / RULES.margins.busy


def needed(of: PoolView, **at: float) -> float:
    return planned(view(of, loads={"PrefillDecode": load(**at)})).needs["PrefillDecode"]


def test_what_will_wait_is_worked_off_within_half_a_start_up() -> None:
    nobody = pool(startup_s=30.0, pods=Pods(starting=0))
    assert needed(nobody, rate=4.0, waiting=120.0) == 4.0 + (120.0 + 4.0 * 30.0) / 15.0
    brief = replace(nobody, startup_s=1.0)
    assert needed(brief, rate=4.0, waiting=120.0) == pytest.approx(4.0 + (120.0 + 4.0) / RULES.drain_s)


def test_a_step_is_met_with_workers_for_what_comes_while_they_start() -> None:
    two = pool(startup_s=30.0)
    rate = 3 * served(two)  # One worker's worth more than the two that are ready serve.
    assert needed(two, rate=rate) == pytest.approx(rate + 2 * served(two))
    half_way = replace(two, pods=Pods(ready=2, starting=2))
    assert needed(half_way, rate=rate) == pytest.approx(rate)


def test_workers_that_start_help_for_as_long_as_they_have_been_at_it() -> None:
    """One just made is ready no sooner than one asked for now; one that is late may be ready at any time."""

    def need(starting_s: float) -> float:
        there = pool(startup_s=30.0, pods=Pods(ready=2, starting=1, starting_s=starting_s))
        return needed(there, rate=rate) - rate

    rate = 3 * served(pool())
    assert need(0.0) == pytest.approx(2 * served(pool()))
    assert need(10.0) == pytest.approx(2 * served(pool()) * 2 / 3)
    assert need(15.0) == pytest.approx(needed(pool(startup_s=30.0, pods=Pods(ready=2, starting=1)), rate=rate) - rate)
    assert need(30.0) == need(300.0) == pytest.approx(0.0)


def test_a_queue_that_is_gone_before_anybody_could_start_needs_nobody() -> None:
    two = pool(startup_s=30.0)
    assert needed(two, rate=served(two), waiting=30 * served(two)) == pytest.approx(served(two))
    assert needed(two, rate=served(two), waiting=90 * served(two)) == pytest.approx(5 * served(two))


@given(rates, rates, st.floats(0, 500), st.integers(0, 8), st.integers(0, 8))
def test_a_backlog_never_shrinks_with_the_load_or_grows_with_the_workers(
    one: float, two: float, waiting: float, ready: int, starting: int
) -> None:
    low, high = sorted((one, two))
    there = pool(startup_s=30.0, pods=Pods(ready=ready, starting=starting))
    less = needed(there, rate=low, waiting=waiting)
    assert less >= low
    assert needed(there, rate=high, waiting=waiting) >= less - 1e-9
    more = replace(there, pods=Pods(ready=ready + 1, starting=starting))
    assert needed(more, rate=low, waiting=waiting) <= less + 1e-9


@given(rates, rates, st.floats(0, 500), st.integers(0, 8))
def test_what_surely_comes_asks_for_no_more_than_the_plan(one: float, two: float, waiting: float, ready: int) -> None:
    """Its own load decides it: the same plan as for a load that is known without doubt."""
    sure, rate = sorted((one, two))
    there = pool(startup_s=30.0, pods=Pods(ready=ready))

    def target(**at: float) -> Target:
        return planned(view(there, loads={"PrefillDecode": load(waiting=waiting, **at)})).targets[there.name]

    doubtful = target(rate=rate, sure=sure)
    assert doubtful.sure == target(rate=sure).replicas
    assert doubtful.sure <= doubtful.replicas
    assert target(rate=rate).sure is None


def test_prompts_that_overrun_prefill_workers_are_planned_for_by_their_usual_share() -> None:
    """Past a full queue the router sends prompts to decode workers: prefill workers see no more than they can do."""
    pools = pool("Prefill", startup_s=0.0), pool("Decode", startup_s=0.0)
    overrun = view(*pools, loads={"Prefill": load(20.0), "Decode": load(60.0)})
    assert planned(overrun).needs == {"Prefill": 20.0, "Decode": 60.0}
    assert planned(replace(overrun, prefill_share=0.5)).needs == {"Prefill": 30.0, "Decode": 60.0}
    assert planned(replace(overrun, prefill_share=0.1)).needs == {"Prefill": 20.0, "Decode": 60.0}


def test_the_ratio_follows_the_mix_of_tokens() -> None:
    def ratio(mix: TokenMix) -> float:
        moves = planned(replace(split(60.0), mix=mix)).moves
        return moves["chat-prefill-h100"] / moves["chat-decode-h100"]

    assert ratio(TokenMix(3000, 3000, 50)) > 2 * ratio(TokenMix(300, 300, 600))


def test_cached_prompts_need_fewer_prefill_workers() -> None:
    cached = planned(replace(split(60.0), mix=replace(MIX, computed=100))).moves
    cold = planned(replace(split(60.0), mix=replace(MIX, computed=1000))).moves
    assert cached["chat-prefill-h100"] < cold["chat-prefill-h100"]


def test_the_cheaper_class_comes_first_and_the_other_is_named() -> None:
    dear = pool(accelerator="h100", cost_per_hour=4.0)
    cheap = pool(accelerator="a100", cost_per_hour=1.0)
    made = planned(view(dear, cheap, loads={"PrefillDecode": load(50.0)}, ranges={"serve": (0, 60)}))
    assert made.moves["chat-serve-h100"] == 0 < made.moves["chat-serve-a100"]
    assert "h100 serves 25%" in made.runner_up


def test_a_class_without_capacity_is_planned_around() -> None:
    dear = pool(accelerator="h100", cost_per_hour=4.0)
    cheap = pool(accelerator="a100", cost_per_hour=1.0, exhausted=True, pods=Pods(ready=2, pending=3))
    made = planned(view(dear, cheap, loads={"PrefillDecode": load(50.0)}, ranges={"serve": (0, 60)}))
    assert made.moves["chat-serve-a100"] == 2
    assert made.moves["chat-serve-h100"] > 0


def test_a_class_that_cannot_keep_the_objectives_is_the_last_resort() -> None:
    slow = pool(accelerator="cpu", cost_per_hour=0.01, worker=WorkerModel(PROFILE.scaled(20, 20), 400_000))
    made = planned(view(pool(), slow, loads={"PrefillDecode": load(20.0)}, ranges={"serve": (0, 60)}))
    assert made.moves["chat-serve-cpu"] == 0
    assert "cpu cannot keep the objectives" in made.runner_up


def test_missing_data_holds() -> None:
    assert planned(view(pool(replicas=7), loads={})).moves == {"chat-serve-h100": 7}
    old = view(pool(replicas=7), loads={"PrefillDecode": load(0.0, age_s=500)})
    assert (planned(old).moves, planned(old).why) == ({"chat-serve-h100": 7}, Why.UNMEASURED)
    blind = view(pool(replicas=7, worker=None))
    assert (planned(blind).moves, planned(blind).why) == ({"chat-serve-h100": 7}, Why.NO_PROFILE)
    assert planned(view(mode="Off")).why is Why.OFF


def test_no_load_leaves_the_least_and_never_nothing() -> None:
    idle = view(pool(replicas=5, least=0), loads={"PrefillDecode": load(0.0)}, ranges={"serve": (0, 8)})
    assert planned(idle).moves == {"chat-serve-h100": 1}
    assert planned(replace(idle, ranges={"serve": (3, 8)})).moves == {"chat-serve-h100": 3}


def test_doubt_is_no_certainty() -> None:
    assert planned(view()).certain
    assert not planned(view(loads={"PrefillDecode": load(1.0, coverage=0.5)})).certain


@pytest.mark.parametrize("role", ROLES)
@given(scale=st.floats(1.0, 5.0))
def test_a_slower_worker_serves_less(role: str, scale: float) -> None:
    fast = throughput(role, WorkerModel(PROFILE, 400_000), MIX, OBJECTIVES)
    slow = throughput(role, WorkerModel(PROFILE.scaled(scale, scale), 400_000), MIX, OBJECTIVES)
    assert slow.requests_per_s <= fast.requests_per_s * 1.02


@pytest.mark.parametrize("role", ROLES)
def test_tighter_objectives_leave_less_room(role: str) -> None:
    worker = WorkerModel(PROFILE, 400_000)
    loose, tight = (throughput(role, worker, MIX, Objectives(t, t / 20)) for t in (1.0, 0.4))
    assert tight.requests_per_s < loose.requests_per_s
    impossible = throughput(role, worker, MIX, Objectives(0.001, 0.0005))
    assert not impossible.meets_objectives
    assert impossible.requests_per_s > 0


def test_decode_by_hand() -> None:
    """Passes of 8 + 0.05 B + 0.00001 * 1100 B ms below 42.5: B = 565 by time, 256 by the engine, 300 by memory."""
    speed = throughput("Decode", WorkerModel(PROFILE, 400_000), MIX, OBJECTIVES)
    pass_ms = 8 + 0.05 * 256 + 0.00001 * 1100 * 256
    assert speed.requests_per_s == pytest.approx(0.85 * 256 / (200 * pass_ms / 1000))


def test_prefill_by_hand() -> None:
    """69 ms a prompt, at r busy 5 % wait longer than 69 ms / (1 - r) * ln(r / 0.05): 831 ms with r = 0.773."""
    speed = throughput("Prefill", WorkerModel(PROFILE), MIX, OBJECTIVES)
    assert speed.requests_per_s == pytest.approx(0.7727 / 0.069, rel=0.001)
    patient = throughput("Prefill", WorkerModel(PROFILE), MIX, Objectives(ttft_s=9.0, tpot_s=0.05))
    assert patient.requests_per_s == pytest.approx(0.8 / 0.069, rel=0.001)


def test_key_is_kept() -> None:
    assert planned(view()).key == KEY
