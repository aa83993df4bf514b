"""One engine alone: every interval between tokens is on record, by leaps as by single steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.core.engine import BatchScheduler, Engine, EngineConfig, Preemption, Sequence
from penstock.core.models import LatencyProfile, ProfileSource
from penstock.core.traces import TraceRequest
from penstock.simulator.alone import Felt, play_alone

PROFILE = LatencyProfile((10, 0.1, 1e-5), (20, 0.2, 1e-3), ProfileSource.BENCHMARK, "made up")
CONFIG = EngineConfig(
    num_blocks=40, block_size=4, max_num_batched_tokens=96, max_num_seqs=8, max_model_len=96,
    enable_prefix_caching=False,
)  # fmt: skip

scripts = st.lists(
    st.tuples(st.integers(1, 95), st.integers(1, 60), st.sampled_from([0.0, 0.03, 0.2, 1.0])), min_size=1, max_size=10
)


def walked(config: EngineConfig, requests: list[TraceRequest]) -> tuple[list[float], float]:
    """Every interval in ms, by single steps alone; and the end."""
    engine, now, coming, found = Engine(config, PROFILE), 0.0, list(enumerate(requests)), []
    while coming or not engine.idle:
        while coming and coming[0][1].arrival_s <= now:
            number, one = coming.pop(0)
            engine.add(Sequence(str(number), one.input_tokens, one.output_tokens, arrival=one.arrival_s), now)
        step = engine.schedule(now)
        if step is None:
            now = coming[0][1].arrival_s
            continue
        now += step.duration_ms / 1e3
        found += [token.interval * 1e3 for token in engine.complete(step, now).tokens if token.number]
    return found, now


@settings(max_examples=60, deadline=None)
@given(
    scheduler=st.sampled_from(BatchScheduler), preemption=st.sampled_from(Preemption), budget=st.sampled_from([16, 96]),
    script=scripts,
)  # fmt: skip
def test_intervals_are_those_of_single_steps(
    scheduler: BatchScheduler, preemption: Preemption, budget: int, script: list[tuple[int, int, float]]
) -> None:
    config = replace(
        CONFIG, scheduler=scheduler, preemption=preemption, num_host_blocks=10, swap_ms_per_block=0.5,
        max_num_batched_tokens=budget,
    )  # fmt: skip
    at = np.cumsum([gap for *_, gap in script])
    requests = [TraceRequest(float(t), prompt, out) for t, (prompt, out, _) in zip(at, script, strict=True)]
    felt, (found, end) = play_alone(config, PROFILE, requests), walked(config, requests)
    assert felt.end_s == pytest.approx(end)
    assert felt.intervals == len(found)
    assert felt.finished_share == 1.0
    if found:
        ordered = sorted(found)
        for percent in (50, 99):
            least = ordered[int(np.ceil(percent / 100 * len(found) - 1e-9)) - 1]
            assert felt.between_tokens_ms(percent) == pytest.approx(least, rel=1e-6)


def test_what_is_too_long_is_refused_and_counts_as_not_finished() -> None:
    felt = play_alone(CONFIG, PROFILE, [TraceRequest(0.0, 96, 5), TraceRequest(0.5, 8, 5)])
    assert (felt.refused, len(felt.finished), felt.finished_share) == (1, 1, 0.5)
    assert felt.delay_s(50) == 0.0


def test_a_percentile_counts_each_interval_as_often_as_it_was_felt() -> None:
    felt = Felt(asked=1)
    assert np.isnan(felt.between_tokens_ms(99))
    felt.count(np.array([10.0]), 98)
    felt.count(np.array([500.0, 20.0]))
    assert [felt.between_tokens_ms(percent) for percent in (50, 98, 99, 100)] == [10.0, 10.0, 20.0, 500.0]
