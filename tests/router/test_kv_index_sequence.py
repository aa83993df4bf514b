"""Streams of KV events with losses, restarts and replays: what is applied is what the engine's cache holds."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.router.decisions.kv_index import (
    Action,
    Apply,
    AskReplay,
    Batch,
    Clear,
    Knowledge,
    SequenceTracker,
)
from penstock.router.decisions.kv_index.sequence import MAX_HELD, REPLAY_TIMEOUT


def batch(sequence: int, life: int = 0) -> Batch:
    return Batch(sequence, 1000.0 * life + sequence, (life, sequence))


def told(actions: list[Action]) -> list[object]:
    """Actions in short: numbers are applied batches."""
    short: list[object] = []
    for action in actions:
        match action:
            case Apply(applied):
                short.append(applied.sequence)
            case Clear():
                short.append("clear")
            case AskReplay(start):
                short.append(("ask", start))
    return short


def following(upto: int = 3) -> SequenceTracker:
    """A tracker that has applied batches 0 to `upto` - 1."""
    tracker = SequenceTracker(can_replay=True)
    assert told(tracker.connected(0)) == [("ask", 0)]
    assert told(tracker.replay_ended(0)) == []
    for number in range(upto):
        assert told(tracker.live(batch(number), 1)) == [number]
    return tracker


def test_batches_in_order_are_applied_and_a_repetition_is_not():
    tracker = following(3)
    assert told(tracker.live(batch(1), 2)) == []
    assert told(tracker.live(batch(3), 2)) == [3]
    assert (tracker.knowledge, tracker.duplicates, tracker.gaps) == (Knowledge.COMPLETE, 1, 0)


def test_a_gap_is_filled_by_a_replay_and_what_came_meanwhile_follows():
    tracker = following(3)
    assert told(tracker.live(batch(5), 2)) == [("ask", 2)]
    assert told(tracker.live(batch(6), 2)) == []
    assert [told(tracker.replayed(batch(n), 3)) for n in (2, 3, 4, 5)] == [[], [3], [4], [5]]
    assert told(tracker.replay_ended(3)) == [6]
    assert (tracker.knowledge, tracker.gaps, tracker.resyncs) == (Knowledge.COMPLETE, 1, 0)


def test_a_gap_the_engine_has_forgotten_clears_the_worker():
    tracker = following(3)
    tracker.live(batch(9), 2)
    assert told(tracker.replayed(batch(7), 3)) == ["clear", 7]
    assert told(tracker.replayed(batch(8), 3)) == [8]
    assert told(tracker.replay_ended(3)) == [9]
    assert (tracker.knowledge, tracker.changed_at, tracker.resyncs) == (Knowledge.PARTIAL, 3, 1)
    tracker.emptied(4)
    assert tracker.knowledge is Knowledge.COMPLETE


def test_a_gap_behind_a_replay_does_not_ask_for_ever():
    tracker = following(3)
    tracker.live(batch(9), 2)
    assert told(tracker.replayed(batch(2), 3)) == []
    assert told(tracker.replay_ended(3)) == ["clear", 9]
    assert not tracker.replaying


def test_without_a_replay_endpoint_a_gap_clears_at_once():
    tracker = SequenceTracker(can_replay=False)
    assert told(tracker.connected(0)) == []
    assert told(tracker.live(batch(4), 1)) == [4]
    assert tracker.knowledge is Knowledge.PARTIAL
    assert told(tracker.live(batch(6), 2)) == ["clear", 6]
    assert told(tracker.connected(3)) == ["clear"], "who knows what was missed"


def test_an_engine_that_counts_from_zero_again_is_a_new_one():
    tracker = following(3)
    assert told(tracker.live(batch(0, life=1), 2)) == ["clear", 0]
    assert told(tracker.live(batch(1, life=1), 2)) == [1]
    assert tracker.knowledge is Knowledge.COMPLETE


def test_an_engine_that_restarted_unseen_is_told_apart_by_its_batch_of_the_same_number():
    tracker = following(3)
    assert told(tracker.connected(5)) == [("ask", 2)]
    assert told(tracker.replayed(batch(2, life=1), 5)) == ["clear", ("ask", 0)]
    assert [told(tracker.replayed(batch(n, life=1), 5)) for n in (0, 1, 2)] == [[0], [1], [2]]
    assert told(tracker.replay_ended(5)) == []
    assert tracker.knowledge is Knowledge.COMPLETE


@pytest.mark.parametrize("upto", [1, 3])
def test_an_engine_that_restarted_and_is_silent_is_known_to_be_empty(upto: int):
    tracker = following(upto)
    tracker.connected(5)
    actions = told(tracker.replay_ended(5))
    assert actions[0] == "clear"
    if ("ask", 0) in actions:
        assert told(tracker.replay_ended(5)) == []
    assert tracker.knowledge is Knowledge.COMPLETE
    assert told(tracker.live(batch(0, life=1), 6)) == [0]


def test_joining_late_takes_the_whole_history_or_says_that_it_is_partial():
    whole, part = SequenceTracker(can_replay=True), SequenceTracker(can_replay=True)
    for tracker, first in ((whole, 0), (part, 5)):
        tracker.connected(0)
        assert told(tracker.live(batch(8), 0)) == []
        for number in range(first, 8):
            assert told(tracker.replayed(batch(number), 0)) == [number]
        assert told(tracker.replay_ended(0)) == [8]
    assert (whole.knowledge, part.knowledge) == (Knowledge.COMPLETE, Knowledge.PARTIAL)


def test_an_unanswered_replay_is_given_up_and_gaps_then_clear_at_once():
    tracker = following(3)
    tracker.live(batch(5), 2)
    assert told(tracker.tick(2 + REPLAY_TIMEOUT / 2)) == []
    assert told(tracker.tick(2 + REPLAY_TIMEOUT)) == ["clear", 5]
    assert told(tracker.live(batch(8), 20)) == ["clear", 8]


def test_a_replay_slower_than_the_stream_is_given_up():
    tracker = following(1)
    tracker.live(batch(2), 2)
    for number in range(3, 2 + MAX_HELD):
        assert told(tracker.live(batch(number), 2)) == []
    actions = told(tracker.live(batch(2 + MAX_HELD), 2))
    assert actions == ["clear", *range(2, 3 + MAX_HELD)]


def test_an_engine_that_keeps_no_batches_is_followed_from_where_it_is():
    tracker = SequenceTracker(can_replay=True)
    tracker.connected(0)
    tracker.live(batch(5), 0)
    assert told(tracker.replay_ended(0)) == ["clear", 5]
    assert (tracker.knowledge, tracker.replaying) == (Knowledge.PARTIAL, False)


def test_an_unreadable_batch_clears_and_the_stream_goes_on():
    tracker = following(3)
    assert told(tracker.lost(3, "unreadable", 2)) == ["clear"]
    assert tracker.knowledge is Knowledge.UNKNOWN
    assert told(tracker.live(batch(4), 3)) == [4]
    assert tracker.knowledge is Knowledge.PARTIAL


class Engine:
    """An engine with a bounded memory of batches. A batch adds or takes one block; the cache is the truth."""

    def __init__(self, kept: int) -> None:
        self.kept, self.life = kept, 0
        self.history: list[Batch] = []
        self.cache: set[int] = set()

    def publish(self, block: int) -> Batch:
        adds = block not in self.cache
        self.cache ^= {block}
        made = Batch(len(self.history), self.life * 1000.0 + len(self.history), (adds, block))
        self.history.append(made)
        return made

    def restart(self) -> None:
        self.life += 1
        self.history, self.cache = [], set()

    def replay(self, start: int) -> list[Batch]:
        return [b for b in self.history[-self.kept :] if b.sequence >= start]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(0, 5)),
        st.tuples(st.just("publish"), st.integers(0, 5)),
        st.tuples(st.just("lose"), st.integers(0, 5)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("reconnect"), st.just(0)),
        st.tuples(st.just("answer"), st.integers(0, 3)),
        st.tuples(st.just("silence"), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(steps, st.integers(1, 8), st.booleans())
def test_no_order_of_losses_and_restarts_leaves_a_block_that_is_not_there(history: list, kept: int, can_replay: bool):
    engine, tracker, known = Engine(kept), SequenceTracker(can_replay), set[int]()
    asked: list[int] = []
    now = 0.0

    def act(actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Apply(applied):
                    adds, block = applied.payload
                    (known.add if adds else known.discard)(block)
                case Clear():
                    known.clear()
                case AskReplay(start):
                    asked[:] = [start]

    def answer(meanwhile: Sequence[int] = ()) -> None:
        while asked:
            start = asked.pop()
            for replayed in engine.replay(start):
                act(tracker.replayed(replayed, now))
                if asked:
                    break
            else:
                for block in meanwhile:
                    act(tracker.live(engine.publish(block), now))
                act(tracker.replay_ended(now))

    act(tracker.connected(now))
    for step, number in history:
        now += 1
        match step:
            case "publish":
                act(tracker.live(engine.publish(number), now))
            case "lose":
                engine.publish(number)
            case "restart":
                # A process that ends closes its connections: that is how a restart is noticed.
                engine.restart()
                act(tracker.connected(now))
            case "reconnect":
                act(tracker.connected(now))
            case "answer":
                answer([number])
            case "silence":
                now += REPLAY_TIMEOUT
                asked.clear()
                act(tracker.tick(now))
    # One more batch that arrives, and an answered replay, are enough to be right again, whatever happened.
    now += 1
    act(tracker.live(engine.publish(9), now))
    answer()
    assert known <= engine.cache
    if tracker.knowledge is Knowledge.COMPLETE:
        assert known == engine.cache
