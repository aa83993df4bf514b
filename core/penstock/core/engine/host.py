"""Host memory for the KV of preempted sequences: how much of it is taken, who is out there, what was copied."""

from __future__ import annotations

from bisect import insort

from penstock.core.engine.active import Active

__all__ = ["HostMemory"]


class HostMemory:
    """Sequences that are swapped out, next to come back first. Counts blocks; which ones they are matters to nobody."""

    __slots__ = ("_moved", "out", "size", "used")

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self.out: list[Active] = []
        self._moved = 0

    def __len__(self) -> int:
        return len(self.out)

    @property
    def usage(self) -> float:
        """Share of the blocks in use, 0 to 1."""
        return self.used / self.size if self.size else 0.0

    def has_room(self, blocks: int) -> bool:
        """Whether so many blocks more fit."""
        return self.used + blocks <= self.size

    def keep(self, active: Active, blocks: int) -> None:
        """Copy a sequence's KV here."""
        active.host_blocks = blocks
        self.used += blocks
        self._moved += blocks
        insort(self.out, active)

    def bring_back(self, active: Active, found: int) -> int:
        """Copy a sequence's KV to the device, where the first `found` blocks of it are cached still: blocks copied."""
        copied = max(0, active.host_blocks - found)
        self._moved += copied
        self.drop(active)
        return copied

    def drop(self, active: Active) -> None:
        """Forget a sequence's KV."""
        self.out.remove(active)
        self.used -= active.host_blocks
        active.host_blocks = 0

    def take_moved(self) -> int:
        """Blocks copied, either way, since the last call."""
        moved, self._moved = self._moved, 0
        return moved
