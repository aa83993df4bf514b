"""Who has lent how many blocks to whom.

Every pool is as large as all memory together. A block is in use by a sequence, free, lent (taken from its owner's
pool), or closed: not there, because it is neither the worker's own nor borrowed. A loan opens as many blocks at the
debtor as it takes at the creditor, so what all workers together can use is always what they own. Pools tell blocks
without a hash by their number alone, and so does the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from penstock.core.engine.blocks import BlockPool

__all__ = ["Ledger"]


class Ledger:
    """The loans between pools. Workers go by their place in `pools`."""

    def __init__(self, pools: Sequence[BlockPool], own: Sequence[int]) -> None:
        """`own` are the blocks that each worker has; the rest of its pool is closed. Raises ValueError for a pool that
        is in use or too small."""
        for number, (pool, blocks) in enumerate(zip(pools, own, strict=True)):
            if not 0 < blocks <= pool.size or pool.free < pool.size:
                raise ValueError(f"pool {number} of {pool.size} blocks cannot begin with {blocks} of its own")
            pool.take(pool.size - blocks)
        self.own = tuple(own)
        self._pools = tuple(pools)
        self._closed = [pool.size - blocks for pool, blocks in zip(pools, own, strict=True)]
        self._loans: dict[tuple[int, int], int] = {}  # (debtor, creditor) -> blocks, above 0.

    def lend(self, debtor: int, creditor: int, blocks: int) -> None:
        """Raises ValueError for more than the creditor has free, and where it lends to itself or lends what it has
        borrowed."""
        if debtor == creditor or blocks < 1:
            raise ValueError(f"worker {creditor} cannot lend {blocks} blocks to worker {debtor}")
        if self.borrowed(creditor):
            raise ValueError(f"worker {creditor} has borrowed blocks itself, so it can lend none")
        self._pools[creditor].take(blocks)
        self._loans[debtor, creditor] = self._loans.get((debtor, creditor), 0) + blocks
        self._pools[debtor].give_back((), blocks)
        self._closed[debtor] -= blocks

    def give_back(self, debtor: int, creditor: int, blocks: int) -> None:
        """Raises ValueError for more than was borrowed there, or than the debtor has free."""
        owed = self._loans.get((debtor, creditor), 0)
        if not 1 <= blocks <= owed:
            raise ValueError(f"worker {debtor} owes worker {creditor} {owed} blocks and cannot return {blocks}")
        self._pools[debtor].take(blocks)
        self._closed[debtor] += blocks
        self._pools[creditor].give_back((), blocks)
        if blocks == owed:
            del self._loans[debtor, creditor]
        else:
            self._loans[debtor, creditor] = owed - blocks

    def loans(self) -> dict[tuple[int, int], int]:
        """(debtor, creditor) -> blocks."""
        return dict(self._loans)

    def creditors(self, debtor: int) -> dict[int, int]:
        """Creditor -> blocks."""
        return {creditor: blocks for (one, creditor), blocks in self._loans.items() if one == debtor}

    def borrowed(self, debtor: int) -> int:
        """Blocks it has from others."""
        return sum(blocks for (one, _), blocks in self._loans.items() if one == debtor)

    def lent(self, creditor: int) -> int:
        """Blocks it has given others."""
        return sum(blocks for (_, one), blocks in self._loans.items() if one == creditor)

    def used(self, number: int) -> int:
        """Blocks in use by a worker's own sequences, wherever they lie."""
        pool = self._pools[number]
        return pool.size - pool.free - self._closed[number] - self.lent(number)

    def away(self, number: int) -> int:
        """Blocks of its sequences that lie at creditors: what does not fit at home."""
        return max(0, self.used(number) - (self.own[number] - self.lent(number)))

    def violations(self, used: Sequence[int]) -> list[str]:
        """One sentence for each rule that is broken; `used` are the blocks that each worker's sequences have."""
        return [*self._conserved(), *self._used(used)]

    def _conserved(self) -> Iterator[str]:
        for number, (pool, own) in enumerate(zip(self._pools, self.own, strict=True)):
            there, borrowed, lent = pool.size - self._closed[number], self.borrowed(number), self.lent(number)
            if there != own + borrowed:
                yield f"worker {number} has {there} blocks, {own} of its own and {borrowed} borrowed"
            if not 0 <= lent <= own:
                yield f"worker {number} has lent {lent} of its {own} blocks"
        there = sum(pool.size for pool in self._pools) - sum(self._closed) - sum(self._loans.values())
        if there != sum(self.own):
            yield f"workers together have {there} blocks and own {sum(self.own)}"

    def _used(self, used: Sequence[int]) -> Iterator[str]:
        for number, blocks in enumerate(used):
            if blocks != self.used(number):
                yield f"sequences of worker {number} have {blocks} blocks, {self.used(number)} of its pool are in use"
            if self.away(number) > self.borrowed(number):
                yield f"worker {number} has {self.away(number)} blocks elsewhere and borrowed {self.borrowed(number)}"
