"""Letting decode steps pass at once is the same as walking them: state, outcome, blocks and (but for rounding) time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.core.engine import (
    BatchScheduler,
    BlockRemoved,
    Engine,
    EngineConfig,
    Preemption,
    SchedulingPolicy,
    Sequence,
    Span,
    violations,
)
from penstock.core.models import LatencyProfile, ProfileSource

BLOCK = 4
LONGEST = 96

profiles = st.builds(
    LatencyProfile,
    prefill=st.tuples(st.floats(0.1, 5), st.floats(0, 0.5), st.floats(0, 1e-3)),
    decode=st.tuples(st.floats(0.1, 20), st.floats(0, 1), st.sampled_from([0.0, 1e-5, 1e-3, 0.5])),
    source=st.just(ProfileSource.BENCHMARK),
    provenance=st.just("made up"),
    experts=st.sampled_from([(0.0, 0.0), (8.0, 0.25)]),
)
configs = st.builds(
    EngineConfig,
    num_blocks=st.integers(LONGEST // BLOCK, 48),
    block_size=st.just(BLOCK),
    max_num_batched_tokens=st.sampled_from([2, 16, 64, 256]),
    max_num_seqs=st.sampled_from([1, 3, 64]),
    max_model_len=st.just(LONGEST),
    enable_prefix_caching=st.booleans(),
    policy=st.sampled_from(SchedulingPolicy),
)


@st.composite
def every_config(draw: Any) -> EngineConfig:
    scheduler = draw(st.sampled_from(BatchScheduler))
    return replace(
        draw(configs),
        scheduler=scheduler,
        enable_chunked_prefill=scheduler is BatchScheduler.STALL_FREE or draw(st.booleans()),
        max_stalls=draw(st.sampled_from([None, 0, 2])) if scheduler is BatchScheduler.PREFILL_FIRST else None,
        mixed_pass_factor=draw(st.sampled_from([None, 1.1])),
        preemption=draw(st.sampled_from(Preemption)),
        num_host_blocks=draw(st.sampled_from([1, 8, 60])),
        swap_ms_per_block=draw(st.sampled_from([0.0, 0.5])),
    )


scripts = st.lists(
    st.tuples(
        st.integers(1, LONGEST - 1),  # prompt
        st.integers(1, 60),  # output
        st.integers(0, 2),  # stem of the prompt
        st.integers(0, 2),  # priority
        st.sampled_from([0.0, 0.0, 0.01, 0.2, 1.0]),  # seconds after the one before
        st.sampled_from([None, 3, 20]),  # stops by itself
    ),
    min_size=1,
    max_size=12,
)


def arrivals(script: Any) -> list[tuple[float, Sequence]]:
    at, made = 0.0, []
    for number, (prompt, output, stem, priority, gap, stop) in enumerate(script):
        at += gap
        hashes = tuple(stem * 1000 + index for index in range(prompt // BLOCK))
        made.append((at, Sequence(f"s{number}", prompt, output, stop, hashes, priority, arrival=at)))
    return made


def walk(engine: Engine, coming: list[tuple[float, Sequence]], *, leap: bool) -> tuple[list[Any], list[int]]:
    """Drive an engine to its end, by single steps or by spans cut where somebody arrives."""
    now, queue, ended, removed = 0.0, list(coming), [], []
    while queue or not engine.idle:
        while queue and queue[0][0] <= now:
            engine.add(queue.pop(0)[1], now)
        span = engine.span() if leap else None
        if span is not None:
            steps = span.steps if not queue else span.begun((queue[0][0] - now) * 1e3)
            now += span.milliseconds(steps) / 1e3
            while queue and queue[0][0] < now:  # They come while the last of these steps runs.
                engine.add(queue.pop(0)[1], now)
            outputs = engine.advance(span, steps, now)
        else:
            step = engine.schedule(now)
            if step is None:
                now = queue[0][0]
                continue
            now += step.duration_ms / 1e3
            outputs = engine.complete(step, now)
        assert violations(engine) == []
        ended += outputs.finished
        removed += [event.hash for event in outputs.events if isinstance(event, BlockRemoved)]
    return ended, removed


@settings(max_examples=200, deadline=None)
@given(config=every_config(), profile=profiles, script=scripts)
def test_leaping_is_walking(config: EngineConfig, profile: LatencyProfile, script: Any) -> None:
    one, other = Engine(config, profile), Engine(config, profile)
    walked, lost = walk(one, arrivals(script), leap=False)
    leapt, lost_too = walk(other, arrivals(script), leap=True)
    assert other.stats() == one.stats()
    assert lost_too == lost
    assert [end.id for end in leapt] == [end.id for end in walked]
    for a, b in zip(walked, leapt, strict=True):
        assert (b.reason, b.output_tokens, b.cached_tokens, b.preemptions) == (
            a.reason, a.output_tokens, a.cached_tokens, a.preemptions,
        )  # fmt: skip
        for name in ("arrival", "scheduled", "first_token", "finished"):
            assert getattr(b.timing, name) == pytest.approx(getattr(a.timing, name), rel=1e-9, abs=1e-9)


@given(profile=profiles, steps=st.integers(1, 400), batch=st.integers(1, 300), context=st.integers(1, 200_000))
def test_a_span_takes_as_long_as_its_steps(profile: LatencyProfile, steps: int, batch: int, context: int) -> None:
    span = Span.of(profile, steps, batch, context)
    walked = sum(profile.decode_ms(batch, context + batch * step) for step in range(steps))
    assert span.milliseconds(steps) == pytest.approx(walked, rel=1e-9)
    half = steps // 2
    rest = span.after(half)
    assert (rest.steps, rest.context) == (steps - half, context + half * batch)
    whole = span.milliseconds(half) + rest.milliseconds(rest.steps)
    assert whole == pytest.approx(walked, rel=1e-9)


@given(profile=profiles, steps=st.integers(1, 400), batch=st.integers(1, 300), share=st.floats(-0.1, 1.2))
def test_the_step_that_is_running_is_found(profile: LatencyProfile, steps: int, batch: int, share: float) -> None:
    span = Span.of(profile, steps, batch, batch * 100)
    elapsed = share * span.milliseconds(steps)
    begun = span.begun(elapsed)
    assert 1 <= begun <= steps
    assert begun == 1 or span.milliseconds(begun - 1) < elapsed
    assert begun == steps or elapsed <= span.milliseconds(begun)


def test_one_leap_does_for_a_long_answer_and_stops_before_blocks_run_out() -> None:
    profile = LatencyProfile((1, 0.1, 0), (10, 0.1, 1e-3), ProfileSource.BENCHMARK, "made up")
    engine = Engine(EngineConfig(num_blocks=30, block_size=4, max_model_len=100), profile)
    for name in ("a", "b"):
        engine.add(Sequence(name, prompt_tokens=8, max_tokens=80), 0.0)
    engine.complete(engine.schedule(0.0), 0.01)
    span = engine.span()
    # 30 blocks, 2 each for the prompts: 13 more each, so 60 tokens each, of which 8 are prompt.
    assert (span.steps, span.sequences, span.context) == (52, 2, 18)
    engine.advance(span, span.steps, 1.0)
    assert engine.scheduler.pool.free == 0
    assert engine.span() is None
    assert engine.schedule(1.0).preempted == ("b",)


def test_a_span_is_refused_when_it_is_not_the_engines_future() -> None:
    profile = LatencyProfile((1, 0.1, 0), (10, 0.1, 1e-3), ProfileSource.BENCHMARK, "made up")
    engine = Engine(EngineConfig(num_blocks=30, block_size=4, max_model_len=100), profile)
    assert engine.span() is None
    engine.add(Sequence("a", 8, 5), 0.0)
    assert engine.span() is None, "its prompt comes first"
    step = engine.schedule(0.0)
    assert engine.span() is None, "a step is out"
    engine.complete(step, 0.1)
    span = engine.span()
    with pytest.raises(ValueError, match="5 steps of a span of 4"):
        engine.advance(span, 5, 1.0)
    engine.abort("a", 0.2)
    with pytest.raises(RuntimeError, match="moved on"):
        engine.advance(span, 1, 1.0)
