"""The paged KV cache: reference-counted blocks, a hash table over them, least recently used ones overwritten first.

Every block is either in use or free; free blocks keep their hash, and so can be found again, until they are taken. The
order of eviction: blocks without a hash first, then least recently given back, and of one sequence the tail before the
head, because a head without its tail is still worth something.

Which of the blocks without a hash a sequence has makes no difference to anybody, so they are only counted: what a long
answer takes and gives back costs next to nothing. A block with a hash goes by that hash, and whole runs of them are
found, named and given back at once. A cache of any size, an endless one included, takes memory for what it holds only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice, takewhile
from typing import NamedTuple

__all__ = ["Block", "BlockPool", "Copy"]


class Copy(NamedTuple):
    """A block whose content another block had already when it got its hash."""

    hash: int
    number: int


Block = int | Copy
"""A block with a hash: the hash, or one more block with the same content."""


class BlockPool:
    """A fixed number of blocks. Not safe for several threads."""

    __slots__ = ("_cached", "_copied", "_copies", "_found", "_named", "_nameless", "_shared", "removed", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._nameless = 0  # Blocks in use without a hash; each has one user.
        self._named = 0  # Blocks with a hash, in use or free.
        self._cached: set[int] = set()  # Hashes that can be found.
        # Those that are not in one block alone which goes by the hash: their blocks, oldest first. Mostly empty.
        self._copies: dict[int, list[Block]] = {}
        self._copied = 0  # Numbers given to copies so far.
        self._shared: dict[Block, int] = {}  # Users beyond the first, never 0.
        self._found: OrderedDict[Block, None] = OrderedDict()  # Free blocks with a hash, least recently used first.
        self.removed: list[int] = []
        """Hashes that `take` overwrote since `drain_removed`, once per copy."""

    @property
    def free(self) -> int:
        """Blocks nobody uses, cached ones included."""
        return self.size - self._nameless - self._named + len(self._found)

    @property
    def nameless(self) -> int:
        """Blocks in use that have no hash."""
        return self._nameless

    @property
    def empty(self) -> int:
        """Free blocks that hold nothing: taking one of the others makes the cache forget something."""
        return self.size - self._nameless - self._named

    @property
    def cached(self) -> int:
        """Distinct hashes that can be found."""
        return len(self._cached)

    @property
    def usage(self) -> float:
        """Share of the blocks in use, 0 to 1; cached but unused ones do not count."""
        return 1.0 - self.free / self.size

    def match(self, hashes: Sequence[int], limit: int) -> list[Block]:
        """Blocks that hold the longest cached prefix of `hashes`, at most `limit`. Takes nothing."""
        found: list[Block] = list(takewhile(self._cached.__contains__, islice(hashes, limit)))
        copies = self._copies
        if copies and not copies.keys().isdisjoint(found):
            return [copies[name][0] if name in copies else name for name in found]
        return found

    def can_take(self, count: int, shared: Sequence[Block]) -> bool:
        """Whether `count` new blocks would be left after `shared` (from `match`) are put to use."""
        left = self.free - count
        return left >= len(shared) or left >= sum(map(self._found.__contains__, shared))

    def share(self, blocks: Sequence[Block]) -> None:
        """Use blocks that `match` found."""
        found, shared = self._found, self._shared
        for block in blocks:
            if block in found:
                del found[block]
            else:
                shared[block] = shared.get(block, 0) + 1

    def take(self, count: int) -> None:
        """Use `count` blocks for new content, forgetting what they held. Raises ValueError when fewer are free."""
        overwritten = self._nameless + self._named + count - self.size
        if overwritten > len(self._found):
            raise ValueError(f"{count} blocks wanted, {self.free} of {self.size} are free")
        self._nameless += count
        for _ in range(overwritten):
            self._forget(self._found.popitem(last=False)[0])

    def remember(self, hashes: Sequence[int]) -> list[Block]:
        """Make so many blocks that are in use findable by the hashes of their contents: the blocks, in that order.
        Raises ValueError when fewer without a hash are in use."""
        count = len(hashes)
        if count > self._nameless:
            raise ValueError(f"{count} blocks to be known by a hash, {self._nameless} in use have none")
        self._nameless -= count
        self._named += count
        cached = self._cached
        if cached.isdisjoint(hashes):
            before = len(cached)
            cached.update(hashes)
            if len(cached) - before == count:
                return list(hashes)
            cached.difference_update(hashes)  # One of them twice: one by one.
        return [self._name(block_hash) for block_hash in hashes]

    def give_back(self, blocks: Sequence[Block], nameless: int = 0) -> None:
        """One user of each of these blocks, in a sequence's order, is done with it, and so is that of so many without a
        hash. Raises ValueError when that many are not in use."""
        if nameless > self._nameless:
            raise ValueError(f"{nameless} blocks given back of {self._nameless} in use, so one was given back twice")
        self._nameless -= nameless
        found, shared = self._found, self._shared
        expected = len(found) + len(blocks)
        # Loops, as `OrderedDict.update` takes half as long again.
        if not shared or shared.keys().isdisjoint(blocks):
            for block in reversed(blocks):
                found[block] = None
        else:
            expected -= self._share_less(blocks)
        if len(found) != expected:
            raise ValueError(f"{expected - len(found)} of {len(blocks)} blocks with a hash given back twice")

    def forget_all(self) -> bool:
        """Drop every hash; False, and nothing is done, while any block is in use."""
        if self.free < self.size:
            return False
        self._cached.clear()
        self._copies.clear()
        self._found.clear()
        self._named = 0
        return True

    def drain_removed(self) -> list[int]:
        """What `removed` lists, which is empty then."""
        removed, self.removed = self.removed, []
        return removed

    def users(self) -> dict[Block, int]:
        """Users of each block with a hash, for checks of conservation."""
        single: list[Block] = [name for name in self._cached if name not in self._copies]
        copies = [block for blocks in self._copies.values() for block in blocks]
        return {block: 0 if block in self._found else 1 + self._shared.get(block, 0) for block in single + copies}

    def _name(self, block_hash: int) -> Block:
        """One more block has this hash."""
        if block_hash not in self._cached:
            self._cached.add(block_hash)
            return block_hash
        self._copied += 1
        copy = Copy(block_hash, self._copied)
        self._copies.setdefault(block_hash, [block_hash]).append(copy)
        return copy

    def _share_less(self, blocks: Sequence[Block]) -> int:
        """As `give_back`, where other users are left of some: how many those are."""
        found, shared, kept = self._found, self._shared, 0
        for block in reversed(blocks):
            others = shared.pop(block, 0)
            if not others:
                found[block] = None
                continue
            kept += 1
            if others > 1:
                shared[block] = others - 1
        return kept

    def _forget(self, block: Block) -> None:
        name = block if isinstance(block, int) else block.hash
        copies = self._copies.get(name)
        if copies is None:
            self._cached.discard(name)
        else:
            copies.remove(block)
            if copies in ([], [name]):
                del self._copies[name]
            if not copies:
                self._cached.discard(name)
        self._named -= 1
        self.removed.append(name)
