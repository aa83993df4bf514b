"""Workers that lend KV blocks, or move requests: what must hold of plans, and of blocks and requests at every event."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock.core.engine import SchedulingPolicy
from penstock.core.engine.blocks import BlockPool
from penstock.core.fleet import Role
from penstock.core.models import Parallelism
from penstock.core.reports import Verdict
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator import Crash, Impossible, PoolSpec, Scenario, Twin, parse_nodes
from penstock.simulator.lending import Ledger, LendingRules, LendingTwin, MovingRules, MovingTwin
from penstock.simulator.policies.infinite_llm import Change, Instance, Law, Need, Plan, plan_lending
from penstock.simulator.policies.llumnix_moves import Holder, Move, Running, freeness, plan_moves
from penstock.simulator.scenario import HostMemory

LAW = Law(20.0, 0.2, 1e-4, 4.0, 16)
OWN = 100
CHEAP = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
RUNS = settings(
    max_examples=150 if os.environ.get("PENSTOCK_FULL") else 12, deadline=None, suppress_health_check=list(HealthCheck)
)
RULES = LendingRules(period_s=0.2)


@pytest.fixture
def tight(scenario: Scenario) -> Scenario:
    """Four workers with room for 4,096 tokens each."""
    return replace(
        scenario, kv_capacity=4096, max_context=4096, policy="RoundRobin", prefix_caching=False, scrape_interval_s=0.0,
        max_num_batched_tokens=1024, block_size=16,
    )  # fmt: skip


def trace_of(seed: int, requests: int, rate: float = 4.0, longest: int = 9000) -> Trace:
    """Short requests, and one in ten that may be longer than a worker holds."""
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1 / rate, requests))
    made = []
    for number in range(requests):
        long = rng.random() < 0.1
        made.append(
            TraceRequest(float(at[number]), int(rng.integers(1, longest if long else 1200)), int(rng.integers(1, 250)))
        )
    return Trace(tuple(made))


# The manager's plan


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Instance], dict[tuple[int, int], int]]:
    """Two to five workers and loans between them, as the ledger allows them."""
    count = draw(st.integers(2, 5))
    role = draw(st.lists(st.sampled_from("dcn"), min_size=count, max_size=count))
    loans = {}
    for debtor in range(count):
        for creditor in range(count):
            blocks = draw(st.integers(0, OWN // count))
            if role[debtor] == "d" and role[creditor] == "c" and blocks:
                loans[debtor, creditor] = blocks
    instances = []
    for number in range(count):
        there = OWN
        there += sum(blocks for (debtor, _), blocks in loans.items() if debtor == number)
        there -= sum(blocks for (_, creditor), blocks in loans.items() if creditor == number)
        batch = draw(st.integers(0, 20))
        free = there - (draw(st.integers(0, there)) if batch else 0)
        growth = draw(st.integers(0, 30)) if batch else 0
        if role[number] == "c":
            growth = min(growth, free)
        needs = st.tuples(st.integers(1, 2 * OWN), st.floats(0, 9))
        waiting = tuple(Need(blocks, blocks * 16, since) for blocks, since in draw(st.lists(needs, max_size=4)))
        instances.append(Instance(OWN, free, growth, batch, (there - free) * 16, waiting))
    return instances, loans


@CHEAP
@given(clusters())
def test_a_plan_can_be_carried_out_and_takes_nothing_that_is_needed(
    cluster: tuple[list[Instance], dict[tuple[int, int], int]],
) -> None:
    instances, before = cluster
    plan = plan_lending(instances, before, LAW)
    free, loans = [one.free for one in instances], dict(before)
    for change in plan.changes:
        debtor, creditor, blocks = change.debtor, change.creditor, change.blocks
        assert debtor != creditor
        assert blocks != 0
        if blocks > 0:
            assert not any(one == creditor and owed for (one, _), owed in loans.items()), "lends what it borrowed"
        free[debtor] += blocks
        free[creditor] -= blocks
        loans[debtor, creditor] = loans.get((debtor, creditor), 0) + blocks
        assert loans[debtor, creditor] >= 0
        giver = creditor if blocks > 0 else debtor
        assert free[giver] >= instances[giver].growth, "takes what admitted requests may still need"
    assert sum(free) == sum(one.free for one in instances)
    assert plan == plan_lending(instances, before, LAW)


@CHEAP
@given(clusters(), st.data())
def test_a_plan_leaves_older_requests_their_room(
    cluster: tuple[list[Instance], dict[tuple[int, int], int]], data: st.DataObject
) -> None:
    instances, loans = cluster
    one = data.draw(st.integers(0, len(instances) - 1))
    aged = [
        replace(each, waiting=tuple(replace(need, since_s=5.0 * (number != one)) for need in each.waiting))
        for number, each in enumerate(instances)
    ]
    plan = plan_lending(aged, loans, LAW)
    if plan.collecting is not None or any(each.waiting and each.waiting[0].blocks > OWN for each in aged):
        return  # a request that no worker holds goes before all others
    lent = sum(change.blocks for change in plan.changes if change.creditor == one and change.blocks > 0)
    spare = max(0, aged[one].free - aged[one].growth)
    back = sum(-change.blocks for change in plan.changes if change.creditor == one and change.blocks < 0)
    assert lent <= max(0, spare + back - sum(need.blocks for need in aged[one].waiting))


def test_blocks_go_from_the_freest_to_the_most_constrained() -> None:
    crowded = Instance(OWN, 5, 0, 3, 1500, (Need(20, 300, 1.0),))
    busier = Instance(OWN, 5, 0, 9, 1500, (Need(20, 300, 1.0),))
    spare, freest = Instance(OWN, 40, 10, 4, 900), Instance(OWN, 60, 10, 4, 600)
    plan = plan_lending([crowded, busier, spare, freest], {}, replace(LAW, trip=0.1))
    assert plan.changes[0] == Change(0, 3, 15)
    assert {(change.debtor, change.blocks) for change in plan.changes} == {(0, 15), (1, 15)}


def test_nothing_is_lent_where_trips_cost_more_than_it_brings() -> None:
    crowded = Instance(OWN, 5, 0, 3, 1500, (Need(20, 300, 1.0),))
    spare = Instance(OWN, 60, 10, 4, 600)
    assert plan_lending([crowded, spare], {}, LAW).changes
    assert plan_lending([crowded, spare], {}, replace(LAW, trip=50.0)) == Plan()


def test_a_creditor_keeps_what_older_requests_wait_for() -> None:
    crowded = Instance(OWN, 5, 0, 3, 1500, (Need(20, 300, 5.0),))
    older = Instance(OWN, 30, 0, 4, 900, (Need(60, 900, 1.0),))
    younger = replace(older, waiting=(Need(60, 900, 9.0),))
    assert plan_lending([crowded, older], {}, LAW) == Plan()
    assert plan_lending([crowded, younger], {}, LAW).changes == (Change(0, 1, 15),)


def test_what_nobody_needs_goes_back() -> None:
    done, lender = Instance(OWN, 70, 10, 3, 1500), Instance(OWN, 20, 20, 9, 900)
    assert plan_lending([done, lender], {(0, 1): 50}, LAW).changes == (Change(0, 1, -50),)
    busy = replace(done, growth=40)
    assert plan_lending([busy, lender], {(0, 1): 50}, LAW).changes == (Change(0, 1, -30),)


def test_blocks_are_collected_for_a_request_that_no_worker_holds() -> None:
    long = Instance(OWN, 100, 0, 0, 0, (Need(180, 2880, 9.0),))
    busy = Instance(OWN, 30, 10, 5, 900, (Need(60, 900, 1.0),))
    plan = plan_lending([long, busy, busy], {}, LAW)
    assert plan == Plan((Change(0, 1, 20), Change(0, 2, 20)), collecting=0)
    full = replace(busy, free=10)
    assert plan_lending([long, full, full], {}, LAW) == Plan(collecting=0, shut=True)
    enough = replace(long, free=180)
    assert plan_lending([enough, full, full], {(0, 1): 80}, LAW) == Plan()


# The ledger


@CHEAP
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(-20, 20)), max_size=30), st.data())
def test_a_ledger_is_sound_whatever_is_asked_of_it(asked: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """What can be done is, what cannot is refused and changes nothing; sequences take and give back meanwhile."""
    own = [7, 12, 20]
    pools = [BlockPool(39) for _ in own]
    ledger, used = Ledger(pools, own), [0, 0, 0]
    for debtor, creditor, blocks in asked:
        number = data.draw(st.integers(0, 2))
        pools[number].take(more := data.draw(st.integers(0, pools[number].free)))
        used[number] += more
        pools[number].give_back((), less := data.draw(st.integers(0, used[number])))
        used[number] -= less
        before = ledger.loans(), [pool.free for pool in pools]
        try:
            (ledger.lend if blocks > 0 else ledger.give_back)(debtor, creditor, abs(blocks))
        except ValueError:
            assert before == (ledger.loans(), [pool.free for pool in pools])
        assert ledger.violations(used) == []
        assert sum(pool.free for pool in pools) + sum(used) == sum(own)


def test_a_ledger_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="cannot begin with 5"):
        Ledger([BlockPool(4)], [5])
    ledger = Ledger([BlockPool(30), BlockPool(30), BlockPool(30)], [10, 10, 10])
    ledger.lend(0, 1, 6)
    assert (ledger.borrowed(0), ledger.lent(1), ledger.creditors(0)) == (6, 6, {1: 6})
    with pytest.raises(ValueError, match="has borrowed blocks itself"):
        ledger.lend(2, 0, 1)
    with pytest.raises(ValueError, match="5 blocks wanted, 4"):
        ledger.lend(0, 1, 5)
    with pytest.raises(ValueError, match="owes worker 1 6 blocks and cannot return 7"):
        ledger.give_back(0, 1, 7)
    assert any("elsewhere" in said or "in use" in said for said in ledger.violations([17, 0, 0]))


# Clusters that lend


def play_checked(twin: Twin, trace: Trace) -> None:
    """Run to the end with the invariants of whoever shares looked at after every event."""
    preempted: dict[int, int] = {}

    def check() -> bool:
        inside = [active.id for worker in twin.workers for active in worker.engine.living()]
        assert len(set(inside)) == len(inside), "a sequence is at two workers"
        assert int(twin.fleet.in_flight.sum()) == twin.fleet.reservations
        if isinstance(twin, LendingTwin):
            check_blocks(twin, preempted)
        return twin.left > 0

    twin._begin()
    twin.events.run(check)
    assert twin.left == 0
    assert twin.fleet.reservations == 0
    assert not any(worker.engine.living() for worker in twin.workers)
    for outcome, asked in zip(twin.outcomes, trace.requests, strict=True):
        if outcome.verdict is Verdict.COMPLETED:
            assert (outcome.prompt_tokens, outcome.output_tokens) == (asked.input_tokens, asked.output_tokens)
            assert 0 < outcome.ttft_s <= outcome.e2e_s


def check_blocks(twin: LendingTwin, preempted: dict[int, int]) -> None:
    """Lent is borrowed, no block is in two places, and who has lent can still serve whom it has admitted."""
    used = [sum(map(worker.blocks_of, worker.engine.living())) for worker in twin.lenders]
    assert twin.ledger.violations(used) == []
    for worker in twin.lenders:
        count = worker.engine.stats().preemptions
        if worker.creditor:
            running = worker.engine.scheduler.running
            assert worker.engine.scheduler.pool.free >= sum(map(worker.growth, running))
            assert count == preempted.get(worker.number, count), "a creditor preempted for want of blocks"
        preempted[worker.number] = count


@RUNS
@given(st.integers(0, 10_000), st.sampled_from(["RoundRobin", "LeastLoaded"]), st.floats(0.05, 1.0))
def test_blocks_and_requests_are_conserved_while_workers_lend(
    tight: Scenario, seed: int, policy: str, period: float
) -> None:
    trace = trace_of(seed, 40)
    twin = LendingTwin(replace(tight, policy=policy), trace, replace(RULES, period_s=period))
    play_checked(twin, trace)
    assert {outcome.verdict for outcome in twin.outcomes} == {Verdict.COMPLETED}


@RUNS
@given(st.integers(0, 10_000), st.sampled_from(["RoundRobin", "LeastLoaded"]))
def test_requests_are_conserved_while_they_move(tight: Scenario, seed: int, policy: str) -> None:
    trace = trace_of(seed, 40, longest=3800)
    twin = MovingTwin(replace(tight, policy=policy), trace, MovingRules())
    play_checked(twin, trace)
    assert {outcome.verdict for outcome in twin.outcomes} == {Verdict.COMPLETED}


def test_blocks_are_lent_and_requests_moved_in_such_runs(tight: Scenario) -> None:
    """So that the properties above are not of runs in which nothing happens."""
    trace = trace_of(3, 40)
    lending = LendingTwin(tight, trace, RULES)
    lending.run()
    assert lending.lending().loans > 5
    assert lending.lending().collections > 0
    moving = MovingTwin(tight, trace_of(3, 40, longest=3800), MovingRules())
    moving.run()
    assert moving.moved >= 3
    assert moving.pulls.moved().transfers == moving.moved


def test_order_of_equal_events_changes_nothing(tight: Scenario) -> None:
    trace = trace_of(7, 40)

    def run(numbers: list[int] | None) -> tuple[object, ...]:
        order = None if numbers is None else iter(numbers)
        lending = LendingTwin(tight, trace, RULES, order).run()
        order = None if numbers is None else iter(numbers)
        moving = MovingTwin(tight, trace, MovingRules(), order).run()
        return tuple(lending.outcomes), tuple(moving.outcomes), lending.steps, moving.steps

    shuffled = list(range(200_000))
    random.Random(1).shuffle(shuffled)
    assert run(None) == run(shuffled) == run(None)


def test_a_pass_costs_a_debtor_a_trip_and_its_creditor_the_attention(tight: Scenario) -> None:
    """One request that two workers hold together: with free trips as fast as at home but for the attention beside."""
    one = Trace((TraceRequest(0.0, 6000, 200),))

    def seconds(rules: LendingRules) -> float:
        return next(iter(LendingTwin(tight, one, rules).run().outcomes)).e2e_s or 0.0

    free = seconds(LendingRules(period_s=0.1, trip_ms=0, query_ms=0, move_ms=0))
    trips = seconds(LendingRules(period_s=0.1, trip_ms=30, query_ms=0, move_ms=0))
    moves = seconds(LendingRules(period_s=0.1, trip_ms=0, query_ms=0, move_ms=0.5))
    # 200 decode passes and a few of the prompt wait for a trip; what is not hidden behind attention at home.
    assert 200 * 0.030 * 0.95 < trips - free < 206 * 0.030
    # 6,200 tokens less the 4,096 at home move once.
    assert moves - free == pytest.approx((6200 - 4096) * 0.5e-3, rel=0.02)
    roomy = replace(tight, kv_capacity=8192, max_context=8192)
    home = next(iter(LendingTwin(roomy, one, RULES).run().outcomes)).e2e_s or 0.0
    context = tight.profile.decode[2] if tight.profile is not None else 0.0
    # Attention to the part elsewhere, some 2,000 tokens, runs beside that at home; the first plan comes after 0.1 s.
    assert home - (free - 0.1) == pytest.approx(200 * context * 2000e-3, rel=0.1)


def test_what_sharing_is_not_modelled_with_is_refused(tight: Scenario) -> None:
    trace = trace_of(1, 3, longest=2000)
    wrong = {
        "prefix caching": {"prefix_caching": True},
        "priorities": {"scheduling_policy": SchedulingPolicy.PRIORITY},
        "swapping": {"host": HostMemory(8192)},
        "faults": {"crashes": (Crash(1.0, 0),)},
        "engines' own load": {"scrape_interval_s": 5.0},
        "prefill and decode apart": {
            "pools": (
                PoolSpec("p", Role.PREFILL, "a100-80g", Parallelism(), 1),
                PoolSpec("d", Role.DECODE, "a100-80g", Parallelism(), 1),
            )
        },
    }
    for said, change in wrong.items():
        with pytest.raises(Impossible, match=said):
            LendingTwin(replace(tight, **change), trace, RULES)  # type: ignore[arg-type]
        with pytest.raises(Impossible, match=said):
            MovingTwin(replace(tight, **change), trace, MovingRules())  # type: ignore[arg-type]
    two = replace(tight, profile=None, groups=parse_nodes("a100-80g=1x2,h100-80g=1x2"))
    with pytest.raises(Impossible, match="nodes of one accelerator class"):
        LendingTwin(two, trace, RULES)
    MovingTwin(two, trace, MovingRules())  # Each keeps its own pace.
    for rules in ({"period_s": 0.0}, {"trip_ms": -1.0}, {"move_ms": float("nan")}):
        with pytest.raises(ValueError, match="lending: "):
            LendingRules(**rules)
    with pytest.raises(ValueError, match="moving: "):
        MovingRules(period_s=0.0)


# Llumnix's moves


def test_the_shortest_request_goes_from_the_fullest_to_the_freest() -> None:
    full = Holder(2, 4, 30, Running("a", 5))
    fuller = Holder(0, 4, 60, Running("b", 6))
    middle, freest = Holder(40, 4, 0, Running("c", 5)), Holder(90, 3, 0, None)
    assert [round(freeness(one), 1) for one in (full, fuller, middle, freest)] == [-5.6, -12.0, 10.0, 30.0]
    assert plan_moves([full, fuller, middle, freest], 3.0) == (Move("b", 1, 3), Move("a", 0, 2))
    assert plan_moves([fuller, replace(freest, waits=1)], 3.0) == ()
    assert plan_moves([fuller, replace(middle, free=15)], 3.0) == ()
    assert plan_moves([replace(fuller, shortest=None), freest], 3.0) == ()
