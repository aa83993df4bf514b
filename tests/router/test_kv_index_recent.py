"""Picks remembered for a while where the engines' events say nothing yet."""

from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.router.decisions.kv_index import SMALLEST_BUDGET, RecentPicks

A, B = [11, 12, 13, 14], [11, 12, 23]


def test_a_pick_is_remembered_until_its_time_is_up():
    recent = RecentPicks(SMALLEST_BUDGET)
    recent.remember(1, A, now=0, ttl=10)
    recent.remember(1, B, now=5, ttl=10)
    assert recent.longest_prefix(A, 2).tolist() == [0, 4]
    recent.expire(9.9)
    assert recent.longest_prefix(A, 2).tolist() == [0, 4]
    recent.expire(10)
    assert recent.longest_prefix(A, 2).tolist() == [0, 2], "the second pick holds what it shares with the first"
    recent.expire(15)
    assert (recent.longest_prefix(B, 2).tolist(), len(recent), recent.stats().blocks) == ([0, 0], 0, 0)


def test_a_confirmed_pick_is_dropped_once():
    recent = RecentPicks(SMALLEST_BUDGET)
    ticket = recent.remember(0, A, now=0, ttl=10)
    assert recent.drop(ticket)
    assert not recent.drop(ticket)
    assert recent.longest_prefix(A, 1).tolist() == [0]


def test_an_old_ticket_takes_nothing_from_the_next_worker_of_its_slot():
    recent = RecentPicks(SMALLEST_BUDGET)
    ticket = recent.remember(0, A, now=0, ttl=10)
    recent.forget_worker(0)
    assert recent.longest_prefix(A, 1).tolist() == [0]
    recent.remember(0, A, now=1, ttl=10)
    recent.drop(ticket)
    assert recent.longest_prefix(A, 1).tolist() == [4]


def test_too_many_blocks_push_out_what_would_expire_first():
    recent = RecentPicks(SMALLEST_BUDGET, max_blocks=10)
    recent.remember(0, A, now=0, ttl=5)
    recent.remember(1, A, now=0, ttl=9)
    recent.remember(2, A, now=0, ttl=7)
    assert recent.longest_prefix(A, 3).tolist() == [0, 4, 4]
    recent.remember(0, list(range(11)), now=0, ttl=9)
    assert len(recent) == 2, "a prompt larger than all there is room for is not remembered"


steps = st.lists(
    st.tuples(st.sampled_from(("pick", "drop", "gone")), st.integers(0, 2), st.integers(1, 4)), max_size=50
)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_equals_a_list_of_what_was_picked(history: list[tuple[str, int, int]]):
    recent, naive = RecentPicks(SMALLEST_BUDGET), dict[int, tuple[int, list[int], float]]()
    for now, (kind, slot, number) in enumerate(history):
        if kind == "pick":
            prompt = [A, B][number % 2][:number]
            naive[recent.remember(slot, prompt, now, ttl=number * 3)] = (slot, prompt, now + number * 3)
        elif kind == "drop" and naive:
            ticket = min(naive)
            recent.drop(ticket)
            del naive[ticket]
        elif kind == "gone":
            recent.forget_worker(slot)
            naive = {t: entry for t, entry in naive.items() if entry[0] != slot}
        recent.expire(now)
        naive = {t: entry for t, entry in naive.items() if entry[2] > now}
        for asked in (A, B):
            known = [0, 0, 0]
            for s, prompt, _ in naive.values():
                shared = next((i for i, (x, y) in enumerate(zip(asked, prompt, strict=False)) if x != y), None)
                known[s] = max(known[s], min(len(asked), len(prompt)) if shared is None else shared)
            assert recent.longest_prefix(asked, 3).tolist() == known
