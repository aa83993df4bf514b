"""Figures that must come out exactly, each named after its source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from penstock.core.models import Parallelism, find_model
from penstock.core.traces import Trace, TraceRequest, parse_trace, scale_rate, spread_slots
from penstock.router.decisions.kv_index import Numbers
from penstock.simulator import ENDLESS, Scenario, make_report, parse_nodes, simulate
from penstock.simulator.blocks import block_hashes
from penstock.simulator.workloads import arrivals, sessions

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def blocks_found(trace: Trace) -> float:
    """Share of prompt tokens in whole blocks that an endless cache holds when each request comes after the other."""
    known: set[int] = set()
    found = total = 0
    for request in trace.requests:
        whole = request.prefix_blocks[: request.input_tokens // trace.block_tokens]
        usable = whole[: (request.input_tokens - 1) // trace.block_tokens]
        hit = next((at for at, block in enumerate(usable) if block not in known), len(usable))
        found += hit * trace.block_tokens
        total += request.input_tokens
        known.update(whole)
    return found / total


def one_worker(**changes: object) -> Scenario:
    model = find_model("llama-3.1-70b")
    assert model is not None
    scenario = Scenario(
        model, parse_nodes("h100-80g=1x8"), parallelism=Parallelism(tensor=8), kv_capacity=ENDLESS,
        max_in_flight=1_000_000, scrape_interval_s=0.0,
    )  # fmt: skip
    return replace(scenario, **changes)


def hit_ratio(scenario: Scenario, trace: Trace) -> float:
    report = make_report(simulate(scenario, trace), ttft_s=1, tpot_s=1)
    assert report.requests.completed == len(trace.requests)
    assert report.prefix_hit_ratio is not None
    return report.prefix_hit_ratio


@pytest.mark.parametrize("seed", range(5))
def test_an_endless_cache_finds_every_block_that_came_before(seed: int) -> None:
    trace = sessions(arrivals(0.05, 2000.0, seed=seed), seed=seed)
    assert hit_ratio(one_worker(), trace) == pytest.approx(blocks_found(trace), abs=0.002)
    assert blocks_found(trace) > 0.2


def test_mooncake_conversation_infinite_cache_hit() -> None:
    """FAST 2025, Mooncake, conversation trace: 37.4 % of prompt tokens (within 0.1) with a cache that never fills."""
    path = DATA / "mooncake_conversation_trace.jsonl"
    if not path.exists():
        pytest.skip("the Mooncake conversation trace is not beside this checkout (../shared/data)")
    with path.open() as lines:
        trace = parse_trace(lines).trace
    # Slowly, so that nearly every request finds the one before done.
    assert hit_ratio(one_worker(), scale_rate(spread_slots(trace, seed=0), 0.05)) == pytest.approx(0.374, abs=0.001)


def test_finer_blocks_find_no_less() -> None:
    trace = sessions(arrivals(0.05, 1000.0, seed=1), seed=1)
    coarse, fine = (hit_ratio(one_worker(block_size=size), trace) for size in (64, 16))
    assert fine >= coarse


def test_hashes_are_equal_exactly_where_prefixes_are() -> None:
    one = TraceRequest(0.0, 200, 1, (7, 8, 9, 10))
    other = TraceRequest(0.0, 130, 1, (7, 8, 11))
    assert block_hashes(one, 64, 64) == (7, 8, 9)
    fine = block_hashes(one, 64, 16), block_hashes(other, 64, 16)
    assert [len(hashes) for hashes in fine] == [12, 8]
    assert fine[0][:8] == fine[1][:8]
    assert len(set(fine[0])) == 12
    carried = Numbers(fine[0])
    assert [int.from_bytes(name, "big") for name in carried] == list(fine[0])
    assert list(carried[1:3]) == list(carried)[1:3]
