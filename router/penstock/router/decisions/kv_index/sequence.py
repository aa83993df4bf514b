"""Which KV event batches to believe: a worker's stream of numbered batches, with gaps, replays and restarts.

ZeroMQ drops what a subscriber does not take in time, who comes late has missed the beginning, and an engine that
restarts counts from 0 again. Every one of these would leave blocks in the index that are not in the cache. So a
batch is applied only where it continues what was applied before; where something is missing the engine is asked for it
again, and where it cannot say, the worker is cleared and known only in part from then on.

A replay is always asked for from the last batch that was applied: if the engine does not begin with that very batch, it
is not the engine we knew, or it has forgotten the time between.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum

REPLAY_TIMEOUT = 10.0
"""Seconds of silence after which a replay is given up."""
MAX_HELD = 1024
"""Batches kept back during a replay; with more the replay would never catch up."""


class Knowledge(Enum):
    """How much of a worker's cache the index knows."""

    UNKNOWN = "Unknown"
    """Nothing heard yet, or nothing since it had to be cleared."""
    PARTIAL = "Partial"
    """What was stored since we listen; the cache may hold more."""
    COMPLETE = "Complete"
    """Everything since the cache was empty."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One numbered batch, read or not: `payload` is only passed on. `ts` is the engine's clock, seconds."""

    sequence: int
    ts: float
    payload: object


@dataclass(frozen=True, slots=True)
class Apply:
    """Take these events into the index."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Clear:
    """Forget all of this worker, because of `reason` (for logs and metrics)."""

    reason: str


@dataclass(frozen=True, slots=True)
class AskReplay:
    """Ask the engine for its batches from this number on."""

    start: int


Action = Apply | Clear | AskReplay


class SequenceTracker:
    """The state of one stream. Every method returns what to do, in order. Times are seconds of one monotonic clock."""

    def __init__(self, can_replay: bool) -> None:
        """`can_replay`: the engine has a replay endpoint."""
        self._can_replay = can_replay
        self._expected = 0  # Number of the next batch to apply.
        self._last_ts = -1.0  # Engine's time of the last applied batch.
        self._begun = False  # A batch was applied, or the engine said there is none yet.
        self._asked: int | None = None  # Start of the replay that runs.
        self._answered = False  # It has brought a batch.
        self._deadline = 0.0  # When the running replay is given up.
        self._held: deque[Batch] = deque()  # Live batches that came meanwhile, in order.
        self.knowledge = Knowledge.UNKNOWN
        self.changed_at: float | None = None  # When `knowledge` last changed.
        self.gaps = self.resyncs = self.duplicates = self.applied = 0

    @property
    def replaying(self) -> bool:
        """Whether a replay runs."""
        return self._asked is not None

    def connected(self, now: float) -> list[Action]:
        """The sockets are (again) connected: batches may have been missed meanwhile, or the engine is another one.

        Must be said before any batch of the new connection: numbers alone cannot tell a new engine that happens to be
        as far as the old one was.
        """
        self._held.clear()
        if self._can_replay:
            return self._ask(now)
        return (
            [self._clear("the connection was lost and the engine has no replay endpoint", now)] if self._begun else []
        )

    def live(self, batch: Batch, now: float) -> list[Action]:
        """A batch came by publication."""
        if self._asked is not None:
            return self._hold(batch, now)
        if not self._begun:
            return self._first(batch, now)
        if batch.sequence == self._expected:
            return [self._apply(batch, now)]
        if batch.sequence < self._expected and batch.ts <= self._last_ts:
            self.duplicates += 1
            return []
        if batch.sequence < self._expected:
            return self._restarted(batch, now)
        self.gaps += 1
        if self._can_replay:
            self._held.append(batch)
            return self._ask(now)
        return [self._clear("batches were lost and the engine has no replay endpoint", now), self._follow(batch, now)]

    def replayed(self, batch: Batch, now: float) -> list[Action]:
        """A batch came as part of a replay. One that was not asked for is ignored."""
        if self._asked is None:
            return []
        self._deadline = now + REPLAY_TIMEOUT
        first, self._answered = not self._answered, True
        if first and self._begun and self._expected > 0:
            return self._recognised(batch, now)
        if not self._begun:
            if batch.sequence == 0:
                self._know(Knowledge.COMPLETE, now)
            return [self._follow(batch, now)]
        if batch.sequence < self._expected:
            self.duplicates += 1
            return []
        if batch.sequence > self._expected:
            return [self._clear("the engine no longer has the batches that were lost", now), self._follow(batch, now)]
        return [self._apply(batch, now)]

    def _recognised(self, batch: Batch, now: float) -> list[Action]:
        """The first batch of a replay must be the last one applied."""
        if batch.sequence != self._expected - 1:
            return [self._clear("the engine no longer has the batches that were lost", now), self._follow(batch, now)]
        if batch.ts != self._last_ts:
            # The same number at another time: another life of the engine, to be told from its beginning.
            return [self._clear("the engine restarted", now), *self._ask(now)]
        self.duplicates += 1
        return []

    def replay_ended(self, now: float) -> list[Action]:
        """The engine has sent all it has."""
        if self._asked is None:
            return []
        asked, self._asked = self._asked, None
        actions: list[Action] = []
        if not self._answered:
            if self._begun and self._expected > 0:
                # It does not even have the batch we know.
                actions.append(self._clear("the engine restarted", now))
                if asked > 0:
                    return [*actions, *self._ask(now)]
            # It has published nothing, so its cache is empty.
            self._begun = True
            self._know(Knowledge.COMPLETE, now)
        return [*actions, *self._release(now)]

    def tick(self, now: float) -> list[Action]:
        """Time passes: give up a replay that nobody answers."""
        if self._asked is None or now < self._deadline:
            return []
        self._asked = None
        actions: list[Action] = []
        if self._begun or self._answered:
            actions.append(self._clear("a replay was not answered", now))
        self._can_replay = False  # Until the sockets are opened anew; otherwise every gap would cost this wait.
        return [*actions, *self._release(now)]

    def emptied(self, now: float) -> None:
        """The batch just applied said that the cache is empty: from here on everything is known."""
        self._know(Knowledge.COMPLETE, now)

    def lost(self, sequence: int, reason: str, now: float) -> list[Action]:
        """Batch `sequence` came and cannot be read: what it said is missing, and asking again would not help."""
        last_ts = self._last_ts
        cleared = self._clear(reason, now)
        self._asked = None
        self._held.clear()
        self._begun, self._expected, self._last_ts = True, sequence + 1, last_ts
        return [cleared]

    # ---- inside ----------------------------------------------------------------------------

    def _first(self, batch: Batch, now: float) -> list[Action]:
        if batch.sequence == 0:
            self._know(Knowledge.COMPLETE, now)
        elif self._can_replay:
            self._held.append(batch)
            return self._ask(now)
        return [self._follow(batch, now)]

    def _restarted(self, batch: Batch, now: float) -> list[Action]:
        cleared = self._clear("the engine restarted", now)
        return [cleared, *self._first(batch, now)]

    def _hold(self, batch: Batch, now: float) -> list[Action]:
        self._held.append(batch)
        if len(self._held) <= MAX_HELD:
            return []
        self._asked = None
        return [self._clear("more was published than a replay could catch up with", now), *self._release(now)]

    def _release(self, now: float) -> list[Action]:
        """Go on with what came during the replay."""
        held, self._held = self._held, deque()
        actions: list[Action] = []
        if held and self._begun and held[0].sequence > self._expected:
            # Still a gap behind the replay: the engine has it no more, and asking again would not end.
            actions.append(self._clear("the engine no longer has the batches that were lost", now))
        if held and not self._begun:
            actions.append(self._follow(held.popleft(), now))
        for batch in held:
            actions.extend(self.live(batch, now))
        return actions

    def _ask(self, now: float) -> list[Action]:
        self._asked = max(0, self._expected - 1) if self._begun else 0
        self._answered = False
        self._deadline = now + REPLAY_TIMEOUT
        return [AskReplay(self._asked)]

    def _follow(self, batch: Batch, now: float) -> Apply:
        """Go on from this batch, whatever came before it."""
        self._begun = True
        return self._apply(batch, now)

    def _apply(self, batch: Batch, now: float) -> Apply:
        self._expected = batch.sequence + 1
        self._last_ts = batch.ts
        self.applied += 1
        if self.knowledge is Knowledge.UNKNOWN:
            self._know(Knowledge.PARTIAL, now)
        return Apply(batch)

    def _clear(self, reason: str, now: float) -> Clear:
        self.resyncs += 1
        self._begun = False
        self._expected = 0
        self._last_ts = -1.0
        self._know(Knowledge.UNKNOWN, now)
        return Clear(reason)

    def _know(self, knowledge: Knowledge, now: float) -> None:
        if knowledge is not self.knowledge or self.changed_at is None:
            self.knowledge, self.changed_at = knowledge, now
