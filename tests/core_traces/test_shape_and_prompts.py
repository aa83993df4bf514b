"""Shaping keeps what a trace says; prompts have the exact length and share exactly what the trace shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.traces import (
    PromptMaker,
    Trace,
    TraceRequest,
    drop_over_context,
    limit_duration,
    needs_spreading,
    scale_rate,
    spread_slots,
)


def trace_of(*arrivals: float) -> Trace:
    return Trace(tuple(TraceRequest(arrival, 10 + i, 1 + i) for i, arrival in enumerate(arrivals)))


arrivals = st.lists(st.integers(0, 20).map(lambda slot: slot * 3.0), min_size=1, max_size=60).map(sorted)


@given(arrivals, st.integers(0, 2**32))
def test_spreading_moves_each_arrival_only_within_its_slot(times: list[float], seed: int) -> None:
    before = trace_of(*times)
    after = spread_slots(before, seed)
    by_tokens = {r.input_tokens: r.arrival_s for r in after.requests}
    for request in before.requests:
        assert request.arrival_s <= by_tokens[request.input_tokens] < request.arrival_s + 3.0
    assert [r.arrival_s for r in after.requests] == sorted(r.arrival_s for r in after.requests)
    assert spread_slots(before, seed) == after


def test_spreading_stops_at_the_next_stamp() -> None:
    after = spread_slots(trace_of(*[0.0] * 200, 0.5), seed=1)
    assert sum(r.arrival_s < 0.5 for r in after.requests) == 200


def test_only_a_grid_needs_spreading() -> None:
    assert needs_spreading(trace_of(0.0, 0.0, 0.0, 3.0, 3.0, 3.0))
    assert not needs_spreading(trace_of(0.0, 0.1, 0.1, 0.4))


@given(arrivals, st.floats(0.01, 100))
def test_scaling_the_rate_divides_every_arrival(times: list[float], factor: float) -> None:
    scaled = scale_rate(trace_of(*times), factor)
    assert [r.arrival_s for r in scaled.requests] == pytest.approx([t / factor for t in times])


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf")])
def test_an_impossible_rate_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="not possible"):
        scale_rate(trace_of(0.0), factor)


def test_limit_keeps_what_arrives_before_it() -> None:
    assert len(limit_duration(trace_of(0.0, 1.0, 2.0), 2.0).requests) == 2


def test_a_request_that_just_fits_the_context_stays() -> None:
    trace = Trace((TraceRequest(0, 60, 40), TraceRequest(1, 61, 40)))
    kept, dropped = drop_over_context(trace, 100)
    assert (kept.requests, dropped) == (trace.requests[:1], 1)


@given(st.integers(1, 100), st.integers(1, 16), st.lists(st.integers(0, 5), max_size=8), st.integers(0, 10))
def test_a_prompt_has_exactly_the_tokens_asked_for(length: int, block: int, blocks: list[int], seed: int) -> None:
    request = TraceRequest(0.0, length, 1, tuple(blocks[: -(-length // block)]))
    ids = PromptMaker(seed, block).token_ids(request, 3)
    assert len(ids) == length
    assert ids.min() >= 266 and ids.max() < 31_000
    assert np.array_equal(ids, PromptMaker(seed, block).token_ids(request, 3))


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if differ.size else n


def test_prompts_share_exactly_the_blocks_that_the_trace_shares() -> None:
    make = PromptMaker(7, 512)
    one = make.token_ids(TraceRequest(0, 1400, 1, (0, 1, 2)), 0)
    two = make.token_ids(TraceRequest(0, 1400, 1, (0, 1, 9)), 1)
    shorter = make.token_ids(TraceRequest(0, 700, 1, (0, 1)), 2)
    # One token of the unequal runs may be equal by chance, hence a range of a few.
    assert 1024 <= common_prefix(one, two) <= 1026
    assert common_prefix(one, shorter) == 700


def test_prompts_of_their_own_share_nothing() -> None:
    make = PromptMaker(7, 512)
    first, second = (make.token_ids(TraceRequest(0, 400, 1), index) for index in (0, 1))
    assert common_prefix(first, second) <= 2
    assert not np.array_equal(first, PromptMaker(8, 512).token_ids(TraceRequest(0, 400, 1), 0))
