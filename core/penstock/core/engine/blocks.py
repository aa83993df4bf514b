"""The paged KV cache: reference-counted blocks, a hash table over them, least recently used ones overwritten first.

Every block is either in use or free; free blocks keep their hash, and so can be found again, until they are taken. The
order of eviction: blocks without a hash first, then those never used, then least recently given back, and of one
sequence the tail before the head, because a head without its tail is still worth something.

Only a block with a hash can have several users, and so only of those users are counted one by one: what a long answer
takes and gives back costs next to nothing.

A block costs memory from its first use on only, so that a cache of any size, an endless one included, can be had.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

__all__ = ["BlockPool"]


class BlockPool:
    """A fixed number of blocks, named 0 to size - 1. Not safe for several threads."""

    __slots__ = ("_blank", "_copies", "_found", "_hash_of", "_nameless", "_references", "_removed", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        # Of the blocks ever used: the sequences that use each one with a hash, 0 for one without.
        self._references: list[int] = []
        self._hash_of: list[int | None] = []
        self._nameless = 0  # Blocks in use without a hash; each has one user.
        # Hash -> the block that holds it, or several, oldest first: nearly always one, which needs no list.
        self._copies: dict[int, int | list[int]] = {}
        self._blank: list[int] = []  # Free blocks that were used and have no hash; the last one is taken first.
        self._found: OrderedDict[int, None] = OrderedDict()  # Free blocks with a hash, least recently used first.
        self._removed: list[int] = []

    @property
    def free(self) -> int:
        """Blocks nobody uses, cached ones included."""
        return self.size - len(self._references) + len(self._blank) + len(self._found)

    @property
    def untouched(self) -> int:
        """Blocks that were never used."""
        return self.size - len(self._references)

    @property
    def empty(self) -> int:
        """Free blocks that hold nothing: taking one of the others makes the cache forget something."""
        return self.size - len(self._references) + len(self._blank)

    @property
    def cached(self) -> int:
        """Distinct hashes that can be found."""
        return len(self._copies)

    @property
    def usage(self) -> float:
        """Share of the blocks in use, 0 to 1; cached but unused ones do not count."""
        return 1.0 - self.free / self.size

    def match(self, hashes: Sequence[int], limit: int) -> list[int]:
        """Blocks that hold the longest cached prefix of `hashes`, at most `limit`. Takes nothing."""
        found: list[int] = []
        for block_hash in hashes[:limit]:
            copies = self._copies.get(block_hash)
            if copies is None:
                break
            found.append(copies if isinstance(copies, int) else copies[0])
        return found

    def can_take(self, count: int, shared: Sequence[int]) -> bool:
        """Whether `count` new blocks would be left after `shared` (from `match`) are put to use."""
        idle = sum(not self._references[block] for block in shared)
        return self.free - idle >= count

    def share(self, blocks: Iterable[int]) -> None:
        """Use blocks that `match` found."""
        for block in blocks:
            if not self._references[block]:
                del self._found[block]
            self._references[block] += 1

    def take(self, count: int) -> list[int]:
        """Use `count` blocks for new content, forgetting what they held. Raises ValueError when fewer are free."""
        if count > self.free:
            raise ValueError(f"{count} blocks wanted, {self.free} of {self.size} are free")
        self._nameless += count
        blank = self._blank
        kept = max(0, len(blank) - count)
        taken = blank[kept:]
        del blank[kept:]
        if len(taken) < count:
            taken += self._take_untouched(min(count - len(taken), self.untouched))
            while len(taken) < count:
                taken.append(self._overwrite())
        return taken

    def give_back(self, blocks: Sequence[int]) -> None:
        """One user of each of these blocks is done with it. They are of one sequence, in its order: those with a hash
        come first. Raises ValueError when that many are not in use."""
        hash_of, named = self._hash_of, 0
        for block in blocks:
            if hash_of[block] is None:
                break
            named += 1
        nameless = len(blocks) - named
        if nameless > self._nameless:
            raise ValueError(f"{nameless} blocks given back of {self._nameless} in use, so one was given back twice")
        self._nameless -= nameless
        if not named:
            self._blank += reversed(blocks)
            return
        self._blank += blocks[: named - 1 : -1]
        self._let_go(blocks[named - 1 :: -1])

    def remember(self, block: int, block_hash: int) -> None:
        """Make a block that is in use findable by its content's hash."""
        if not self._nameless or self._hash_of[block] is not None:
            raise ValueError(f"block {block} is free or already known by a hash")
        self._nameless -= 1
        self._references[block] = 1
        self._hash_of[block] = block_hash
        copies = self._copies.setdefault(block_hash, block)
        if isinstance(copies, list):
            copies.append(block)
        elif copies != block:
            self._copies[block_hash] = [copies, block]

    def forget_all(self) -> bool:
        """Drop every hash; False, and nothing is done, while any block is in use."""
        if self.free < self.size:
            return False
        self._copies.clear()
        self._blank += self._found
        self._found.clear()
        self._hash_of = [None] * len(self._hash_of)
        return True

    def drain_removed(self) -> list[int]:
        """Hashes that `take` overwrote since the last call, once per copy."""
        removed, self._removed = self._removed, []
        return removed

    def references(self) -> tuple[int, ...]:
        """Users of each block that was ever used, for checks of conservation."""
        users = [count if name is not None else 1 for count, name in zip(self._references, self._hash_of, strict=True)]
        for block in self._blank:
            users[block] = 0
        return tuple(users)

    def _let_go(self, blocks: Sequence[int]) -> None:
        """One user of each of these blocks with a hash is done with it."""
        references, found = self._references, self._found
        for block in blocks:
            users = references[block]
            if users == 1:
                references[block] = 0
                found[block] = None
            elif users:
                references[block] = users - 1
            else:
                raise ValueError(f"block {block} given back twice")

    def _take_untouched(self, count: int) -> range:
        first = len(self._references)
        self._references += [0] * count
        self._hash_of += [None] * count
        return range(first, first + count)

    def _overwrite(self) -> int:
        block, _ = self._found.popitem(last=False)
        block_hash = self._hash_of[block]
        if block_hash is not None:
            self._forget(block, block_hash)
        return block

    def _forget(self, block: int, block_hash: int) -> None:
        self._hash_of[block] = None
        copies = self._copies[block_hash]
        if isinstance(copies, int):
            del self._copies[block_hash]
        else:
            copies.remove(block)
            if len(copies) == 1:
                self._copies[block_hash] = copies[0]
        self._removed.append(block_hash)
