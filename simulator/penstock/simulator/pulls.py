"""Decode workers that pull prompts' KV from prefill workers: what is moved, what it takes, and how it can fail.

As in life the prefill worker holds the blocks until they are pulled or their lease ends, a pull from a worker that has
died fails at once and one from a worker that cannot be reached after a time-out, and then the decode worker computes
the prompt itself. A pull after the lease would bring somebody else's blocks without an error: it is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from penstock.core.engine import Transfer
from penstock.simulator.events import CHECK, EventQueue
from penstock.simulator.requests import Stream
from penstock.simulator.scenario import Scenario
from penstock.simulator.transfers import Ports, Transfers, ways
from penstock.simulator.worker import TwinWorker

__all__ = ["KvMoved", "KvPulls"]


@dataclass(frozen=True, slots=True)
class KvMoved:
    """What went from prefill to decode workers in a run."""

    transfers: int = 0
    tokens: int = 0
    """Prompt tokens whose KV came to its decode worker."""
    gbytes: float = 0.0
    """10^9 bytes that links carried, those of transfers that came to nothing among them; the hidden ones are not."""
    failed: int = 0
    """Pulls that brought nothing, after which the prompt was computed again."""
    stale: int = 0
    """Pulls that came after the lease: in life their text is wrong."""


class KvPulls:
    """All pulls of a run."""

    def __init__(self, scenario: Scenario, events: EventQueue) -> None:
        self._scenario, self._events = scenario, events
        self.transfers = Transfers(events, scenario.transfer)
        self._bytes_per_token = scenario.model.kv_bytes_per_token() * (1.0 - scenario.transfer.overlap)
        self._ways: dict[tuple[int, int], Ports] = {}
        self._pulling: dict[int, Stream] = {}  # By number of the transfer.
        self._apart: dict[tuple[int, int | None], int] = {}  # Workers whose peers, all or one, are out of reach.
        self._checks = 0
        self._tokens = self._stale = self._failed = 0

    def moved(self) -> KvMoved:
        """Everything up to now."""
        moved = self.transfers
        return KvMoved(moved.started, self._tokens, moved.bytes_moved / 1e9, self._failed, self._stale)

    def pull(self, stream: Stream, transfer: Transfer, now: float) -> None:
        """Move what `stream.source` holds to `stream.worker`."""
        source = stream.source
        if source is None:
            raise RuntimeError(f"sequence {stream.id} wants KV of nobody")
        if not source.worker.alive or source.worker.life != source.life:
            self._fail(stream, now)
            return
        ends = source.worker.number, stream.worker.number
        size = transfer.tokens * self._bytes_per_token
        done = partial(self._pulled, transfer.tokens)
        number = self.transfers.start(self._way(source.worker, stream.worker), size, ends, done, now)
        self._pulling[number] = stream
        if self._cut_off(*ends):
            self._stall(number, now)

    def worker_lost(self, worker: TwinWorker, now: float) -> None:
        """A worker died: nothing comes from it or goes to it any more."""
        for number in self.transfers.between(worker.number):
            stream = self._pulling.pop(number)
            self.transfers.cancel(number, now)
            if stream.worker is not worker:
                self._fail(stream, now)

    def drop(self, worker: TwinWorker, sequence_id: str, now: float) -> None:
        """Nobody waits any more for what this sequence pulls, if it pulls; its lease is left to end by itself."""
        for number in self.transfers.between(worker.number):
            stream = self._pulling[number]
            if stream.worker is worker and stream.id == sequence_id:
                del self._pulling[number]
                self.transfers.cancel(number, now)

    def cut(self, one: int, other: int | None, now: float) -> None:
        """KV between this worker and another, or all others, stands still."""
        self._apart[one, other] = self._apart.get((one, other), 0) + 1
        for number in self.transfers.between(one, other):
            self._stall(number, now)

    def heal(self, one: int, other: int | None, now: float) -> None:
        """What `cut` did is over."""
        self._apart[one, other] -= 1
        if not self._apart[one, other]:
            del self._apart[one, other]
        for number in self.transfers.between(one, other):
            stream = self._pulling[number]
            if stream.source is not None and not self._cut_off(stream.source.worker.number, stream.worker.number):
                self.transfers.resume(number, now)

    def _cut_off(self, source: int, target: int) -> bool:
        if not self._apart:
            return False
        return any(pair in self._apart for pair in ((source, None), (target, None), (source, target), (target, source)))

    def _stall(self, number: int, now: float) -> None:
        self.transfers.stall(number, now)
        self._checks += 1
        give_up = partial(self._give_up, number)
        # After everything of the workers and of the requests that is checked at that instant.
        self._events.at(now + self._scenario.timeouts.transfer_s, CHECK, -self._checks, lambda then, _: give_up(then))

    def _give_up(self, number: int, now: float) -> None:
        stream = self._pulling.get(number)
        if stream is None or stream.source is None:
            return
        if self._cut_off(stream.source.worker.number, stream.worker.number):
            del self._pulling[number]
            self.transfers.cancel(number, now)
            self._fail(stream, now)

    def _pulled(self, tokens: int, number: int, now: float) -> None:
        stream = self._pulling.pop(number)
        self._tokens += tokens
        source = stream.source
        if source is None or (source.leased and not source.worker.release(source.id, now)):
            self._stale += 1
        stream.worker.remote(stream.id, True, now)

    def _fail(self, stream: Stream, now: float) -> None:
        self._failed += 1
        stream.worker.remote(stream.id, False, now)

    def _way(self, source: TwinWorker, target: TwinWorker) -> Ports:
        ends = source.number, target.number
        found = self._ways.get(ends)
        if found is None:
            scenario = self._scenario
            found = self._ways[ends] = ways(scenario.transfer, scenario.topology, source.spec, target.spec)
        return found
