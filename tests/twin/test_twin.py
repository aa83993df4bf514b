"""A run of the twin: the same seed gives the same bytes, nothing is lost on the way, and leaping is walking."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from penstock.core.engine import violations
from penstock.core.models import Phase, watts
from penstock.core.reports import Report, Verdict
from penstock.core.traces import Trace, TraceRequest
from penstock.router.decisions.policies import UnknownPolicy
from penstock.router.decisions.retries import RetryLimits
from penstock.simulator import Crash, Scenario, StartUp, Twin, make_report, simulate
from penstock.simulator.events import ARRIVAL, SAMPLE, WAKE, EventQueue


def random_trace(seed: int, requests: int = 120, rate: float = 8.0, *, shared: bool = True) -> Trace:
    """Poisson arrivals of prompts that share stems of whole 64-token blocks."""
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1 / rate, requests))
    made = []
    for number in range(requests):
        tokens, output = int(rng.integers(1, 3000)), int(rng.integers(1, 200))
        stem = int(rng.integers(0, 6))
        common = int(rng.integers(0, tokens // 64 + 1))
        blocks = [stem * 100_000 + i for i in range(common)]
        blocks += [1_000_000 + number * 1000 + i for i in range(tokens // 64 - common)]
        made.append(TraceRequest(float(at[number]), tokens, output, tuple(blocks) if shared else ()))
    return Trace(tuple(made), 64)


def bytes_of(scenario: Scenario, trace: Trace, numbers: Iterator[int] | None = None) -> str:
    result = Twin(scenario, trace, numbers).run()
    report = make_report(result, ttft_s=1.0, tpot_s=0.05)
    return json.dumps([report.to_dict(), [str(outcome) for outcome in result.outcomes]])


def distinct(seed: int) -> Iterator[int]:
    """Numbers in no order, each once."""
    return iter(random.Random(seed).sample(range(10_000_000), 200_000))


@pytest.mark.parametrize("policy", ["LeastLoaded", "RoundRobin", "KVAware", "Random"])
def test_the_same_seed_gives_the_same_bytes_in_any_order_of_the_heap(scenario: Scenario, policy: str) -> None:
    crashes = (Crash(2.0, 1), Crash(2.0, 2), Crash(9.0, 1))
    scenario = replace(scenario, policy=policy, crashes=crashes, start_up=StartUp(0, 0, 1, 1, 1), seed=3)
    trace = random_trace(5)
    # Several arrivals in one instant, where order could matter most.
    trace = Trace(tuple(replace(r, arrival_s=round(r.arrival_s)) for r in trace.requests), trace.block_tokens)
    first = bytes_of(scenario, trace)
    assert bytes_of(scenario, trace) == first
    for seed in range(3):
        assert bytes_of(scenario, trace, distinct(seed)) == first


def test_another_seed_gives_another_run_where_workers_are_equal(scenario: Scenario) -> None:
    by_lot = replace(scenario, policy="Random")
    trace = random_trace(5)
    assert bytes_of(replace(by_lot, seed=1), trace) != bytes_of(replace(by_lot, seed=2), trace)


@pytest.mark.parametrize("policy", ["LeastLoaded", "KVAware"])
@pytest.mark.parametrize("capacity", [8192, 20_000])
def test_leaping_from_event_to_event_is_walking_step_by_step(scenario: Scenario, capacity: int, policy: str) -> None:
    scenario = replace(scenario, kv_capacity=capacity, policy=policy)
    scenario = replace(scenario, crashes=(Crash(4.0, 0),), start_up=StartUp(0, 0, 1, 1, 1))
    for seed in range(3):
        trace = random_trace(seed)
        leapt, walked = simulate(scenario, trace), simulate(replace(scenario, walk=True), trace)
        assert leapt.events < walked.events / 2
        assert leapt.steps == walked.steps
        for a, b in zip(leapt.outcomes, walked.outcomes, strict=True):
            assert (a.verdict, a.output_tokens, a.cached_tokens) == (b.verdict, b.output_tokens, b.cached_tokens)
            assert (a.ttft_s or 0.0) == pytest.approx(b.ttft_s or 0.0, rel=1e-9)
            assert a.e2e_s == pytest.approx(b.e2e_s, rel=1e-9)
        assert leapt.resources.total.joules == pytest.approx(walked.resources.total.joules, rel=1e-9)


def test_requests_blocks_and_tokens_are_conserved_at_every_event(scenario: Scenario) -> None:
    scenario = replace(scenario, kv_capacity=8192, crashes=(Crash(3.0, 2),), start_up=StartUp(0, 0, 1, 1, 1))
    trace = random_trace(11, requests=60)
    twin = Twin(scenario, trace)
    seen = 0

    def check() -> bool:
        nonlocal seen
        seen += 1
        settled = len(twin.outcomes)
        arrived = sum(request.arrival_s < twin.events.now for request in trace.requests)
        assert settled + twin.left == len(trace.requests)
        assert arrived - settled <= len(twin.requests.living) <= len(trace.requests) - settled
        inside = Counter(active.id for worker in twin.workers for active in worker.engine.living())
        assert set(inside.values()) <= {1}, "a sequence is at two workers"
        assert set(inside) == set(twin.requests.streams)
        assert twin.fleet.reservations == sum(inside.values())
        assert int(twin.fleet.in_flight.sum()) == twin.fleet.reservations
        for worker in twin.workers:
            assert violations(worker.engine) == []
        return twin.left > 0

    twin._begin()
    twin.events.run(check)
    assert seen > 200
    assert twin.fleet.reservations == 0
    for outcome, asked in zip(twin.outcomes, trace.requests, strict=True):
        assert outcome is not None
        assert outcome.verdict is Verdict.COMPLETED
        assert (outcome.prompt_tokens, outcome.output_tokens) == (asked.input_tokens, asked.output_tokens)
    for worker in twin.workers:
        stats = worker.engine.stats()
        sources = stats.prompt_tokens_by_source
        assert sources.local_compute + sources.local_cache_hit == stats.prompt_tokens


def test_a_lone_request_takes_what_the_profile_says(scenario: Scenario) -> None:
    profile = scenario.profile
    trace = Trace((TraceRequest(0.0, 1000, 50),))
    (outcome,) = simulate(scenario, trace).outcomes
    prefill = profile.prefill_ms(1000)
    decode = sum(profile.decode_ms(1, 1000 + token) for token in range(1, 50))
    assert outcome.ttft_s == pytest.approx(prefill / 1e3)
    assert outcome.e2e_s == pytest.approx((prefill + decode) / 1e3)
    assert outcome.tpot_s == pytest.approx(decode / 49 / 1e3)


def test_energy_is_power_times_time_and_phases_add_up(scenario: Scenario) -> None:
    trace = Trace(tuple(TraceRequest(5.0 * number, 3000, 40) for number in range(4)))
    result = simulate(scenario, trace)
    profile = scenario.profile
    use, accelerator = result.resources.total, scenario.groups[0].accelerator
    alive = use.workers * result.end_s
    assert use.prefill_seconds == pytest.approx(4 * profile.prefill_ms(3000) / 1e3)
    waiting = alive - use.prefill_seconds - use.decode_seconds
    assert use.busy_share == pytest.approx((use.prefill_seconds + use.decode_seconds) / alive)
    assert use.joules == pytest.approx(
        use.prefill_seconds * watts(accelerator, Phase.PREFILL, tokens=3000)
        + use.decode_seconds * watts(accelerator, Phase.DECODE)
        + waiting * watts(accelerator, Phase.IDLE)
    )
    assert use.gpu_hours == pytest.approx(4 * result.end_s / 3600)
    assert use.cost_usd == pytest.approx(use.gpu_hours * accelerator.price_per_hour)


def test_a_crash_continues_what_had_begun_and_retries_what_had_not(scenario: Scenario) -> None:
    trace = Trace(tuple(TraceRequest(0.0 if number < 4 else 3.0, 1000, 200) for number in range(8)))
    # At 3 s every worker gets a second prompt; worker 1 dies before it has answered that one.
    quick = replace(scenario, crashes=(Crash(3.05, 1),), start_up=StartUp(0, 0, 1, 1, 1))
    result, calm = simulate(quick, trace), simulate(scenario, trace)
    assert result.continued == 1
    pairs = list(zip(result.outcomes, calm.outcomes, strict=True))
    assert all(hit.verdict is Verdict.COMPLETED and hit.output_tokens == 200 for hit, _ in pairs)
    assert sum(hit.ttft_s > untouched.ttft_s for hit, untouched in pairs[4:]) >= 1
    # The one that had begun keeps its first token's time and loses what a prefill of prompt and answer takes.
    hit, untouched = max(pairs[:4], key=lambda pair: pair[0].e2e_s - pair[1].e2e_s)
    assert hit.ttft_s == untouched.ttft_s
    assert hit.e2e_s > untouched.e2e_s + scenario.profile.prefill_ms(1000) / 1e3


def test_an_answer_that_may_not_be_continued_is_cut(scenario: Scenario) -> None:
    trace = Trace(tuple(TraceRequest(0.0, 1000, 200) for _ in range(4)))
    once = replace(scenario, crashes=(Crash(2.0, 1),), retries=RetryLimits(continuations=0))
    lost = [outcome for outcome in simulate(once, trace).outcomes if outcome.verdict is not Verdict.COMPLETED]
    assert [(outcome.verdict, outcome.error) for outcome in lost] == [(Verdict.FAILED, "Reset")]


def test_a_cold_cluster_turns_away_until_it_has_started(scenario: Scenario) -> None:
    start_up = StartUp(schedule=1, image=2, weights=3, engine=4, warm_up=5)
    cold = replace(scenario, cold=True, start_up=start_up)
    trace = Trace(tuple(TraceRequest(at, 100, 5) for at in (0.0, 14.9, 15.1)))
    outcomes = simulate(cold, trace).outcomes
    assert [outcome.verdict for outcome in outcomes] == [Verdict.REJECTED, Verdict.REJECTED, Verdict.COMPLETED]
    assert start_up.seconds == 15
    assert start_up.restart_seconds == 12


def test_what_can_never_fit_is_an_error_of_the_client_and_frees_its_place(scenario: Scenario) -> None:
    trace = Trace((TraceRequest(0.0, 9000, 5), TraceRequest(0.1, 100, 5)))
    twin = Twin(scenario, trace)
    too_long, fine = twin.run().outcomes
    assert (too_long.verdict, too_long.error) == (Verdict.FAILED, "Http400")
    assert fine.verdict is Verdict.COMPLETED
    assert twin.fleet.reservations == 0


def test_least_loaded_beats_round_robin_when_lengths_differ(scenario: Scenario) -> None:
    # Every fourth request is long: taking turns sends all of those to one worker.
    asked = tuple(TraceRequest(0.05 * n, 6000 if n % 4 == 0 else 50, 150 if n % 4 == 0 else 5) for n in range(80))
    mean = {}
    for policy in ("LeastLoaded", "RoundRobin"):
        result = simulate(replace(scenario, policy=policy, scrape_interval_s=0.0), Trace(asked))
        mean[policy] = make_report(result, ttft_s=1, tpot_s=0.1).ttft_seconds.mean
    assert mean["LeastLoaded"] < 0.7 * mean["RoundRobin"]


def test_what_the_index_says_is_what_the_engines_find(scenario: Scenario) -> None:
    # One prompt after the other: no block is evicted or stored between a pick and its prefill.
    asked = random_trace(7, requests=60).requests
    trace = Trace(tuple(replace(one, arrival_s=30.0 * number) for number, one in enumerate(asked)), 64)
    twin = Twin(replace(scenario, policy="KVAware"), trace)
    picks, act = {}, twin.requests._attempt

    def watch(lived, attempt, now):
        picks[lived.index] = attempt.pick.expected_hit_tokens
        act(lived, attempt, now)

    twin.requests._attempt = watch
    outcomes = twin.run().outcomes
    assert {outcome.index: outcome.cached_tokens for outcome in outcomes if asked[outcome.index].prefix_blocks} == {
        index: hit for index, hit in picks.items() if asked[index].prefix_blocks
    }
    assert sum(outcome.cached_tokens for outcome in outcomes) > 0


def test_knowing_the_caches_finds_more_of_them(scenario: Scenario) -> None:
    hits = {}
    for policy in ("KVAware", "RoundRobin"):
        result = simulate(replace(scenario, policy=policy, kv_capacity=60_000), random_trace(3, requests=300))
        hits[policy] = make_report(result, ttft_s=1, tpot_s=0.1).prefix_hit_ratio
    assert hits["KVAware"] > 1.1 * hits["RoundRobin"]


def test_the_report_is_that_of_the_replay(scenario: Scenario) -> None:
    report = make_report(simulate(scenario, random_trace(1)), ttft_s=1.0, tpot_s=0.05, run={"trace": "t"})
    again = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report
    assert report.requests.completed == 120
    assert report.run["resources"]["total"]["accelerators"] == 4


def test_an_unknown_policy_is_refused(scenario: Scenario) -> None:
    with pytest.raises(UnknownPolicy, match="NoSuchPolicy"):
        simulate(replace(scenario, policy="NoSuchPolicy"), random_trace(1))


def test_progress_is_told_and_reaches_the_end(scenario: Scenario) -> None:
    told: list[tuple[int, int]] = []
    simulate(replace(scenario, walk=True), random_trace(1), lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert len(told) > 2
    assert told[-1] == (120, 120)


def test_events_of_one_instant_go_by_priority_then_key() -> None:
    events, order = EventQueue(iter([5, 4, 3, 2, 1])), []
    for priority, key in ((WAKE, 0), (ARRIVAL, 2), (ARRIVAL, 1), (SAMPLE, 9)):
        events.at(1.0, priority, key, lambda now, argument: order.append(argument), priority * 10 + key)
    events.run(lambda: True)
    assert order == [SAMPLE * 10 + 9, ARRIVAL * 10 + 1, ARRIVAL * 10 + 2, WAKE * 10]
    with pytest.raises(ValueError, match="before the present"):
        events.at(0.5, WAKE, 0, lambda now, argument: None)
    with pytest.raises(ValueError, match="before the present"):
        events.at(float("nan"), WAKE, 0, lambda now, argument: None)
