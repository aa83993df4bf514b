"""The waiting queue: first come first served, or by priority; what was preempted comes before what never ran."""

from __future__ import annotations

import heapq

from penstock.core.engine.active import Active

__all__ = ["WaitingQueue"]


class WaitingQueue:
    """A heap on (priority, arrival order). Removal marks the entry and the heap skips it later, so all is O(log n)."""

    __slots__ = ("_heap", "_members")

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, int], Active]] = []
        self._members: dict[str, Active] = {}  # The truth; heap entries that are not in it are dead.

    def __len__(self) -> int:
        return len(self._members)

    def push(self, active: Active) -> None:
        """Add one; its rank decides its place, so a preempted one comes back to where it was."""
        self._members[active.id] = active
        heapq.heappush(self._heap, (active.rank, active))

    def head(self) -> Active | None:
        """The next in line, left where it is."""
        while self._heap:
            active = self._heap[0][1]
            if self._members.get(active.id) is active:
                return active
            heapq.heappop(self._heap)
        return None

    def remove(self, active: Active) -> None:
        """Take one out, head or not."""
        del self._members[active.id]
