"""The batching state machine, rule by rule, on a clock of the test's own."""

import pytest
from engine_stage import PROFILE, make, prompt, run, step
from penstock.core.engine import (
    BlockRemoved,
    BlockStored,
    CacheCleared,
    FinishReason,
    SchedulingPolicy,
    Sequence,
    violations,
)


def test_one_sequence_from_prompt_to_end() -> None:
    engine = make()
    engine.add(prompt("a", 10, out=3), 0.0)
    first, outputs, now = step(engine, 0.0)
    assert (first.prompt_tokens, first.squares, first.sequences) == (10, 100, 0)
    assert first.duration_ms == PROFILE.prefill_ms(10)
    assert [(token.id, token.number) for token in outputs.tokens] == [("a", 0)]
    assert outputs.tokens[0].interval == pytest.approx(now)
    second, outputs, _ = step(engine, now)
    assert (second.prompt_tokens, second.sequences, second.context) == (0, 1, 11)
    assert second.duration_ms == PROFILE.decode_ms(1, 11)
    finished, steps, end = run(engine, now)
    assert len(steps) == 1
    assert (finished[0].reason, finished[0].output_tokens, finished[0].timing.finished) == (FinishReason.LENGTH, 3, end)
    assert engine.idle
    assert engine.stats().kv_usage == 0


@pytest.mark.parametrize(
    ("limits", "reason", "tokens"),
    [
        ({"out": 5}, FinishReason.LENGTH, 5),
        ({"out": 5, "stop_after": 3}, FinishReason.STOP, 3),
        ({"out": 5, "stop_after": 5}, FinishReason.STOP, 5),
        ({"out": 5, "stop_after": 9}, FinishReason.LENGTH, 5),
        ({"out": 500}, FinishReason.LENGTH, 54),
    ],
)
def test_a_sequence_ends_at_the_first_limit_it_meets(limits: dict[str, int], reason: str, tokens: int) -> None:
    engine = make()
    engine.add(prompt("a", 10, **limits), 0.0)
    finished, _, _ = run(engine)
    assert (finished[0].reason, finished[0].output_tokens) == (reason, tokens)
    assert engine.stats().finished == {reason: 1}


def test_a_long_prompt_is_computed_in_chunks_within_the_budget() -> None:
    engine = make(max_num_batched_tokens=8)
    engine.add(prompt("a", 20, out=2), 0.0)
    _, steps, _ = run(engine)
    assert [made.prompt_tokens for made in steps] == [8, 8, 4, 0]
    assert sum(made.squares for made in steps) == 20**2


def test_decodes_come_before_new_prompts_and_share_the_step() -> None:
    engine = make(max_num_batched_tokens=8)
    engine.add(prompt("a", 8), 0.0)
    _, _, now = step(engine, 0.0)
    engine.add(prompt("b", 16), now)
    made, outputs, _ = step(engine, now)
    assert [(work.id, work.tokens) for work in made.work] == [("a", 1), ("b", 7)]
    assert (made.sequences, made.prompt_tokens, made.tokens) == (1, 7, 8)
    assert [token.id for token in outputs.tokens] == ["a"], "a prompt that is not done yet gives no token"


def test_without_chunks_a_prompt_waits_for_a_step_that_holds_it_whole() -> None:
    engine = make(max_num_batched_tokens=64, enable_chunked_prefill=False)
    engine.add(prompt("a", 40), 0.0)
    engine.add(prompt("b", 40), 0.0)
    assert [work.id for work in step(engine, 0.0)[0].work] == ["a"]
    assert [(work.id, work.tokens) for work in engine.schedule(1.0).work] == [("a", 1), ("b", 40)]


def test_slots_bound_the_batch() -> None:
    engine = make(max_num_seqs=2)
    for name in "abc":
        engine.add(prompt(name, 4), 0.0)
    assert [work.id for work in step(engine, 0.0)[0].work] == ["a", "b"]
    assert (engine.stats().running, engine.stats().waiting) == (2, 1)


def test_nobody_overtakes_the_head_of_the_queue() -> None:
    engine = make(num_blocks=16, max_num_batched_tokens=128)
    engine.add(prompt("a", 40), 0.0)
    engine.add(prompt("big", 30), 0.0)
    engine.add(prompt("small", 4), 0.0)
    assert [work.id for work in step(engine, 0.0)[0].work] == ["a"], "6 free blocks would do for small, not for big"


def test_a_prompt_is_admitted_only_when_the_whole_of_it_would_fit() -> None:
    engine = make(num_blocks=16, max_num_batched_tokens=45)
    engine.add(prompt("a", 40, out=1), 0.0)
    engine.add(prompt("big", 30, out=1), 0.0)
    assert [(work.id, work.tokens) for work in step(engine, 0.0)[0].work] == [("a", 40)], "5 tokens of big would fit"
    assert [(work.id, work.tokens) for work in step(engine, 0.1)[0].work] == [("big", 30)]


def test_priority_orders_the_queue_and_the_victims() -> None:
    engine = make(max_num_seqs=1, policy=SchedulingPolicy.PRIORITY)
    for name, priority in (("low", 5), ("high", -1), ("middle", 2)):
        engine.add(prompt(name, 4, out=1, priority=priority), 0.0)
    assert [end.id for end in run(engine)[0]] == ["high", "middle", "low"]


# Prefix cache


def test_a_full_hit_computes_the_last_block_again() -> None:
    engine = make(block_size=32, max_model_len=256, max_num_batched_tokens=256)
    for name in ("a", "b"):
        engine.add(Sequence(name, 64, 1, block_hashes=(1, 2)), 0.0)
        run(engine)
    stats = engine.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (128, 32)
    assert (stats.prompt_tokens_by_source.local_compute, stats.prompt_tokens_by_source.local_cache_hit) == (96, 32)


def test_only_whole_blocks_of_the_prompt_hit() -> None:
    engine = make()
    engine.add(prompt("a", 15, stem="x"), 0.0)
    run(engine)
    engine.add(prompt("b", 15, stem="x"), 1.0)
    finished, steps, _ = run(engine, 1.0)
    assert finished[0].cached_tokens == 12
    assert steps[0].prompt_tokens == 3
    assert steps[0].squares == 15**2 - 12**2


def test_a_prompt_hits_what_the_same_step_computes() -> None:
    engine = make()
    engine.add(prompt("a", 12, stem="x"), 0.0)
    engine.add(prompt("b", 13, stem="x"), 0.0)
    made, _, _ = step(engine, 0.0)
    assert [(work.id, work.tokens) for work in made.work] == [("a", 12), ("b", 1)]
    assert (made.prompt_tokens, made.sequences) == (13, 0), "the last token of a prompt is no decode"


def test_output_blocks_hit_the_next_turn_of_a_conversation() -> None:
    engine = make(block_hash=lambda name, index: hash(("x", index)))
    engine.add(prompt("turn-1", 8, out=9, stem="x"), 0.0)
    run(engine)
    engine.add(prompt("turn-2", 24, stem="x"), 1.0)
    finished, _, _ = run(engine, 1.0)
    assert finished[0].cached_tokens == 16, "8 of the prompt and 8 of the output; the last token has no KV"


def test_without_hashes_or_caching_nothing_hits() -> None:
    for engine in (make(enable_prefix_caching=False), make()):
        cached = engine.config.enable_prefix_caching
        for name in ("a", "b"):
            engine.add(Sequence(name, 16, 2) if cached else prompt(name, 16, stem="x"), 0.0)
            finished, _, _ = run(engine)
            assert finished[0].cached_tokens == 0
        assert engine.take_events() == ()
        assert engine.stats().prefix_hits == 0


def test_the_least_recently_used_prefix_goes_first_and_its_tail_before_its_head() -> None:
    engine = make(num_blocks=16)
    for name in ("old", "new"):
        engine.add(prompt(name, 28, out=1), 0.0)
        run(engine)
    engine.add(prompt("third", 20, out=1), 0.0)
    run(engine)
    engine.add(prompt("new again", 28, out=1, stem="new"), 0.0)
    engine.add(prompt("old again", 28, out=1, stem="old"), 0.0)
    finished, _, _ = run(engine)
    cached = {end.id: end.cached_tokens for end in finished}
    assert cached["new again"] == 24
    assert cached["old again"] == 12, "third took 3 of its 7 blocks and new again one, from the end"


def test_events_tell_what_can_be_found_and_what_is_gone() -> None:
    engine = make(num_blocks=16)
    engine.add(prompt("a", 9, out=1, stem="x"), 0.0)
    _, outputs, _ = step(engine, 0.0)
    stored = tuple(hash(("x", index)) for index in range(2))
    assert outputs.events == (BlockStored(stored, None, "a", 0),)
    engine.add(prompt("big", 61, out=1), 1.0)
    _, outputs, _ = step(engine, 1.0)
    assert outputs.events[:2] == (BlockRemoved(stored[1]), BlockRemoved(stored[0]))
    assert isinstance(outputs.events[2], BlockStored)


def test_a_chunked_prompt_names_the_parent_of_its_later_blocks() -> None:
    engine = make(max_num_batched_tokens=8)
    engine.add(prompt("a", 16, out=1, stem="x"), 0.0)
    events = step(engine, 0.0)[1].events + step(engine, 0.1)[1].events
    assert [(event.parent, event.first_block, len(event.hashes)) for event in events] == [
        (None, 0, 2),
        (hash(("x", 1)), 2, 2),
    ]


def test_the_block_computed_again_is_stored_twice_and_removed_twice() -> None:
    engine = make(num_blocks=16)
    told: dict[int, int] = {}
    for name in ("a", "b"):
        engine.add(prompt(name, 8, out=1, stem="x"), 0.0)
        run(engine)
    engine.add(prompt("flood", 60, out=1), 0.0)
    engine = make(num_blocks=16)
    for sequence in (prompt("a", 8, 1, "x"), prompt("b", 8, 1, "x"), prompt("flood", 62, 1)):
        engine.add(sequence, 0.0)
        for event in step(engine, 0.0)[1].events:
            hashes = event.hashes if isinstance(event, BlockStored) else (event.hash,)
            for name in hashes:
                told.setdefault(name, 0)
                told[name] += 1 if isinstance(event, BlockStored) else -1
            if sequence.id == "b":
                assert told[hash(("x", 1))] == 2
    assert (told[hash(("x", 0))], told[hash(("x", 1))]) == (0, 0)


def test_clearing_the_cache_needs_every_block_free() -> None:
    engine = make()
    engine.add(prompt("a", 8, stem="x"), 0.0)
    step(engine, 0.0)
    assert not engine.reset_prefix_cache()
    run(engine)
    assert engine.reset_prefix_cache()
    assert engine.take_events()[-1] == CacheCleared()
    engine.add(prompt("b", 8, stem="x"), 1.0)
    assert run(engine, 1.0)[0][0].cached_tokens == 0


# Preemption


def test_the_youngest_is_preempted_and_finishes_later_with_its_output_kept() -> None:
    engine = make(num_blocks=16, max_num_batched_tokens=128)
    for name in ("old", "young"):
        engine.add(prompt(name, 28, out=12), 0.0)
    numbers: dict[str, list[int]] = {"old": [], "young": []}
    preempted: list[str] = []
    now, reasons = 0.0, {}
    while (made := engine.schedule(now)) is not None:
        now += made.duration_ms / 1e3
        preempted += made.preempted
        outputs = engine.complete(made, now)
        assert violations(engine) == []
        for token in outputs.tokens:
            numbers[token.id].append(token.number)
        reasons |= {end.id: end for end in outputs.finished}
    assert preempted == ["young"]
    assert numbers == {"old": list(range(12)), "young": list(range(12))}
    assert (reasons["old"].preemptions, reasons["young"].preemptions) == (0, 1)
    assert engine.stats().preemptions == 1
    assert engine.stats().prompt_tokens == 56, "recomputed tokens are not prompt tokens again"


def test_a_preempted_sequence_comes_back_before_those_that_never_ran() -> None:
    engine = make(num_blocks=16, max_num_batched_tokens=128)
    for name, tokens in (("old", 28), ("young", 28), ("later", 4)):
        engine.add(prompt(name, tokens, out=12), 0.0)
    order = [end.id for end in run(engine)[0]]
    assert order.index("young") < order.index("later") or order[0] == "later"
    engine = make(num_blocks=16, max_num_seqs=2)
    for name in ("old", "young", "later"):
        engine.add(prompt(name, 28, out=12), 0.0)
    assert [end.id for end in run(engine)[0]] == ["old", "young", "later"]


def test_under_priority_the_least_important_is_preempted() -> None:
    engine = make(num_blocks=16, policy=SchedulingPolicy.PRIORITY)
    engine.add(prompt("unimportant", 28, out=12, priority=9), 0.0)
    step(engine, 0.0)
    engine.add(prompt("important", 28, out=12, priority=0), 0.1)
    finished, steps, _ = run(engine, 0.1)
    assert [name for made in steps for name in made.preempted] == ["unimportant"]
    assert [end.id for end in finished] == ["important", "unimportant"]


def test_a_step_that_preempts_admits_nobody() -> None:
    engine = make(num_blocks=16)
    for name in ("old", "young"):
        engine.add(prompt(name, 16, out=20), 0.0)
    engine.admit_with_remote_kv(prompt("leg", 16), 16, 0.0)
    now = 0.0
    for _ in range(9):
        _, _, now = step(engine, now)
    assert engine.stats().kv_usage == 1.0, "six blocks each and four for the leg"
    engine.remote_kv_arrived("leg")
    made, _, now = step(engine, now)
    assert (made.preempted, [work.id for work in made.work]) == (("young",), ["old"])
    assert [work.id for work in step(engine, now)[0].work] == ["old", "leg"]


def test_the_blocks_of_the_last_one_preempted_go_to_the_next_in_line_at_once() -> None:
    engine = make(num_blocks=16, policy=SchedulingPolicy.PRIORITY)
    engine.add(prompt("leg", 24, out=1, lease_seconds=1e6), 0.0)
    run(engine)
    engine.add(prompt("unimportant", 38, out=9, priority=9), 1.0)
    _, _, now = step(engine, 1.0)
    engine.add(prompt("important", 30, out=1, priority=0), now)
    while not engine.stats().preemptions:
        made, _, now = step(engine, now)
    assert made.preempted == ("unimportant",)
    assert [work.id for work in made.work] == ["important"], "6 blocks are leased, so only one of the two fits"


# Abort, errors


@pytest.mark.parametrize("when", ["waiting", "scheduled", "running"])
def test_an_abort_gives_everything_back_at_once(when: str) -> None:
    engine = make()
    engine.add(prompt("a", 9, out=9), 0.0)
    made = None if when == "waiting" else engine.schedule(0.0)
    if when == "running":
        engine.complete(made, 0.1)
    ended = engine.abort("a", 0.2)
    assert (ended.reason, ended.output_tokens) == (FinishReason.ABORT, int(when == "running"))
    assert violations(engine) == []
    assert engine.idle
    assert engine.stats().kv_usage == 0
    if when == "scheduled":
        outputs = engine.complete(made, 0.3)
        assert (outputs.tokens, outputs.finished) == ((), ())
    assert engine.abort("a", 0.4) is None


def test_an_aborted_id_can_be_used_again_while_its_step_is_out() -> None:
    engine = make()
    engine.add(prompt("a", 8), 0.0)
    made = engine.schedule(0.0)
    engine.abort("a", 0.0)
    engine.add(prompt("a", 8), 0.0)
    assert engine.complete(made, 0.1).tokens == ()
    assert engine.stats().waiting == 1


def test_what_cannot_be_served_is_refused_at_the_door() -> None:
    engine = make()
    engine.add(prompt("a", 8), 0.0)
    with pytest.raises(ValueError, match="sequence a is already here"):
        engine.add(prompt("a", 8), 0.0)
    with pytest.raises(ValueError, match="prompt of 64 tokens leaves no room for output"):
        engine.add(prompt("b", 64), 0.0)
    with pytest.raises(ValueError, match="both must be at least 1"):
        Sequence("c", 0, 1)
    with pytest.raises(ValueError, match="both must be at least 1"):
        Sequence("c", 1, 0)
    with pytest.raises(ValueError, match="stop_after"):
        Sequence("c", 1, 1, stop_after=0)
    with pytest.raises(ValueError, match="lease"):
        Sequence("c", 1, 1, lease_seconds=0)


def test_steps_go_one_at_a_time() -> None:
    engine = make()
    engine.add(prompt("a", 8), 0.0)
    made = engine.schedule(0.0)
    with pytest.raises(RuntimeError, match="step 0 is still running"):
        engine.schedule(0.0)
    engine.complete(made, 0.1)
    with pytest.raises(RuntimeError, match="step 0 is not the one"):
        engine.complete(made, 0.2)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"num_blocks": 15}, "cannot hold one sequence of max_model_len 64"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"max_num_batched_tokens": 32, "enable_chunked_prefill": False}, "allow chunked prefill"),
    ],
)
def test_limits_that_cannot_work_are_refused(limits: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(**limits)


# KV for another engine, KV from another engine
