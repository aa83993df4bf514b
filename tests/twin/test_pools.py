"""Prefill and decode apart: legs, leases, links and everything that can break between them, at every event."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from penstock.core.engine import violations
from penstock.core.fleet import Role
from penstock.core.models import Parallelism
from penstock.core.reports import Verdict
from penstock.core.traces import Trace, TraceRequest
from penstock.router.decisions.split import SplitLimits
from penstock.simulator import (
    Crash,
    FirstToken,
    Level,
    Link,
    LostEvents,
    Partition,
    PoolSpec,
    Scenario,
    Slow,
    StartUp,
    Throttle,
    Timeouts,
    Topology,
    Twin,
    parse_nodes,
    simulate,
)

ONE = Parallelism(tensor=1)
QUICK = StartUp(0, 0, 1, 1, 1)
FULL = 400  # Examples where there is time.


def pool(name: str, role: Role, replicas: int, degrees: Parallelism = ONE) -> PoolSpec:
    return PoolSpec(name, role, "a100-80g", degrees, replicas)


@pytest.fixture
def apart(scenario: Scenario) -> Scenario:
    """Two workers for prefill, two for decode, on two nodes of two."""
    pools = (pool("prefill", Role.PREFILL, 2), pool("decode", Role.DECODE, 2))
    return replace(scenario, pools=pools, policy="LeastLoaded", start_up=QUICK)


def trace_of(seed: int, requests: int, rate: float = 6.0, *, shared: bool = True) -> Trace:
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1 / rate, requests))
    made = []
    for number in range(requests):
        tokens, output = int(rng.integers(1, 3000)), int(rng.integers(1, 120))
        stem, common = int(rng.integers(0, 4)), int(rng.integers(0, tokens // 64 + 1))
        blocks = [stem * 100_000 + i for i in range(common)]
        blocks += [1_000_000 + number * 1000 + i for i in range(tokens // 64 - common)]
        made.append(TraceRequest(float(at[number]), tokens, output, tuple(blocks) if shared else ()))
    return Trace(tuple(made), 64)


def play_checked(scenario: Scenario, trace: Trace) -> Twin:
    """Run to the end with every invariant looked at after every event."""
    twin = Twin(scenario, trace)
    rate = scenario.transfer.gbytes_per_s * 1e9

    def check() -> bool:
        requests, now = twin.requests, twin.events.now
        inside = Counter(active.id for worker in twin.workers for active in worker.engine.living())
        assert set(inside.values()) <= {1}, "a sequence is at two workers"
        heard = {name for name, stream in requests.streams.items() if stream.worker.number not in twin.reach.lost}
        assert {name for name in inside if requests.streams.get(name) is not None} >= heard
        assert len(twin.outcomes) + twin.left == len(trace.requests)
        arrived = sum(request.arrival_s < now for request in trace.requests)
        assert arrived - len(twin.outcomes) <= len(requests.living) <= len(trace.requests) - len(twin.outcomes)
        assert int(twin.fleet.in_flight.sum()) == twin.fleet.reservations
        for worker in twin.workers:
            assert violations(worker.engine) == []
        waiting = sum(len(worker.engine.scheduler.transferring) for worker in twin.workers)
        assert len(twin.pulls.transfers) == waiting, "a transfer that nobody waits for, or a wait for none"
        if scenario.transfer.shared:
            for port, pace in twin.pulls.transfers.paces().items():
                assert "node" not in port or pace <= rate * (1 + 1e-9)
        return twin.left > 0

    twin._begin()
    twin.events.run(check)
    assert twin.left == 0
    assert twin.fleet.reservations == 0
    assert len(twin.pulls.transfers) == 0
    assert not any(worker.engine.living() for worker in twin.workers if worker.number not in twin.reach.lost)
    for outcome, asked in zip(twin.outcomes, trace.requests, strict=True):
        if outcome.verdict is Verdict.COMPLETED:
            assert (outcome.prompt_tokens, outcome.output_tokens) == (asked.input_tokens, asked.output_tokens)
            assert 0 < outcome.ttft_s <= outcome.e2e_s
    return twin


@pytest.mark.parametrize("first", list(FirstToken))
@pytest.mark.parametrize("policy", ["LeastLoaded", "KVAware", "RoundRobin", "Splitwise"])
def test_tokens_blocks_and_requests_are_conserved_apart(apart: Scenario, policy: str, first: FirstToken) -> None:
    trace = trace_of(3, 60)
    twin = play_checked(replace(apart, policy=policy, first_token=first), trace)
    assert {outcome.verdict for outcome in twin.outcomes} == {Verdict.COMPLETED}
    moved = twin.pulls.moved()
    assert moved.transfers > 30
    assert moved.failed == moved.stale == 0
    assert moved.gbytes == pytest.approx(moved.tokens * apart.model.kv_bytes_per_token() / 1e9)
    for worker in twin.workers:
        assert worker.engine.held() == ()
        stats = worker.engine.stats()
        sources = stats.prompt_tokens_by_source
        assert sources.local_compute + sources.local_cache_hit + sources.external_kv_transfer == stats.prompt_tokens


AT, FOR, WHO = st.floats(0.0, 9.0), st.floats(0.1, 6.0), st.integers(0, 3)


@st.composite
def faults(draw: st.DrawFn) -> Crash | Slow | Throttle | Partition | LostEvents:
    at, who = draw(AT), draw(WHO)
    until = at + draw(FOR)
    match draw(st.integers(0, 5)):
        case 0:
            return Crash(at, who)
        case 1:
            return Slow(at, until, who, draw(st.floats(0.3, 9.0)))
        case 2:
            return Throttle(at, until, who, draw(st.floats(0.3, 1.0)))
        case 3:
            return Partition(at, until, who, router=draw(st.booleans()), peers=draw(st.booleans()))
        case 4:
            return Partition(at, until, who, router=False, peer=draw(WHO))
        case _:
            return LostEvents(at, until, who, replayed=draw(st.booleans()))


@settings(
    max_examples=FULL if os.environ.get("PENSTOCK_FULL") else 8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    faults=st.lists(faults(), max_size=5),
    seed=st.integers(0, 10_000),
    first=st.sampled_from(list(FirstToken)),
    policy=st.sampled_from(["LeastLoaded", "KVAware", "Splitwise"]),
    rate=st.sampled_from([0.05, 1.0, 50.0]),
    lease=st.sampled_from([0.3, 2.0, 30.0]),
)
# Sequences that the router gave up are ended while they pull.
@example(
    faults=[
        Slow(0.0, 2.300939111551583, 0, 0.3),
        Partition(5.551060061440413, 9.323522330032597, 0, router=False),
        Partition(0.0, 1.1, 1, router=False, peers=True),
        Partition(4.083398310924724, 5.501712864797747, 3, router=True, peers=True),
        Partition(6.09472750303744, 8.574681201225191, 2, router=True),
    ],
    seed=221,
    first=FirstToken.PREFILL,
    policy="LeastLoaded",
    rate=0.05,
    lease=30.0,
)
def test_whatever_breaks_every_request_ends_once(
    apart: Scenario, faults: list, seed: int, first: FirstToken, policy: str, rate: float, lease: float
) -> None:
    broken = replace(
        apart,
        policy=policy,
        seed=seed,
        first_token=first,
        faults=tuple(faults),
        transfer=Link(gbytes_per_s=rate),
        split=SplitLimits(lease=lease),
        timeouts=Timeouts(connect_s=0.5, response_s=3.0, silence_s=1.0, transfer_s=0.7),
        kv_capacity=10_000,
    )
    trace = trace_of(seed, 40)
    twin = play_checked(broken, trace)
    again = Twin(broken, trace, iter(random.Random(seed).sample(range(10_000_000), 200_000))).run()
    assert again.outcomes == twin.outcomes


@pytest.mark.parametrize("first", list(FirstToken))
def test_leaping_is_walking_apart_and_with_faults_too(apart: Scenario, first: FirstToken) -> None:
    faults = (Crash(4.0, 2), Slow(2.0, 6.0, 3, 1.7), Throttle(1.0, 5.0, 0, 0.7), Partition(6.0, 7.0, 1))
    leaping = replace(apart, faults=faults, first_token=first, policy="KVAware", kv_capacity=12_000)
    for seed in range(3):
        trace = trace_of(seed, 60)
        leapt, walked = simulate(leaping, trace), simulate(replace(leaping, walk=True), trace)
        assert leapt.events < 0.7 * walked.events
        assert (leapt.steps, leapt.kv_moved.tokens) == (walked.steps, walked.kv_moved.tokens)
        for a, b in zip(leapt.outcomes, walked.outcomes, strict=True):
            assert (a.verdict, a.output_tokens, a.cached_tokens) == (b.verdict, b.output_tokens, b.cached_tokens)
            assert a.ttft_s == pytest.approx(b.ttft_s, rel=1e-9)
            assert a.e2e_s == pytest.approx(b.e2e_s, rel=1e-9)
        assert leapt.resources.total.joules == pytest.approx(walked.resources.total.joules, rel=1e-9)


def test_picks_stay_inside_a_transfer_domain(scenario: Scenario) -> None:
    """Two racks with a pair each: no KV crosses the racks' uplinks, which here are slow."""
    pools = tuple(pool(f"{role.name}-{rack}", role, 1) for rack in range(2) for role in (Role.PREFILL, Role.DECODE))
    nodes = parse_nodes("a100-80g=4x1")
    tree = Topology(nodes_per_rack=2, rack_gbytes_per_s=0.1, domain=Level.RACK)
    kept = replace(scenario, groups=nodes, pools=pools, topology=tree, policy="LeastLoaded")
    trace = trace_of(1, 60)
    inside = simulate(kept, trace)
    assert inside.kv_moved.transfers > 30
    free = simulate(replace(kept, topology=Topology(nodes_per_rack=2, domain=Level.RACK)), trace)
    assert inside.outcomes == free.outcomes
    crossing = simulate(replace(kept, topology=replace(tree, domain=Level.CLUSTER)), trace)
    assert sum(one.ttft_s for one in crossing.outcomes) > 2 * sum(one.ttft_s for one in inside.outcomes)


def test_a_pool_may_have_limits_and_a_pace_of_its_own(apart: Scenario) -> None:
    first, second = apart.pools
    own = replace(first, max_num_batched_tokens=512, max_num_seqs=7, profile=apart.profile.scaled(prefill=2.0))
    twin = Twin(replace(apart, pools=(own, second)), trace_of(0, 5))
    assert [spec.config.max_num_batched_tokens for spec in twin.specs] == [512, 512, 8192, 8192]
    assert [spec.config.max_num_seqs for spec in twin.specs] == [7, 7, 256, 256]
    assert twin.specs[0].profile.prefill[1] == 2 * twin.specs[2].profile.prefill[1]
    assert twin.run().kv_moved.transfers > 0
