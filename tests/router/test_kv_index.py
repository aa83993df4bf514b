"""The KV index beside a naive model that keeps a counter for every cache, under any order of events."""

import tracemalloc
from collections import Counter
from collections.abc import Sequence
from functools import cache
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.core.wire import AllBlocksCleared, BlockRemoved, BlockStored, to_integer
from penstock.router.decisions.kv_index import DEFAULT_WORTH, SMALLEST_BUDGET, KVIndex, Numbers, Tier, table
from penstock.router.decisions.kv_index.budget import capacity
from penstock.router.decisions.kv_index.table import BlockTable

SLOTS = 4
Path = tuple[int, ...]


def digest(path: Path) -> bytes:
    """A block's 32-byte hash is that of the whole way to it, as an engine's is."""
    return sha256(repr(path).encode()).digest()


FINE = 3
"""Blocks for each step of a path, so that intervals are long enough for halving to skip something."""


@cache
def digests(path: Path) -> list[bytes]:
    fine = tuple(step for step in path for _ in range(FINE))
    return [digest(fine[: i + 1]) for i in range(len(fine))]


@cache
def chain(path: Path) -> list[int]:
    return [to_integer(each) for each in digests(path)]


class Naive:
    """Counters of each cache, and the definition of a longest prefix."""

    def __init__(self) -> None:
        self.caches: dict[tuple[int, int, Tier], Counter[int]] = {}

    def cache(self, slot: int, rank: int, tier: Tier) -> Counter[int]:
        return self.caches.setdefault((slot, rank, tier), Counter())

    def drop(self, slot: int, rank: int | None) -> None:
        self.caches = {k: c for k, c in self.caches.items() if k[0] != slot or rank not in (None, k[1])}

    def worth(self, keys: Sequence[int], weights: dict[Tier, float]) -> list[float]:
        best = [0.0] * SLOTS
        for slot, rank in {(slot, rank) for slot, rank, _ in self.caches}:
            total = 0.0
            for key in keys:
                tiers = [t for t in Tier if self.caches.get((slot, rank, t), Counter())[key] > 0]
                if not tiers:
                    break
                total += weights[min(tiers)]
            best[slot] = max(best[slot], total)
        return best


paths = st.lists(st.integers(0, 1), min_size=1, max_size=7).map(tuple)
caches = st.tuples(
    st.integers(0, SLOTS - 1),
    st.sampled_from((0, 0, 0, 1)),
    st.sampled_from((Tier.GPU, Tier.GPU, Tier.GPU, Tier.GPU, Tier.CPU, Tier.REMOTE)),
)
operations = st.one_of(
    st.tuples(st.just("store"), caches, paths, st.integers(0, 20)),
    st.tuples(st.just("store"), caches, paths, st.just(0)),
    st.tuples(st.just("loose"), caches, paths, st.integers(0, 20)),
    st.tuples(st.just("remove"), caches, paths, st.integers(0, 20)),
    st.tuples(st.just("tail"), caches, paths, st.just(0)),
    st.tuples(st.just("clear"), caches, paths, st.just(0)),
    st.tuples(st.just("gone"), caches, paths, st.just(0)),
    st.tuples(st.just("sweep"), caches, paths, st.integers(1, 6)),
)


def play(index: KVIndex, naive: Naive, operation: tuple) -> None:
    kind, (slot, rank, tier), path, start = operation
    keys = chain(path)
    start = min(start, len(keys) - 1)
    parent = keys[start - 1] if start else None
    held = naive.cache(slot, rank, tier)
    match kind:
        case "store":
            index.store(slot, keys[start:], parent, rank, tier)
            held.update(keys[start:])
        case "loose":
            index.store(slot, keys[start:], None, rank, tier, linked=False)
            held.update(keys[start:])
        case "remove" | "tail":
            gone = [keys[start]] if kind == "remove" else keys[::-1]
            index.remove(slot, gone, rank, tier)
            for key in gone:
                held[key] = max(0, held[key] - 1)
        case "clear":
            index.clear(slot, rank)
            naive.drop(slot, rank)
        case "gone":
            index.remove_worker(slot)
            naive.drop(slot, None)
        case "sweep":
            index.sweep(start)


ALL_PATHS = [tuple(int(b) for b in f"{n:0{7}b}") for n in range(0, 128, 5)]


@settings(max_examples=300, deadline=None)
@given(st.lists(operations, max_size=60), st.booleans())
def test_equals_a_naive_model_under_any_order_of_events(history: list[tuple], as_bytes: bool):
    index, naive = KVIndex(SMALLEST_BUDGET), Naive()
    for operation in history:
        play(index, naive, operation)
    ones = dict.fromkeys(Tier, 1.0)
    for path in [*ALL_PATHS, *(operation[2] for operation in history)]:
        keys = chain(path)
        asked = digests(path) if as_bytes else keys
        assert index.longest_prefix(asked, SLOTS).tolist() == naive.worth(keys, ones)
        assert index.worth(asked, SLOTS) == pytest.approx(naive.worth(keys, dict(DEFAULT_WORTH)))
    for (slot, rank, tier), blocks in naive.caches.items():
        for key, count in blocks.items():
            assert index.copies(slot, key, rank, tier) == count
    for slot in range(SLOTS):
        held = sum(1 for k, c in naive.caches.items() if k[0] == slot for count in c.values() if count)
        assert index.blocks_of(slot) == held


@settings(max_examples=200, deadline=None)
@given(st.lists(operations, max_size=60), st.integers(0, SLOTS - 1))
def test_a_removed_worker_leaves_nothing_behind(history: list[tuple], slot: int):
    index, naive = KVIndex(SMALLEST_BUDGET), Naive()
    for operation in history:
        play(index, naive, operation)
    for each in range(SLOTS):
        index.remove_worker(each)
        if each == slot:
            assert not index.blocks_of(slot)
            for path in ALL_PATHS:
                assert index.longest_prefix(chain(path), SLOTS)[slot] == 0
    while index.sweep(3):
        pass
    stats = index.stats()
    assert (stats.blocks, stats.lanes, stats.torn_lanes, stats.copies) == (0, 0, 0, 0)
    assert index._table.units == 0
    assert not index._table.held


@settings(max_examples=300, deadline=None)
@given(st.lists(operations, max_size=80), st.integers(40, 80))
def test_a_small_budget_is_never_exceeded_and_never_invents_a_hit(history: list[tuple], limit: int):
    index, naive = KVIndex(SMALLEST_BUDGET), Naive()
    index._table = BlockTable(limit)
    ones = dict.fromkeys(Tier, 1.0)
    for operation in history:
        play(index, naive, operation)
        assert index._table.units <= limit
        keys = chain(operation[2])
        assert (index.longest_prefix(keys, SLOTS) <= np.array(naive.worth(keys, ones))).all()
        # A tear too few would show as a prefix that jumps over what was evicted.
        for slot in range(SLOTS):
            assert index.longest_prefix(keys, SLOTS)[slot] == brute_force(index, keys, slot)


def brute_force(index: KVIndex, keys: Sequence[int], slot: int) -> int:
    """The definition, read from the index's own counts."""
    best = 0
    for rank in (0, 1):
        depth = 0
        while depth < len(keys) and any(index.copies(slot, keys[depth], rank, tier) for tier in Tier):
            depth += 1
        best = max(best, depth)
    return best


def test_a_second_copy_outlives_the_first():
    index = KVIndex(SMALLEST_BUDGET)
    keys = chain((1,))
    index.store(0, keys)
    for _ in range(2):
        index.store(0, keys[2:], keys[1])
    index.remove(0, keys[2:])
    index.remove(0, keys[2:])
    assert index.longest_prefix(keys, 1).tolist() == [3]
    index.remove(0, keys[2:])
    assert index.longest_prefix(keys, 1).tolist() == [2]
    index.remove(0, keys[2:])
    assert (index.copies(0, keys[2]), index.stats().unknown_removals) == (0, 1)


def test_a_hole_in_the_middle_ends_the_prefix_until_it_is_filled():
    index = KVIndex(SMALLEST_BUDGET)
    keys = chain(tuple(range(100)))[:100]
    for slot in range(3):
        index.store(slot, keys)
    index.remove(1, [keys[50]])
    assert index.longest_prefix(keys, 3).tolist() == [100, 50, 100]
    assert index.stats().torn_lanes == 1
    index.store(1, [keys[50]], keys[49])
    assert index.longest_prefix(keys, 3).tolist() == [100, 100, 100]
    assert index.stats().torn_lanes == 0, "mended: fast again"


def test_integers_carried_as_hashes_are_the_hashes_that_they_are():
    index = KVIndex(SMALLEST_BUDGET)
    blocks = tuple(chain((1, 2, 3)))
    carried = Numbers(blocks)
    index.store(2, list(carried[:5]))
    assert carried[0] == blocks[0].to_bytes(8, "big") and len(carried) == len(blocks)
    assert carried.tolist() == list(carried)
    for asked in (carried, list(carried), blocks):
        assert index.longest_prefix(asked, SLOTS).tolist() == [0, 0, 5, 0]
    assert index.longest_prefix(carried[:3], SLOTS)[2] == 3


def test_a_cache_first_seen_when_half_full_is_not_matched_over_what_was_never_told():
    index = KVIndex(SMALLEST_BUDGET)
    keys = chain(tuple(range(64)))[:64]
    index.store(0, keys)
    index.store(1, keys[:8])
    index.store(1, keys[40:], keys[39])
    assert index.longest_prefix(keys, 2).tolist() == [64, 8]


def test_events_are_taken_as_engines_send_them():
    index = KVIndex(SMALLEST_BUDGET)
    path = (1, 2, 3, 4)
    keys, whole = chain(path)[:4], digests(path)[:4]
    index.apply(0, BlockStored(block_hashes=whole, token_ids=[1] * 64, block_size=16, medium="GPU"))
    index.apply(1, BlockStored(block_hashes=keys[:2], token_ids=[1] * 32, block_size=16))
    index.apply(1, BlockStored(block_hashes=keys[2:], medium="CPU", parent_block_hash=keys[1]))
    assert index.longest_prefix(keys, 2).tolist() == [4, 4]
    assert index.worth(keys, 2).tolist() == pytest.approx([4.0, 2 + 2 * DEFAULT_WORTH[Tier.CPU]])
    index.apply(1, BlockRemoved(block_hashes=[keys[3]], medium="CPU"))
    index.apply(0, BlockRemoved(block_hashes=[keys[3]], medium="CPU"))
    assert index.longest_prefix(whole, 2).tolist() == [4, 3], "slot 0 held it on another tier"
    index.apply(0, AllBlocksCleared())
    assert index.longest_prefix(keys, 2).tolist() == [0, 3]


def test_blocks_of_a_sliding_window_are_no_prefix():
    index = KVIndex(SMALLEST_BUDGET)
    keys = chain((1,))[:2]
    index.apply(0, _full(keys))
    index.apply(0, _window(keys))
    index.apply(0, BlockRemoved(block_hashes=keys, group_idx=1))
    assert index.longest_prefix(keys, 1).tolist() == [2], "the window's removal is not the full cache's"
    index.apply(0, BlockRemoved(block_hashes=keys[1:], group_idx=0))
    assert index.longest_prefix(keys, 1).tolist() == [1]


def _full(keys: list[int]) -> BlockStored:
    return BlockStored(block_hashes=keys, token_ids=[1], group_idx=0, kv_cache_spec_kind="full_attention")


def _window(keys: list[int]) -> BlockStored:
    return BlockStored(block_hashes=keys, token_ids=[1], group_idx=1, kv_cache_spec_kind="sliding_window")


def test_the_best_rank_of_a_worker_counts():
    index = KVIndex(SMALLEST_BUDGET)
    keys = chain((1,))
    index.store(0, keys[:1], rank=0)
    index.store(0, keys, rank=1)
    assert index.longest_prefix(keys, 2).tolist() == [3, 0]
    index.clear(0, rank=1)
    assert index.longest_prefix(keys, 2).tolist() == [1, 0]


def test_clearing_over_and_over_does_not_widen_the_masks():
    index = KVIndex(SMALLEST_BUDGET)
    keys = chain((1,))
    for _ in range(2000):
        index.store(0, keys)
        index.clear(0)
    assert index._next <= 128
    assert index.longest_prefix(keys, 1).tolist() == [0]


def test_a_matched_prefix_outlives_colder_blocks_and_goes_from_its_end():
    index = KVIndex(SMALLEST_BUDGET)
    limit = capacity(SMALLEST_BUDGET, 64)
    hot = [to_integer(digest((0, i))) for i in range(65)]
    index.store(0, hot)
    for number in range(1, limit // 8):
        index.store(0, [to_integer(digest((number, i))) for i in range(17)])
        assert index.longest_prefix(hot, 1)[0] == 65, f"evicted after {number} prompts though asked for each time"
    stats = index.stats()
    assert stats.evicted > limit / 2
    assert stats.torn_lanes == 0, "leaves go before their parents"
    for number in range(limit // 8, limit // 4):
        index.store(0, [to_integer(digest((number, i))) for i in range(17)])
    assert index.longest_prefix(hot, 1)[0] == 0, "never asked for again"


def test_the_budget_holds_in_real_bytes():
    budget = 4 << 20
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        index = KVIndex(budget)
        highest = 0
        for number in range(3000):
            slot = number % 64
            # Fresh integers every time, as a decoder makes them; shared beginnings, so that masks differ.
            path = (number // 64 % 7, *range(number % 3), *range(number, number + 20))
            keys = [to_integer(digest(path[: i + 1])) for i in range(len(path))]
            index.store(slot, keys)
            index.store(slot, keys[-1:], keys[-2])
            index.longest_prefix(keys, 64)
            used = tracemalloc.get_traced_memory()[0] - start
            highest = max(highest, used)
            assert used <= budget
            assert index.stats().bytes <= budget
        stats = index.stats()
        assert stats.evicted > 0, "the budget was never felt"
        assert highest > budget / 3, "the budget is there to be used"
        assert stats.bytes == pytest.approx(tracemalloc.get_traced_memory()[0] - start, rel=0.35)
    finally:
        tracemalloc.stop()


def test_a_budget_too_small_for_anything_is_refused():
    with pytest.raises(ValueError, match="needs at least"):
        KVIndex(1000)


def test_a_link_whose_ends_came_in_different_events_is_still_known():
    index = KVIndex(SMALLEST_BUDGET)
    keys = chain((1,))
    index.store(0, keys)
    index.remove(0, keys[:1])
    # Nobody holds the first block now; another worker brings it back, and the second in an event of its own.
    index.store(1, keys[:1])
    index.store(1, keys[1:], keys[0])
    index.remove(1, keys[:1])
    assert index.longest_prefix(keys, 2).tolist() == [0, 0]
    index.store(0, keys[:1])
    assert index.longest_prefix(keys, 2).tolist() == [3, 0]


def test_a_chain_deeper_than_can_be_followed_down_is_evicted_from_its_middle_and_torn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table, "_DEEPEST", 10)
    index = KVIndex(SMALLEST_BUDGET)
    index._table = BlockTable(100)
    keys = chain(tuple(range(40)))
    for start in range(0, len(keys), 3):
        index.store(0, keys[start : start + 3], keys[start - 1] if start else None)
        assert index._table.units <= 100
        assert index.longest_prefix(keys, 1)[0] == brute_force(index, keys, 0)
    assert index.stats().evicted > 0


def test_every_unit_is_counted_when_events_are_long():
    index = KVIndex(SMALLEST_BUDGET)
    index._table = BlockTable(1000)
    for number in range(50):
        path = (number % 5, *range(number % 7), number)
        keys = [to_integer(digest(path[: i + 1])) for i in range(len(path))]
        for _ in range(3):
            index.store(number % 4, keys * 40)
            assert index._table.units <= 1000


def test_a_block_twice_in_one_event_is_two_copies():
    index = KVIndex(SMALLEST_BUDGET)
    keys = chain((1, 2))
    index.store(0, [keys[0], keys[1], keys[0], keys[1], keys[2]])
    assert [index.copies(0, key) for key in keys] == [2, 2, 1, 0, 0, 0]
    index.store(1, [*keys, keys[5]])
    assert [index.copies(1, key) for key in keys] == [1, 1, 1, 1, 1, 2]
    index.remove(0, keys[:1])
    assert index.longest_prefix(keys, 2).tolist() == [3, 6]
    index.remove(0, keys[:1])
    assert index.longest_prefix(keys, 2).tolist() == [0, 6]
    assert index.stats().torn_lanes == 1


def test_links_that_a_loose_store_left_out_are_made_up_for():
    index = KVIndex(SMALLEST_BUDGET)
    keys = chain((1,))
    index.store(0, keys, linked=False)
    index.clear(0)
    index.store(0, keys)
    index.remove(0, keys[1:2])
    assert index.longest_prefix(keys, 1).tolist() == [1]
