"""KV kept after a prefill leg has ended, until the decode side has it or its lease runs out."""

from __future__ import annotations

from penstock.core.engine.blocks import Block
from penstock.core.engine.sequence import Held

__all__ = ["Kept", "Leases"]

Kept = tuple[list[Block], int]
"""Blocks with a hash, and how many without, as `BlockPool.give_back` takes them."""


class Leases:
    """The held KV of one engine, by sequence id. Blocks in here are in use; whoever takes them out gives them back."""

    __slots__ = ("_blocks", "_held")

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._blocks: dict[str, Kept] = {}  # Same keys as `_held`.

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._held

    def hold(self, held: Held, blocks: Kept) -> None:
        """Keep these blocks."""
        self._held[held.id] = held
        self._blocks[held.id] = blocks

    def release(self, sequence_id: str) -> Kept | None:
        """The blocks of a lease, which ends now; None when there is none."""
        if self._held.pop(sequence_id, None) is None:
            return None
        return self._blocks.pop(sequence_id)

    def expire(self, now: float) -> list[tuple[str, Kept]]:
        """(id, blocks) of every lease that has ended by `now`, earliest first."""
        if not self._held:
            return []
        over = [held.id for held in self.all() if held.until <= now]
        for name in over:
            del self._held[name]
        return [(name, self._blocks.pop(name)) for name in over]

    def blocks(self) -> tuple[Kept, ...]:
        """The blocks of each lease."""
        return tuple(self._blocks.values())

    def next_end(self) -> float | None:
        """When the next lease ends; None without one."""
        return min((held.until for held in self._held.values()), default=None)

    def all(self) -> tuple[Held, ...]:
        """Every lease, in the order it ends."""
        return tuple(sorted(self._held.values(), key=lambda held: (held.until, held.id)))
