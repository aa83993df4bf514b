"""How a plan search saves runs: what is given up would have failed, and what is tried first is worth it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.core.fleet import Role
from penstock.core.models import LatencyProfile, Parallelism, ProfileSource, find_model
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator import parse_nodes
from penstock.simulator.planning import (
    Cell,
    Goal,
    Objectives,
    Plan,
    PlanPool,
    Rank,
    Space,
    cells_of,
    draw_sample,
    find_plans,
    judge_plan,
    try_plan,
)
from penstock.simulator.planning.bounds import profile_of
from penstock.simulator.planning.candidates import enumerate_plans
from penstock.simulator.planning.order import Line
from penstock.simulator.planning.phases import helpers
from penstock.simulator.planning.promises import promises
from penstock.simulator.planning.queues import prefill_rate
from penstock.simulator.planning.trial import scenario_of

OPT = find_model("opt-13b")
NODES = "a100-80g=1x2,h100-80g=1x2"


def space_of(nodes: str = NODES, ttft: float = 0.3, tpot: float = 0.1, requests: int = 80, seed: int = 0) -> Space:
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(6.2, 0.7, 400), 8, 1500).astype(int)
    outputs = np.clip(rng.lognormal(4.2, 0.8, 400), 1, 400).astype(int)
    trace = Trace(tuple(TraceRequest(0.0, int(p), int(o)) for p, o in zip(prompts, outputs, strict=True)), 16)
    assert OPT is not None
    return Space(OPT, parse_nodes(nodes), draw_sample(trace, requests, seed), Objectives(ttft, tpot, 0.9), 2048)


def all_plans(space: Space) -> list[Plan]:
    cells = [cell for group in space.groups for cell in cells_of(space.model, group, space.context, (2048,))]
    return list(enumerate_plans(space.groups, cells))


def cell(role: Role, tensor: int = 1, pipeline: int = 1, accelerator: str = "a100-80g") -> Cell:
    return Cell(accelerator, role, Parallelism(tensor, pipeline), 2048)


@settings(max_examples=25)
@given(
    st.sampled_from(["a100-80g=1x2", NODES]), st.floats(0.15, 1.0), st.floats(0.03, 0.15), st.floats(0.05, 8.0),
    st.integers(0, 50), st.integers(0, 10_000),
)  # fmt: skip
def test_a_run_is_given_up_only_where_it_would_have_failed(
    nodes: str, ttft: float, tpot: float, rate: float, seed: int, pick: int
) -> None:
    space = space_of(nodes, ttft, tpot, requests=60, seed=seed)
    plans = all_plans(space)
    plan = plans[pick % len(plans)]
    whole, judged = try_plan(space, plan, rate), judge_plan(space, plan, rate)
    assert judged.holds == whole.holds
    hasty = judge_plan(space, plan, rate, hasty=True)
    for one in (judged, hasty):
        if one.whole:
            assert one == whole, "looking at a run must not change it"


def test_a_hopeless_run_is_given_up_early() -> None:
    space = space_of("a100-80g=1x2", requests=200)
    plan = Plan((PlanPool(cell(Role.PREFILL_DECODE, 2), 1),))
    assert try_plan(space, plan, 50.0).whole and not judge_plan(space, plan, 50.0).whole


def test_a_plan_that_holds_nothing_is_told_from_its_whole_run() -> None:
    space = space_of("a100-80g=1x1", ttft=0.3)
    found = find_plans(space, Goal(space.objectives, Rank.COST, 3.0), requests=80)
    assert not found.ranking and found.nearest is not None
    plan, trial = found.nearest
    assert trial.whole and trial == try_plan(space, plan, trial.rate)


def test_workers_behind_one_queue_hold_more_than_each_for_itself() -> None:
    space = space_of(requests=300)
    one = prefill_rate(space, ((cell(Role.PREFILL), 1),))
    assert one > 0
    rates = [prefill_rate(space, ((cell(Role.PREFILL), count),)) for count in (1, 2, 4)]
    assert rates[1] > 2 * one and rates[2] > 2 * rates[1]
    faster = cell(Role.PREFILL, accelerator="h100-80g")
    assert prefill_rate(space, ((cell(Role.PREFILL), 1), (faster, 1))) > prefill_rate(space, ((faster, 1),))


def test_the_rate_of_a_queue_is_where_too_many_prompts_become_late() -> None:
    """Against Lindley's recursion for one server, worked out here."""
    space = space_of(requests=300)
    kind = cell(Role.PREFILL)
    work = np.array([profile_of(space, kind).prefill_ms(prompt) / 1e3 for prompt in space.sample.prompts])

    def late(rate: float) -> float:
        wait, times = 0.0, np.array(space.sample.times) / rate
        ttfts = [work[0]]
        for number in range(1, len(work)):
            wait = max(0.0, wait + work[number - 1] - (times[number] - times[number - 1]))
            ttfts.append(wait + work[number])
        return float(np.mean(np.array(ttfts) > space.objectives.ttft_s))

    found = prefill_rate(space, ((kind, 1),))
    assert late(found) <= 0.1 + 1e-9 and late(found * 1.05) > 0.1


def test_a_class_too_slow_for_long_prompts_is_kept_for_short_ones() -> None:
    space = space_of("a10g-24g=1x2,h100-80g=1x2", ttft=0.25, requests=200)
    cells = [one for group in space.groups for one in cells_of(space.model, group, space.context, (2048,))]
    slow = [one for one in helpers(space, cells) if one.accelerator == "a10g-24g"]
    assert slow and prefill_rate(space, ((slow[0], 1),)) == 0.0
    fast = cell(Role.PREFILL, accelerator="h100-80g")
    assert prefill_rate(space, ((fast, 1), (slow[0], 1))) > prefill_rate(space, ((fast, 1),))


def test_a_space_may_know_a_pace_better_than_the_catalogue() -> None:
    kind = cell(Role.PREFILL)
    slow = LatencyProfile((100.0, 0.2, 0.0), (50.0, 0.1, 0.0), ProfileSource.BENCHMARK, "made up")
    space = space_of("a100-80g=1x2")
    told = replace(space, paces=((kind.accelerator, Role.PREFILL, 1, slow),))
    plan = Plan((PlanPool(kind, 1), PlanPool(cell(Role.DECODE), 1)))
    assert scenario_of(told, plan).pools[0].profile == slow
    assert scenario_of(told, plan).pools[1].profile == scenario_of(space, plan).pools[1].profile != slow
    assert prefill_rate(told, ((kind, 1),)) < prefill_rate(space, ((kind, 1),))


def test_a_plan_promises_what_its_weaker_phase_holds() -> None:
    space = space_of("a100-80g=1x4")
    both, prefill, decode = cell(Role.PREFILL_DECODE), cell(Role.PREFILL), cell(Role.DECODE)
    plans = [
        Plan((PlanPool(both, 4),)),
        Plan((PlanPool(prefill, 1), PlanPool(decode, 3))),
        Plan((PlanPool(prefill, 3), PlanPool(decode, 1))),
    ]
    first, second, third = promises(space, plans, {both: 1.5, decode: 2.0})
    assert first == 6.0 and second == prefill_rate(space, ((prefill, 1),)) and third == 2.0


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.integers(0, 5))
def test_every_plan_is_given_out_once_at_most(promised: list[float], best: int) -> None:
    plans = all_plans(space_of())[: len(promised)]
    line = Line(plans, promised[: len(plans)])
    given_out: list[int] = []
    while some := line.next(given_out[best : best + 2], 64):
        given_out += some
    assert len(given_out) == len(set(given_out)) == len(plans) - line.left
    assert given_out[0] == int(np.argmax(promised[: len(plans)]))


def test_neighbours_of_the_best_come_before_what_promises_as_little() -> None:
    plans = all_plans(space_of())
    best = len(plans) - 1
    line = Line(plans, [0.0] * best + [1.0])
    assert line.next([], 64)[0] == best

    def stands(number: int, accelerator: str) -> set[PlanPool]:
        return {pool for pool in plans[number].pools if pool.cell.accelerator == accelerator}

    for number in line.next([best], 64)[:2]:
        same = [stands(number, name) == stands(best, name) for name in ("a100-80g", "h100-80g")]
        assert sorted(same) == [False, True]


@pytest.mark.parametrize("rank", [Rank.GOODPUT, Rank.LATENCY])
def test_a_search_of_two_classes_finds_what_trying_everything_finds(rank: Rank) -> None:
    space = space_of(NODES, 0.3, 0.08, requests=60)
    goal = Goal(space.objectives, rank, None if rank is Rank.GOODPUT else 1.0)
    quick = find_plans(space, goal, budgets=(2048,), requests=60)
    every = find_plans(space, goal, budgets=(2048,), requests=60, most=10_000, kinds=10, patience=10_000)
    assert quick.counts.tried <= every.counts.tried
    assert quick.ranking[0].score[0] == pytest.approx(every.ranking[0].score[0], rel=0.02)


@pytest.mark.parametrize("rank", [Rank.GOODPUT, Rank.LATENCY, Rank.ENERGY])
@pytest.mark.parametrize("most", [1, 3])
def test_no_more_plans_are_tried_than_may_be(rank: Rank, most: int) -> None:
    space = space_of("a100-80g=1x2", requests=40)
    goal = Goal(space.objectives, rank, None if rank is Rank.GOODPUT else 0.5)
    counts = find_plans(space, goal, budgets=(512, 2048), requests=40, most=most).counts
    assert 1 <= counts.tried <= most
    assert counts.enumerated == counts.dropped + counts.tried + counts.unseen
