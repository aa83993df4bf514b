"""Each scheduler's own way, preemption by swapping, and an engine that slows down."""

from __future__ import annotations

import pytest
from engine_stage import PROFILE, make, prompt, run, step
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.core.engine import BatchScheduler, Engine, Preemption, Step, violations
from penstock.core.models import throttled

PREFILL_FIRST = {"scheduler": BatchScheduler.PREFILL_FIRST, "enable_chunked_prefill": False}
DECODE_FIRST = {"scheduler": BatchScheduler.DECODE_FIRST, "enable_chunked_prefill": False}
SWAP = {"preemption": Preemption.SWAP, "num_host_blocks": 20, "swap_ms_per_block": 2.0}


def kinds(made: Step) -> tuple[int, int]:
    return made.prompt_tokens, made.sequences


def test_stall_free_lets_output_and_prompts_run_together() -> None:
    engine = make(max_num_batched_tokens=16)
    engine.add(prompt("a", 8), 0.0)
    _, _, now = step(engine, 0.0)
    engine.add(prompt("b", 30), now)
    assert kinds(step(engine, now)[0]) == (15, 1)
    assert kinds(step(engine, now)[0]) == (15, 1)


def test_prefill_first_lets_output_wait_for_whole_prompts() -> None:
    engine = make(**PREFILL_FIRST)
    engine.add(prompt("a", 8), 0.0)
    _, _, since = step(engine, 0.0)
    engine.add(prompt("b", 30), since)
    engine.add(prompt("c", 30), since)
    engine.add(prompt("d", 30), since)
    made, outputs, now = step(engine, since)
    assert kinds(made) == (60, 0), "the budget of 64 tokens holds two of them"
    assert [token.id for token in outputs.tokens] == ["b", "c"]
    made, _, now = step(engine, now)
    assert kinds(made) == (30, 0)
    made, outputs, now = step(engine, now)
    assert kinds(made) == (0, 4)
    assert {token.id: token.interval for token in outputs.tokens}["a"] == pytest.approx(now - since)


def test_output_waits_no_more_often_than_it_may() -> None:
    engine = make(max_stalls=2, max_num_batched_tokens=32, **PREFILL_FIRST)
    engine.add(prompt("a", 8, out=40), 0.0)
    _, _, now = step(engine, 0.0)
    for name in "bcde":
        engine.add(prompt(name, 24, out=1), now)
    shapes = []
    for _ in range(5):
        made, _, now = step(engine, now)
        shapes.append(kinds(made))
    assert shapes == [(24, 0), (24, 0), (24, 1), (24, 1), (0, 1)]


@pytest.mark.parametrize("order", [PREFILL_FIRST, DECODE_FIRST])
def test_a_whole_prompt_above_the_budget_has_a_step_of_its_own(order: dict[str, object]) -> None:
    engine = make(max_num_batched_tokens=16, **order)
    engine.add(prompt("a", 8, out=1), 0.0)
    engine.add(prompt("long", 40, out=1), 0.0)
    assert kinds(step(engine, 0.0)[0]) == (8, 0)
    assert kinds(step(engine, 0.1)[0]) == (40, 0)


def test_decode_first_ends_a_batch_before_it_begins_the_next() -> None:
    engine = make(**DECODE_FIRST)
    for name in "ab":
        engine.add(prompt(name, 8, out=3 if name == "a" else 5), 0.0)
    _, _, now = step(engine, 0.0)
    engine.add(prompt("c", 8, out=2), now)
    finished, steps, _ = run(engine, now)
    assert [end.id for end in finished] == ["a", "b", "c"]
    assert [kinds(made) for made in steps] == [(0, 2), (0, 2), (0, 1), (0, 1), (8, 0), (0, 1)]


def test_kv_that_comes_from_elsewhere_joins_a_running_batch() -> None:
    engine = make(**DECODE_FIRST)
    engine.add(prompt("a", 8, out=9), 0.0)
    _, _, now = step(engine, 0.0)
    engine.admit_with_remote_kv(prompt("far", 8), 8, now)
    _, _, now = step(engine, now)
    assert [transfer.id for transfer in engine.take_transfers()] == ["far"]
    assert engine.remote_kv_arrived("far")
    made, outputs, _ = step(engine, now)
    assert kinds(made) == (0, 2), "the last token of a fetched prompt costs what an output token does"
    assert [(token.id, token.number) for token in outputs.tokens] == [("a", 2), ("far", 0)]


def test_a_mixed_step_by_factor() -> None:
    engine = make(mixed_pass_factor=1.1, max_num_batched_tokens=32)
    engine.add(prompt("a", 8), 0.0)
    assert step(engine, 0.0)[0].duration_ms == PROFILE.prefill_ms(8)
    engine.add(prompt("b", 24), 0.1)
    made = step(engine, 0.1)[0]
    assert kinds(made) == (24, 1)
    assert made.duration_ms == pytest.approx(1.1 * PROFILE.prefill_ms(24))
    assert step(engine, 0.2)[0].duration_ms == pytest.approx(PROFILE.decode_ms(2, 10 + 25))


def short_of_blocks(**limits: object) -> Engine:
    """Two sequences of 8 blocks in all, of which the younger has just lost its own."""
    engine = make(num_blocks=16, max_num_batched_tokens=64, **limits)
    for name in "ab":
        engine.add(prompt(name, 28, out=30), 0.0)
    for at in range(6):
        made = step(engine, float(at))[0]
        if made.preempted:
            assert made.preempted == ("b",)
            return engine
    raise AssertionError("nobody was preempted")


def test_a_swapped_sequence_keeps_its_kv_and_the_step_pays_for_the_copies() -> None:
    engine = make(num_blocks=16, **SWAP)
    for name in "ab":
        engine.add(prompt(name, 28, out=30), 0.0)
    now, made = 0.0, step(engine, 0.0)[0]
    while not made.preempted:
        now += 1.0
        made, _, _ = step(engine, now)
    blocks = engine.stats().blocks_swapped_out
    assert blocks == 8
    assert made.swap_ms == 16.0
    assert made.duration_ms == pytest.approx(16.0 + PROFILE.decode_ms(1, 33))
    stats = engine.stats()
    assert (stats.swapped, stats.waiting, stats.running) == (1, 1, 1)
    assert stats.host_usage == blocks / 20


def test_swapped_sequences_come_back_before_anybody_new_and_compute_nothing_twice() -> None:
    engine = short_of_blocks(**SWAP)
    engine.add(prompt("new", 8, out=2), 6.0)
    finished, steps, _ = run(engine, 6.0)
    back = next(made for made in steps if made.admitted)
    assert [entry.id for entry in back.admitted][:1] == ["b"]
    assert back.admitted[0].resumed
    assert sum(made.prompt_tokens for made in steps) == 8, "only the new prompt is computed"
    assert {end.id: end.preemptions for end in finished} == {"a": 0, "b": 1, "new": 0}


def test_what_is_cached_still_need_not_be_copied_back() -> None:
    engine = short_of_blocks(**SWAP)
    engine.abort("a", 6.0)
    made = step(engine, 6.0)[0]
    assert made.admitted[0].id == "b"
    stats = engine.stats()
    # 32 tokens in 8 blocks; the 7 whole blocks of the prompt have names, and one of those gave way to `a`.
    assert 0 < stats.blocks_swapped_in < stats.blocks_swapped_out
    assert made.swap_ms == 2.0 * stats.blocks_swapped_in


def test_without_room_on_the_host_kv_is_computed_again() -> None:
    engine = short_of_blocks(**(SWAP | {"num_host_blocks": 7}))
    assert (engine.stats().swapped, engine.stats().blocks_swapped_out) == (0, 0)
    _, steps, _ = run(engine, 6.0)
    assert sum(made.prompt_tokens for made in steps) > 0


def test_a_swapped_sequence_can_be_aborted() -> None:
    engine = short_of_blocks(**SWAP)
    assert engine.abort("b", 6.0) is not None
    assert violations(engine) == []
    assert engine.stats().host_usage == engine.stats().swapped == 0


def test_a_shared_link_makes_copies_slower() -> None:
    engine = short_of_blocks(**SWAP)
    engine.set_link_share(0.25)
    engine.abort("a", 6.0)
    made = step(engine, 6.0)[0]
    assert made.swap_ms == 8.0 * engine.stats().blocks_swapped_in > 0
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="link share"):
            engine.set_link_share(share)


def test_a_slow_engine_takes_longer_from_the_next_step_on() -> None:
    engine = make()
    engine.add(prompt("a", 8, out=40), 0.0)
    made = engine.schedule(0.0)
    engine.set_speed(slowdown=3.0)
    assert made.duration_ms == PROFILE.prefill_ms(8), "a step that is out keeps its time"
    engine.complete(made, 0.1)
    span = engine.span()
    assert span.first_ms == pytest.approx(3 * PROFILE.decode_ms(1, 9))
    assert span.milliseconds(5) == pytest.approx(sum(3 * PROFILE.decode_ms(1, 9 + j) for j in range(5)))
    engine.advance(span, 5, 1.0)
    engine.set_speed()
    assert engine.span().first_ms == PROFILE.decode_ms(1, 14)


@settings(max_examples=30, deadline=None)
@given(clock=st.floats(0.1, 1.0), slowdown=st.floats(0.5, 10))
def test_a_throttled_clock_slows_each_phase_by_its_own_curve(clock: float, slowdown: float) -> None:
    engine, slow = make(), throttled(PROFILE, clock)
    engine.set_speed(slowdown, clock)
    engine.add(prompt("a", 40), 0.0)
    assert step(engine, 0.0)[0].duration_ms == pytest.approx(slowdown * slow.prefill_ms(40))
    assert step(engine, 1.0)[0].duration_ms == pytest.approx(slowdown * slow.decode_ms(1, 41))


def test_a_speed_that_is_none_is_refused() -> None:
    engine = make()
    for factor in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="slowdown"):
            engine.set_speed(factor)
    with pytest.raises(ValueError, match=r"clock is 1\.5"):
        engine.set_speed(1.0, 1.5)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"max_stalls": 3}, "max_stalls is for scheduler PrefillFirst, not StallFree"),
        ({"max_stalls": -1, **PREFILL_FIRST}, "max_stalls is -1"),
        ({"mixed_pass_factor": 0.0}, "mixed_pass_factor is 0.0"),
        ({"preemption": Preemption.SWAP}, "num_host_blocks is 0; preemption by Swap needs host memory"),
        ({"swap_ms_per_block": -1.0}, "swap_ms_per_block is -1.0"),
        ({"max_num_batched_tokens": 16, "enable_chunked_prefill": False}, "allow chunked prefill"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(**limits)
