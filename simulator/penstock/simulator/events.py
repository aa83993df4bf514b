"""The virtual clock: events in one order that depends on nothing but what they are.

At one instant events happen by priority, then by key (which worker, which request), then by argument; the order in
which they were put into the queue decides only between events equal in all of that, and no two live ones are. So
neither the iteration order of some collection nor the history of the heap can change a run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

__all__ = [
    "ARRIVAL", "CHECK", "CYCLE", "DRAIN", "FAULT", "LEASE", "READY", "RESUMED", "SAMPLE", "SCRAPE", "STEP_ENDED",
    "TRANSFERRED", "WAKE", "EventQueue",
]  # fmt: skip

# Priorities at one instant: what ends comes before what it makes room for, and engines look round last.
STEP_ENDED, TRANSFERRED, LEASE, READY, FAULT, CHECK, SAMPLE, SCRAPE, DRAIN, CYCLE, RESUMED, ARRIVAL, WAKE = range(13)

Handler = Callable[[float, int], None]
"""Called with the time and the argument given to `at`."""


class EventQueue:
    """A heap of (time, priority, key, argument) with a handler each. Times are seconds and never go back."""

    __slots__ = ("_heap", "_numbers", "handled", "now")

    def __init__(self, numbers: Iterator[int] | None = None) -> None:
        """`numbers` break ties of the heap; any distinct ones give the same run, which tests make use of."""
        self._heap: list[tuple[float, int, int, int, int, Handler]] = []
        self._numbers = numbers if numbers is not None else count()
        self.now = 0.0
        self.handled = 0

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, time: float, priority: int, key: int, handler: Handler, argument: int = 0) -> None:
        """Have `handler(time, argument)` called at `time`. Raises ValueError for a time that is over."""
        if not time >= self.now:
            raise ValueError(f"an event at {time} s cannot be put before the present, {self.now} s")
        heapq.heappush(self._heap, (time, priority, key, argument, next(self._numbers), handler))

    def alone(self, time: float) -> bool:
        """Whether nothing else is to happen at this time."""
        return not self._heap or self._heap[0][0] > time

    def run(self, more: Callable[[], object], every: int = 0, tick: Callable[[], Any] | None = None) -> None:
        """Handle events in order while there are any and `more()` is true; `tick` is called each `every` events."""
        heap, pop = self._heap, heapq.heappop
        while heap and more():
            time, _, _, argument, _, handler = pop(heap)
            self.now = time
            self.handled += 1
            handler(time, argument)
            if tick is not None and self.handled % every == 0:
                tick()
