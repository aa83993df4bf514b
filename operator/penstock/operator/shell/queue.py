"""The retrying work queue between what is watched and what is reconciled.

One key is one ModelDeployment. A key waits in the queue at most once and is worked on by at most one task at a time;
a key that changes while being worked on comes back afterwards. Failures back off exponentially with full jitter, per
key; a token bucket bounds the rate of all together. The queue is bounded by the number of deployments there are.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass

Key = tuple[str, str]
"""(namespace, name) of a ModelDeployment."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the queue hands out keys. Times in seconds."""

    backoff_base_s: float = 0.5
    """Mean of twice the first retry's wait (full jitter draws from zero to here)."""
    backoff_cap_s: float = 60.0
    """Longest wait between retries of a key that keeps failing."""
    rate_per_s: float = 200.0
    """Reconciles a second over all keys, in the long run."""
    burst: float = 400.0
    """Reconciles that may come at once after a quiet time."""


class WorkQueue:
    """Keys to reconcile. All methods belong to one event loop."""

    def __init__(self, *, clock: Callable[[], float], random: Callable[[], float], pace: Pace | None = None) -> None:
        self._clock = clock
        self._random = random
        self._pace = pace or Pace()
        self._due: dict[Key, float] = {}  # when each waiting key may start; the truth behind the heap
        self._heap: list[tuple[float, int, Key]] = []  # may hold stale entries: those that disagree with _due
        self._order = itertools.count()
        self._working: set[Key] = set()
        self._again: dict[Key, float] = {}  # keys touched while being worked on, and when they are due
        self._failures: dict[Key, int] = {}
        self._tokens = self._pace.burst
        self._tokens_at = clock()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due) + len(self._again)

    @property
    def working(self) -> int:
        """Keys being worked on now."""
        return len(self._working)

    def add(self, key: Key, after_s: float = 0.0) -> None:
        """Ask for a reconcile of `key`, at the latest `after_s` from now; an earlier request stands."""
        due = self._clock() + after_s
        if key in self._working:
            self._again[key] = min(due, self._again.get(key, due))
            return
        if key in self._failures:
            due = max(due, self._due.get(key, due))  # events do not shorten a back-off
        elif key in self._due and self._due[key] <= due:
            return
        self._put(key, due)

    async def take(self) -> Key:
        """The next key that is due; `done` or `failed` must follow."""
        while True:
            wait = self._wait_s()
            if wait == 0.0:
                return self._pop()
            self._changed.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def done(self, key: Key, again_after_s: float | None = None) -> None:
        """The key was reconciled; look again after `again_after_s` even if nothing changes."""
        self._failures.pop(key, None)
        self._finish(key)
        if again_after_s is not None:
            self.add(key, again_after_s)

    def failed(self, key: Key, at_least_s: float = 0.0) -> float:
        """The key must be retried; gives the wait in seconds."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        ceiling = min(self._pace.backoff_cap_s, self._pace.backoff_base_s * 2.0 ** min(count, 30))
        wait = max(at_least_s, ceiling * self._random())
        self._working.discard(key)
        self._again.pop(key, None)
        self._put(key, self._clock() + wait)
        return wait

    def forget(self, key: Key) -> None:
        """The key's object is gone: drop its history."""
        self._failures.pop(key, None)

    def _finish(self, key: Key) -> None:
        self._working.discard(key)
        due = self._again.pop(key, None)
        if due is not None:
            self._put(key, due)

    def _put(self, key: Key, due: float) -> None:
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._order), key))
        self._changed.set()

    def _wait_s(self) -> float | None:
        """Seconds until a key may start; 0.0 now, None while there is none."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if not self._heap:
            return None
        now = self._clock()
        self._tokens = min(self._pace.burst, self._tokens + (now - self._tokens_at) * self._pace.rate_per_s)
        self._tokens_at = now
        for_token = 0.0 if self._tokens >= 1.0 else (1.0 - self._tokens) / self._pace.rate_per_s
        return max(0.0, self._heap[0][0] - now, for_token)

    def _pop(self) -> Key:
        _, _, key = heapq.heappop(self._heap)
        del self._due[key]
        self._working.add(key)
        self._tokens -= 1.0
        return key
