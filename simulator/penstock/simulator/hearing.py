"""What the router's index hears of the workers' caches, and what it misses when their events are lost."""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.core.engine import BlockEvent, BlockRemoved, BlockStored
from penstock.router.decisions.kv_index import KVIndex

__all__ = ["Hearing"]


@dataclass(slots=True)
class _Gap:
    """Events that did not come through. Gaps of one worker may overlap; the last one to end counts."""

    spells: int = 0
    replayed: bool = True
    missed: list[tuple[BlockEvent, ...]] = field(default_factory=list)


class Hearing:
    """Between the engines and the index; nothing happens where there is no index."""

    __slots__ = ("_gaps", "_index")

    def __init__(self, index: KVIndex | None) -> None:
        self._index = index
        self._gaps: dict[int, _Gap] = {}  # By slot.

    def hear(self, slot: int, events: tuple[BlockEvent, ...]) -> None:
        """A worker says what its cache holds now and what it lost."""
        if self._index is None:
            return
        gap = self._gaps.get(slot) if self._gaps else None
        if gap is not None:
            gap.missed.append(events)
            return
        for event in events:
            if type(event) is BlockStored:
                self._index.store(slot, event.hashes, event.parent)
            elif type(event) is BlockRemoved:
                self._index.remove(slot, (event.hash,))
            else:
                self._index.clear(slot)

    def lose(self, slot: int, *, replayed: bool) -> None:
        """From now on a worker's events do not come through."""
        gap = self._gaps.setdefault(slot, _Gap())
        gap.spells += 1
        gap.replayed = gap.replayed and replayed

    def regain(self, slot: int) -> None:
        """Events come through again: what was missed is replayed, or the index begins anew with this worker."""
        gap = self._gaps[slot]
        gap.spells -= 1
        if gap.spells:
            return
        del self._gaps[slot]
        if gap.replayed:
            for events in gap.missed:
                self.hear(slot, events)
        elif self._index is not None:
            self._index.clear(slot)

    def forget(self, slot: int) -> None:
        """The worker's cache is gone, with what was still to be said about it."""
        if slot in self._gaps:
            self._gaps[slot].missed.clear()
        if self._index is not None:
            self._index.clear(slot)

    def vacate(self, slot: int) -> None:
        """The worker is gone for good; another may have its slot."""
        self._gaps.pop(slot, None)
        if self._index is not None:
            self._index.clear(slot)
