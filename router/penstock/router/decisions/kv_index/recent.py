"""What our own picks will have left in the workers' caches, for as long as no event tells.

A worker without KV events is known only by what we sent it; one with events tells of a prompt only after its prefill,
and until then equal prompts would scatter. So each pick is remembered with a time to live, in an index of its own: a
guess can never disturb what the engines said. Of both, the longer prefix counts.
"""

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from penstock.core.wire import BlockHash
from penstock.router.decisions.kv_index.index import IndexStats, KVIndex

_SWEEP_BLOCKS = 256
"""Blocks swept at each expiry: nothing to do unless a worker left, and then soon done."""

Ticket = tuple[int, int, Sequence[BlockHash]]
"""Slot, its generation at the pick, the prompt's blocks."""


class RecentPicks:
    """Blocks of recent picks by worker. Times are seconds of one monotonic clock."""

    def __init__(self, budget: int, max_blocks: int = 1 << 20) -> None:
        """`budget` bytes for the index; at most `max_blocks` hashes, over all picks, are kept for their expiry."""
        self._index = KVIndex(budget)
        self._max_blocks = max_blocks
        self._tickets: dict[int, Ticket] = {}
        self._expiries: list[tuple[float, int]] = []  # A heap; tickets dropped early are still in it.
        self._generations: dict[int, int] = {}
        self._blocks = 0  # Hashes in `_tickets`.
        self._next = 0

    def __len__(self) -> int:
        """Picks remembered now."""
        return len(self._tickets)

    def remember(self, slot: int, hashes: Sequence[BlockHash], now: float, ttl: float) -> int:
        """A prompt with these blocks goes to this worker. Returns the ticket for `drop`."""
        self.expire(now)
        ticket, self._next = self._next, self._next + 1
        if not hashes or len(hashes) > self._max_blocks:
            return ticket
        while self._blocks + len(hashes) > self._max_blocks:
            self.drop(heapq.heappop(self._expiries)[1])
        self._index.store(slot, hashes)
        self._tickets[ticket] = (slot, self._generations.get(slot, 0), hashes)
        self._blocks += len(hashes)
        heapq.heappush(self._expiries, (now + ttl, ticket))
        return ticket

    def drop(self, ticket: int) -> bool:
        """Forget one pick: it failed, or the worker's own events have confirmed it. False when it was gone already."""
        remembered = self._tickets.pop(ticket, None)
        if remembered is None:
            return False
        slot, generation, hashes = remembered
        self._blocks -= len(hashes)
        if generation == self._generations.get(slot, 0):
            self._index.remove(slot, hashes[::-1])
        if len(self._expiries) > 2 * len(self._tickets) + 64:
            self._expiries = [entry for entry in self._expiries if entry[1] in self._tickets]
            heapq.heapify(self._expiries)
        return True

    def expire(self, now: float) -> None:
        """Forget the picks whose time is up."""
        while self._expiries and self._expiries[0][0] <= now:
            self.drop(heapq.heappop(self._expiries)[1])
        self._index.sweep(_SWEEP_BLOCKS)

    def forget_worker(self, slot: int) -> None:
        """The worker is gone or has lost its cache: nothing remembered of it holds any more."""
        self._generations[slot] = self._generations.get(slot, 0) + 1
        self._index.remove_worker(slot)

    def longest_prefix(self, hashes: Sequence[BlockHash], slots: int) -> NDArray[np.int64]:
        """As `KVIndex.longest_prefix`, of what was remembered."""
        return self._index.longest_prefix(hashes, slots)

    def stats(self) -> IndexStats:
        """Its index in numbers."""
        return self._index.stats()
