"""Workloads have the rate, the burstiness and the sharing that was asked for, and depend on nothing but their seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator.workloads import ArrivalProcess, SessionShape, arrivals, diurnal, like, sessions, spikes


@pytest.mark.parametrize(
    ("process", "cv", "expected"),
    [(ArrivalProcess.POISSON, 9.0, 1.0), (ArrivalProcess.GAMMA, 4.0, 4.0), (ArrivalProcess.UNIFORM, 9.0, 0.0)],
)
def test_gaps_have_the_rate_and_the_burstiness(process: ArrivalProcess, cv: float, expected: float) -> None:
    times = arrivals(20.0, 5000.0, process, cv, seed=1)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(100_000, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(expected, rel=0.05, abs=1e-9)


@given(
    rate=st.floats(0.01, 50), seconds=st.floats(0.1, 200), process=st.sampled_from(ArrivalProcess),
    cv=st.floats(0.2, 6), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_arrivals_are_sorted_within_the_time_and_of_one_seed(
    rate: float, seconds: float, process: ArrivalProcess, cv: float, seed: int
) -> None:
    times = arrivals(rate, seconds, process, cv, seed)
    assert np.array_equal(times, arrivals(rate, seconds, process, cv, seed))
    assert (np.diff(times) >= 0).all()
    assert not len(times) or (times[0] >= 0 and times[-1] < seconds)


def test_a_day_has_its_peak_and_a_spike_its_height() -> None:
    day = arrivals(diurnal(2.0, 0.8, peak_s=50_400.0), 86_400.0, seed=4)
    hours = np.histogram(day, bins=24, range=(0, 86_400))[0]
    assert len(day) == pytest.approx(2.0 * 86_400, rel=0.02)
    assert int(hours.argmax()) in (13, 14)
    assert hours.max() / hours.min() == pytest.approx(1.8 / 0.2, rel=0.2)
    spiked = arrivals(spikes(1.0, 10.0, every_s=100.0, length_s=10.0), 10_000.0, seed=4)
    inside = (spiked % 100.0 >= 90.0).mean()
    assert inside == pytest.approx(100 / 190, abs=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arrivals(0.0, 10.0), "rate is 0.0"),
        (lambda: arrivals(1.0, float("inf")), "seconds is inf"),
        (lambda: arrivals(1.0, 10.0, cv=-1.0), "cv is -1.0"),
        (lambda: arrivals(lambda at: at - 5.0, 10.0), "never below 0"),
        (lambda: diurnal(1.0, 1.5), "swing of 1.5"),
        (lambda: spikes(1.0, 2.0, 5.0, 5.0), "do not fit"),
        (lambda: like(Trace(()), np.array([1.0])), "no lengths"),
        (lambda: SessionShape(turns=0.5), "turns is 0.5"),
    ],
)
def test_nonsense_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_lengths_are_those_of_the_trace_and_stay_in_pairs() -> None:
    trace = Trace(tuple(TraceRequest(0.0, 100 * n, n, (n,)) for n in range(1, 50)))
    made = like(trace, arrivals(10.0, 100.0, seed=2), seed=2)
    assert all(one.input_tokens == 100 * one.output_tokens and not one.prefix_blocks for one in made.requests)
    assert len({one.output_tokens for one in made.requests}) == 49
    assert made == like(trace, arrivals(10.0, 100.0, seed=2), seed=2)
    assert made != like(trace, arrivals(10.0, 100.0, seed=2), seed=3)


def test_a_turn_begins_with_all_of_the_turn_before() -> None:
    shape = SessionShape(turns=5.0, system_prompts=3, system_tokens=128, block_tokens=32)
    trace = sessions(arrivals(1.0, 200.0, seed=6), shape, seed=6)
    assert trace == sessions(arrivals(1.0, 200.0, seed=6), shape, seed=6)
    assert len({one.prefix_blocks[:4] for one in trace.requests}) == 3, "system prompts are shared"
    by_own_block = {}
    later = 0
    for one in trace.requests:
        assert len(one.prefix_blocks) == one.input_tokens // 32
        own = one.prefix_blocks[4:5]
        before = by_own_block.get(own) if own else None
        if before is not None:
            later += 1
            assert one.arrival_s >= before.arrival_s
            assert one.prefix_blocks[: len(before.prefix_blocks)] == before.prefix_blocks
            assert one.input_tokens > before.input_tokens + before.output_tokens
        if own:
            by_own_block[own] = one
    assert later > len(trace.requests) / 2
