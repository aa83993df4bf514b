"""What goes wrong in a simulated cluster shows as in life: in the times clients see, and in what the router knows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from penstock.core.fleet import Role
from penstock.core.models import Parallelism
from penstock.core.models.power import Phase, slowdown
from penstock.core.reports import Verdict
from penstock.core.traces import Trace, TraceRequest
from penstock.router.decisions.split import SplitLimits
from penstock.simulator import (
    Crash,
    FirstToken,
    Impossible,
    Link,
    LostEvents,
    Partition,
    PoolSpec,
    Scenario,
    Slow,
    StartUp,
    Throttle,
    Timeouts,
    Twin,
    parse_nodes,
    simulate,
)

ONE = Parallelism(tensor=1)
PROMPT, OUTPUT = 1000, 50
LONE = Trace((TraceRequest(0.0, PROMPT, OUTPUT),))


@pytest.fixture
def lone(scenario: Scenario) -> Scenario:
    """One worker that does both."""
    return replace(scenario, groups=parse_nodes("a100-80g=1x1"), policy="LeastLoaded", start_up=StartUp(0, 0, 1, 1, 1))


@pytest.fixture
def pair(lone: Scenario) -> Scenario:
    """One worker for prefill, two for decode, a node each."""
    pools = (
        PoolSpec("prefill", Role.PREFILL, "a100-80g", ONE, 1),
        PoolSpec("decode", Role.DECODE, "a100-80g", ONE, 2),
    )
    return replace(lone, groups=parse_nodes("a100-80g=3x1"), pools=pools, split=SplitLimits(min_tokens=1))


def decode_s(scenario: Scenario, first: int = 1, last: int = OUTPUT) -> float:
    """Seconds of the passes for output tokens `first` to `last` - 1, after the first one (0)."""
    return sum(scenario.profile.decode_ms(1, PROMPT + token) for token in range(first, last)) / 1e3


def only(scenario: Scenario, trace: Trace = LONE):
    (outcome,) = simulate(scenario, trace).outcomes
    return outcome


# How fast it goes


def test_a_slow_worker_takes_its_factor_longer_from_the_next_pass_on(lone: Scenario) -> None:
    prefill = lone.profile.prefill_ms(PROMPT) / 1e3
    passes = [lone.profile.decode_ms(1, PROMPT + token) / 1e3 for token in range(1, OUTPUT)]
    at = prefill + sum(passes[:10]) + 0.4 * passes[10]  # In the middle of the eleventh.
    outcome = only(replace(lone, faults=(Slow(at, 1000.0, 0, 3.0),)))
    assert outcome.e2e_s == pytest.approx(prefill + sum(passes[:11]) + 3.0 * sum(passes[11:]))
    until = at + passes[10] + 6.0 * passes[11]
    assert only(replace(lone, faults=(Slow(at, until, 0, 3.0),))).e2e_s < outcome.e2e_s


def test_factors_of_one_worker_multiply_and_end_each_for_itself(lone: Scenario) -> None:
    calm = only(lone).e2e_s
    both = only(replace(lone, faults=(Slow(0.0, 1e6, 0, 2.0), Slow(0.0, 1e6, 0, 1.5))))
    assert both.e2e_s == pytest.approx(3.0 * calm)
    assert only(replace(lone, faults=(Slow(50.0, 60.0, 0, 9.0),))).e2e_s == calm


def test_a_throttled_clock_slows_prefill_more_than_decode_and_saves_energy(lone: Scenario) -> None:
    calm, held = simulate(lone, LONE), simulate(replace(lone, faults=(Throttle(0.0, 1e6, 0, 0.6),)), LONE)
    (before,), (after,) = calm.outcomes, held.outcomes
    assert after.ttft_s == pytest.approx(before.ttft_s * slowdown(Phase.PREFILL, 0.6))
    assert after.e2e_s - after.ttft_s == pytest.approx((before.e2e_s - before.ttft_s) * slowdown(Phase.DECODE, 0.6))
    busy = held.resources.total.joules / held.end_s
    assert busy < 0.8 * calm.resources.total.joules / calm.end_s


# Who cannot be reached


def test_an_attempt_at_a_worker_that_cannot_be_reached_goes_elsewhere_after_the_time_out(scenario: Scenario) -> None:
    two = replace(scenario, groups=parse_nodes("a100-80g=1x2"), policy="LeastLoaded")
    cut = replace(two, faults=(Partition(0.0, 500.0, 0),), timeouts=Timeouts(connect_s=2.0))
    calm = only(two)
    assert only(cut).ttft_s == pytest.approx(calm.ttft_s + 2.0)


def test_what_is_said_behind_a_short_partition_arrives_at_its_end(lone: Scenario) -> None:
    begins = lone.profile.prefill_ms(PROMPT) / 1e3 + decode_s(lone, 1, 10)
    outcome = only(replace(lone, faults=(Partition(begins, begins + 20.0, 0),)))
    assert outcome.verdict is Verdict.COMPLETED
    assert outcome.e2e_s == pytest.approx(begins + 20.0)
    assert outcome.ttft_s == pytest.approx(only(lone).ttft_s)


def test_behind_a_long_partition_the_answer_is_continued_elsewhere_and_the_old_one_ended(scenario: Scenario) -> None:
    two = replace(scenario, groups=parse_nodes("a100-80g=1x2"), policy="LeastLoaded")
    begins = two.profile.prefill_ms(PROMPT) / 1e3 + decode_s(two, 1, 10) + 1e-6
    cut = replace(two, faults=(Partition(begins, begins + 300.0, 0),), timeouts=Timeouts(silence_s=5.0))
    # A second request, long after, keeps the run going until the partition is over.
    twin = Twin(cut, Trace((LONE.requests[0], TraceRequest(begins + 400.0, 10, 2))))
    first, _ = twin.run().outcomes
    # Ten tokens had come; the other worker prefills prompt and those, and gives the rest.
    again = two.profile.prefill_ms(PROMPT + 10) / 1e3 + decode_s(two, 11)
    assert first.e2e_s == pytest.approx(begins + 5.0 + again, rel=1e-3)
    assert (first.output_tokens, twin.requests.continued) == (OUTPUT, 1)
    assert not twin.workers[0].engine.living()


def test_samples_of_a_worker_that_cannot_be_reached_grow_stale(scenario: Scenario) -> None:
    cut = replace(scenario, faults=(Partition(8.0, 21.0, 1),), scrape_interval_s=5.0)
    twin = Twin(cut, Trace((TraceRequest(0.0, 100, 5), TraceRequest(20.0, 100, 5), TraceRequest(30.0, 100, 5))))
    twin._begin()
    twin.events.run(lambda: twin.events.now < 20.5)
    ages = [20.5 - float(twin.fleet.sampled_at[worker.slot]) for worker in twin.workers]
    assert ages[1] > 10.0
    assert all(age < 6.0 for number, age in enumerate(ages) if number != 1)


def test_kv_that_cannot_come_is_computed_again_after_the_time_out(pair: Scenario) -> None:
    calm = simulate(pair, LONE)
    assert calm.kv_moved.transfers == 1
    cut = simulate(replace(pair, faults=(Partition(0.0, 500.0, 0, router=False),)), LONE)
    (before,), (after,) = calm.outcomes, cut.outcomes
    assert (cut.kv_moved.failed, cut.kv_moved.tokens) == (1, 0)
    moving = pair.transfer.seconds(PROMPT * pair.model.kv_bytes_per_token())
    again = pair.profile.prefill_ms(PROMPT) / 1e3
    one = pair.profile.decode_ms(1, PROMPT) / 1e3  # In place of computing the prompt.
    assert after.ttft_s == pytest.approx(before.ttft_s - moving - one + 5.0 + again)


def test_kv_that_is_held_up_for_a_while_arrives_later_by_that(pair: Scenario) -> None:
    slow = replace(pair, transfer=Link(gbytes_per_s=1.0, latency_s=0.0))
    prefilled = pair.profile.prefill_ms(PROMPT) / 1e3
    held_up = replace(slow, faults=(Partition(prefilled + 0.05, prefilled + 2.05, 0, router=False, peer=1),))
    assert only(held_up).ttft_s == pytest.approx(only(slow).ttft_s + 2.0)
    other = replace(held_up, faults=(Partition(prefilled + 0.05, prefilled + 2.05, 0, router=False, peer=2),))
    assert only(other).ttft_s == only(slow).ttft_s


# Who dies


def test_a_prefill_worker_that_dies_while_its_blocks_move_costs_a_prefill_on_the_other_side(pair: Scenario) -> None:
    slow = replace(pair, transfer=Link(gbytes_per_s=1.0, latency_s=0.0))
    dies = pair.profile.prefill_ms(PROMPT) / 1e3 + 0.05
    result = simulate(replace(slow, crashes=(Crash(dies, 0),)), LONE)
    (outcome,) = result.outcomes
    assert result.kv_moved.failed == 1
    assert outcome.ttft_s == pytest.approx(dies + pair.profile.prefill_ms(PROMPT) / 1e3)
    assert 0.0 < result.kv_moved.gbytes < PROMPT * pair.model.kv_bytes_per_token() / 1e9


def test_a_decode_worker_that_dies_is_replaced_and_the_answer_goes_on(pair: Scenario) -> None:
    calm = only(pair)
    dies = calm.ttft_s + decode_s(pair, 1, 10) + 1e-6
    result = simulate(replace(pair, crashes=(Crash(dies, 1),)), LONE)
    (outcome,) = result.outcomes
    assert (outcome.verdict, outcome.output_tokens, result.continued) == (Verdict.COMPLETED, OUTPUT, 1)
    assert outcome.ttft_s == calm.ttft_s
    again = pair.profile.prefill_ms(PROMPT + 10) / 1e3 + decode_s(pair, 11)
    assert outcome.e2e_s == pytest.approx(dies + again, rel=1e-3)


def test_blocks_nobody_pulls_are_free_when_their_lease_ends(pair: Scenario) -> None:
    # Both decode workers die while the KV is on its way; nobody is left that could pull it.
    slow = replace(pair, transfer=Link(gbytes_per_s=1.0, latency_s=0.0), split=SplitLimits(min_tokens=1, lease=3.0))
    dies = pair.profile.prefill_ms(PROMPT) / 1e3 + 0.05
    twin = Twin(replace(slow, crashes=(Crash(dies, 1), Crash(dies, 2)), start_up=StartUp(0, 0, 50, 0, 0)), LONE)
    twin._begin()
    engine = twin.workers[0].engine
    twin.events.run(lambda: twin.events.now < dies + 2.0)
    assert engine.held()
    assert engine.stats().kv_usage > 0
    twin.events.run(lambda: twin.events.now < dies + 3.5)
    assert not engine.held()
    assert engine.stats().kv_usage == 0
    # The retry ran a second leg before it found the other decode worker dead too.
    assert engine.stats().leases_expired == sum(engine.stats().finished.values()) == 2


def test_a_pull_after_the_lease_is_counted(pair: Scenario) -> None:
    late = replace(pair, transfer=Link(gbytes_per_s=0.05, latency_s=0.0), split=SplitLimits(min_tokens=1, lease=1.0))
    result = simulate(late, LONE)
    assert (result.kv_moved.stale, result.kv_moved.failed) == (1, 0)


# What the index does not hear


def same_prompt(times: tuple[float, ...]) -> Trace:
    return Trace(tuple(TraceRequest(at, 640, 5, tuple(range(10))) for at in times), 64)


@pytest.mark.parametrize(
    ("fault", "hits"),
    [
        ((), [0, 576, 576]),
        ((LostEvents(0.0, 50.0, 0, True),), [0, 0, 576]),  # Replayed at 50 s.
        ((LostEvents(0.0, 50.0, 0, False),), [0, 0, 0]),  # What was lost stays lost.
        ((Partition(4.0, 50.0, 0, True),), [0, 576, 576]),  # Heard before.
    ],
)
def test_what_the_index_misses_is_not_expected(lone: Scenario, fault: tuple, hits: list[int]) -> None:
    twin = Twin(
        replace(lone, policy="KVAware", faults=fault, timeouts=Timeouts(connect_s=0.1)), same_prompt((0.0, 20.0, 60.0))
    )
    expected, act = {}, twin.requests._attempt

    def watch(lived, attempt, now):
        expected.setdefault(lived.index, attempt.pick.expected_hit_tokens)
        act(lived, attempt, now)

    twin.requests._attempt = watch
    twin.run()
    assert [expected[number] for number in range(3)] == hits


# What is refused


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Slow(3.0, 2.0, 0, 2.0),
        lambda: Slow(1.0, 2.0, 0, 0.0),
        lambda: Throttle(1.0, 2.0, 0, 1.2),
        lambda: Partition(1.0, 2.0, 0, peers=False, peer=1),
        lambda: Timeouts(connect_s=0.0),
    ],
)
def test_a_fault_that_cannot_be_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"give|must|drop"):
        wrong()


@pytest.mark.parametrize("fault", [Crash(1.0, 9), Partition(1.0, 2.0, 0, peer=7), Crash(-1.0, 0)])
def test_a_fault_of_nobody_is_refused(scenario: Scenario, fault) -> None:
    with pytest.raises(
        Impossible, match=r"^(Crash|Partition) at -?1 s: (there is no worker [79]; there are|a run begins at 0 s)"
    ):
        simulate(replace(scenario, faults=(fault,)), LONE)


# Whose first token it is


def test_the_first_token_is_the_prefill_workers_or_the_decode_workers(pair: Scenario) -> None:
    prefill = pair.profile.prefill_ms(PROMPT) / 1e3
    moving = pair.transfer.seconds(PROMPT * pair.model.kv_bytes_per_token())
    theirs = only(replace(pair, first_token=FirstToken.PREFILL))
    assert theirs.ttft_s == pytest.approx(prefill)
    assert theirs.e2e_s == pytest.approx(prefill + moving + decode_s(pair))
    ours = only(pair)
    one = pair.profile.decode_ms(1, PROMPT) / 1e3
    assert ours.ttft_s == pytest.approx(prefill + moving + one)
    assert ours.e2e_s == pytest.approx(prefill + moving + one + decode_s(pair))


def test_an_answer_of_one_token_ends_with_the_prefill_where_that_token_counts(pair: Scenario) -> None:
    twin = Twin(replace(pair, first_token=FirstToken.PREFILL), Trace((TraceRequest(0.0, PROMPT, 1),)))
    (outcome,) = twin.run().outcomes
    assert outcome.ttft_s == outcome.e2e_s == pytest.approx(pair.profile.prefill_ms(PROMPT) / 1e3)
    assert not any(worker.engine.held() for worker in twin.workers)
