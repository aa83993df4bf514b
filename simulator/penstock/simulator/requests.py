"""The requests of a run: each lives the router's own life, whose actions are carried out on simulated workers.

What the gateway does over HTTP happens here at a point in virtual time: a prefill leg is a sequence of one token whose
blocks are leased, a decode leg one whose prompt comes from another worker, a retry a new sequence elsewhere, and an
answer that broke after its first token a sequence whose prompt is the old one and what the client has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from penstock.core.engine import Finished, Sequence, Transfer
from penstock.core.fleet import Failure, Fleet, Request, Reservation
from penstock.core.reports import Outcome, Verdict
from penstock.core.traces import TraceRequest
from penstock.router.decisions.kv_index import Numbers
from penstock.router.decisions.life import (
    Answered,
    Attempt,
    Cut,
    Ended,
    Event,
    Failed,
    Life,
    PassOn,
    Pause,
    Prefill,
    Prefilled,
    Refuse,
    Resumed,
    live,
)
from penstock.router.decisions.policies import Policy
from penstock.router.decisions.split import SplitLimits
from penstock.simulator.events import CHECK, RESUMED, EventQueue
from penstock.simulator.policies.mooncake import FetchingPick
from penstock.simulator.reach import Reach
from penstock.simulator.scenario import FirstToken, Scenario
from penstock.simulator.worker import Lost, TwinWorker

__all__ = ["Held", "Pulls", "Requests", "Stream"]

_OK, _BAD_REQUEST = 200, 400
_SEED_STRIDE = 1_000_003


@dataclass(frozen=True, slots=True)
class Held:
    """A prompt's blocks that a prefill leg left on a worker, or a prefix that it has cached."""

    worker: TwinWorker
    life: int
    """Which of the worker's engines it was: a restart has forgotten everything."""
    id: str
    tokens: int
    leased: bool = True
    """Whether it is kept until it is pulled. A cached prefix is not, and is taken to be there as long as it takes."""


@dataclass(slots=True, eq=False)
class _Lived:
    """A request and what has become of it so far."""

    index: int
    asked: TraceRequest
    hashes: tuple[int, ...]
    life: Life
    given: int = 0
    """Output tokens the client has."""
    first_s: float | None = None
    """When it had the first of them."""
    cached: int | None = None
    """Prompt tokens found in the cache of whoever computed the prompt first."""
    sequences: int = 0
    held: dict[bytes, Held] | None = None
    """What prefill legs left behind, by the parameters of the decode leg that may have it."""


@dataclass(slots=True, eq=False)
class Stream:
    """One sequence at one worker on behalf of a request."""

    id: str
    lived: _Lived
    worker: TwinWorker
    reservation: Reservation
    sent_s: float
    leg: bool = False
    """Whether it is a prefill leg."""
    source: Held | None = None
    """Whose KV it begins with."""
    begun: bool = False
    """Whether its first token has been heard."""
    spells: int = 0
    """How often the router lost its worker while it ran."""


class Pulls(Protocol):
    """Who moves KV between workers."""

    def pull(self, stream: Stream, transfer: Transfer, now: float) -> None:
        """Move what `stream.source` holds to `stream.worker`, and tell that worker how it went."""
        ...


class Requests:
    """Every request that lives. `settle(outcome)` is called once for each, at its end."""

    def __init__(
        self,
        scenario: Scenario,
        events: EventQueue,
        fleet: Fleet,
        policy: Policy,
        workers: dict[int, TwinWorker],
        pulls: Pulls,
        reach: Reach,
        *,
        split: SplitLimits | None,
        before_pick: Callable[[float], None],
        settle: Callable[[Outcome], None],
    ) -> None:
        """`workers` are by slot; `split` None: there are no pools for legs; `before_pick(now)` precedes every pick that
        an event of its own leads to."""
        self._scenario, self._events, self._fleet, self._policy = scenario, events, fleet, policy
        self._workers, self._pulls, self._reach = workers, pulls, reach
        self._lost = reach.lost  # Empty nearly always, and asked at every turn.
        self._split, self._before_pick, self._on_settled = split, before_pick, settle
        self.living: dict[int, _Lived] = {}
        self.streams: dict[str, Stream] = {}
        self._checks = 0
        self.continued = 0
        """Answers that broke after their first token and were asked for again."""

    # What comes

    def arrive(self, now: float, index: int, asked: TraceRequest, hashes: tuple[int, ...]) -> None:
        """A client asks. `hashes` are those of its prompt's whole blocks, as far as they are known."""
        self._before_pick(now)
        scenario = self._scenario
        request = Request(
            str(index),
            scenario.model.name,
            asked.input_tokens,
            asked.output_tokens,
            priority=asked.priority,
            exact_tokens=True,
            block_hashes=Numbers(hashes) if hashes else (),
            ttft_ms=scenario.ttft_s * 1e3,
            tpot_ms=scenario.tpot_s * 1e3,
        )
        seed = scenario.seed * _SEED_STRIDE + index
        life = live(request, self._fleet, self._policy, scenario.retries, now, seed, self._split)
        lived = self.living[index] = _Lived(index, asked, hashes, life)
        self._act(lived, next(life), now)

    def resume(self, now: float, index: int) -> None:
        """A pause of this request is over."""
        self._before_pick(now)
        self._tell(self.living[index], Resumed(now), now)

    # What workers say

    def began(self, sequence_id: str, now: float) -> None:
        """A sequence's first token is out."""
        stream = self.streams.get(sequence_id)
        if stream is None or stream.leg:
            return
        if self._lost and stream.worker.number in self._lost:
            self._reach.say(stream.worker.number, partial(self.began, sequence_id))
            return
        stream.begun = True
        self._fleet.prefilled(stream.reservation)
        if stream.lived.first_s is None:
            stream.lived.first_s = now
        self._tell(stream.lived, Answered(now, _OK), now)

    def ended(self, finished: Finished, now: float) -> None:
        """A sequence's last token is out."""
        stream = self.streams.get(finished.id)
        if stream is None:
            return
        if self._lost and stream.worker.number in self._lost:
            self._reach.say(stream.worker.number, partial(self.ended, finished))
            return
        del self.streams[finished.id]
        lived = stream.lived
        if lived.cached is None:
            lived.cached = finished.cached_tokens + _fetched(stream, finished)
        if stream.leg:
            self._prefilled(stream, finished, now)
            return
        lived.given += finished.output_tokens
        self._finish(lived, now)

    def lost(self, worker: TwinWorker, lost: tuple[Lost, ...], now: float) -> None:
        """A worker's engine died with these sequences in it."""
        for one in lost:
            stream = self.streams.get(one.id)
            if stream is not None:
                self._hear_of_loss(stream, one, now)

    def _hear_of_loss(self, stream: Stream, one: Lost, now: float) -> None:
        if self.streams.get(stream.id) is not stream:
            return  # given up meanwhile
        if self._lost and stream.worker.number in self._lost:
            self._reach.say(stream.worker.number, partial(self._hear_of_loss, stream, one))
            return
        self._broke(stream, Failure.RESET, one.generated if stream.begun else 0, one.cached_tokens, now)

    # What the router waits for in vain

    def cut_off(self, worker: TwinWorker, now: float) -> None:
        """The router is cut off from a worker: how long it waits for each answer from there is set now."""
        generated = worker.generated()
        waits = self._scenario.timeouts
        for stream in [stream for stream in self.streams.values() if stream.worker is worker]:
            heard = generated.get(stream.id, 0) if stream.begun else 0
            until = now + waits.silence_s if stream.begun else max(now, stream.sent_s + waits.response_s)
            stream.spells += 1
            self._check_at(until, partial(self._wait_in_vain, stream, stream.spells, heard))

    def _wait_in_vain(self, stream: Stream, spell: int, heard: int, now: float) -> None:
        if self.streams.get(stream.id) is not stream or stream.worker.number not in self._lost:
            return
        if spell != stream.spells:
            return  # it was heard of in between
        # The connection is closed here; the worker sees it when it can be reached again.
        self._reach.say(stream.worker.number, partial(stream.worker.abort, stream.id))
        self._broke(stream, Failure.RESPONSE_TIMEOUT, heard, None, now)

    def _check_at(self, at: float, what: Callable[[float], None]) -> None:
        self._checks += 1
        self._events.at(at, CHECK, self._checks, lambda now, _: what(now))

    def _broke(self, stream: Stream, failure: Failure, generated: int, cached: int | None, now: float) -> None:
        """A stream is over before its end, with so many of its tokens at the client."""
        del self.streams[stream.id]
        lived = stream.lived
        if lived.cached is None and stream.begun:
            lived.cached = cached
        lived.given += generated
        self.continued += stream.begun
        self._tell(lived, Failed(now, failure, resumable=stream.begun), now)

    # What a life wants done

    def _tell(self, lived: _Lived, event: Event, now: float) -> None:
        try:
            action = lived.life.send(event)
        except StopIteration:
            return
        self._act(lived, action, now)

    def _act(self, lived: _Lived, action: object, now: float) -> None:
        if type(action) is PassOn:
            return
        if type(action) is Attempt:
            self._attempt(lived, action, now)
        elif type(action) is Prefill:
            self._prefill(lived, action, now)
        elif type(action) is Pause:
            self._events.at(now + action.seconds, RESUMED, lived.index, self.resume, lived.index)
        elif type(action) is Refuse:
            self._lose(lived, Verdict.REJECTED, action.rejection.reason, action.rejection.message, now)
        elif type(action) is Cut:
            self._lose(lived, Verdict.FAILED, action.failure, f"cut by worker {action.worker.name}", now)
        else:
            raise TypeError(f"request {lived.index}: the twin cannot do {action!r}")

    def _attempt(self, lived: _Lived, attempt: Attempt, now: float) -> None:
        worker = self._workers[attempt.reservation.slot]
        if not self._connects(worker, lived, now):
            return
        asked, given = lived.asked, lived.given
        source = None
        if attempt.transfer is not None and lived.held is not None:
            source = lived.held.get(attempt.transfer.params)
        if given >= asked.output_tokens:
            # The prefill worker's token was the only one: nothing is left to decode.
            if source is not None and source.life == source.worker.life:
                source.worker.release(source.id, now)
            self._tell(lived, Answered(now, _OK), now)
            self._finish(lived, now)
            return
        if type(attempt.pick) is FetchingPick:
            source = self._prefix(attempt.pick, attempt.reservation.slot)
        stream = self._stream(lived, worker, attempt.reservation, now)
        stream.source = source
        sequence = Sequence(
            stream.id, asked.input_tokens + given, asked.output_tokens - given, block_hashes=lived.hashes, arrival=now,
            priority=asked.priority,
        )  # fmt: skip
        try:
            worker.submit(sequence, now, None if source is None else source.tokens)
        except ValueError as error:
            # The engine's answer to what can never fit is a client error, which no retry helps.
            del self.streams[stream.id]
            self._lose(lived, Verdict.FAILED, "Http400", str(error), now)

    def _prefix(self, pick: FetchingPick, slot: int) -> Held | None:
        """The cached prefix that a pick wants brought to this slot; None where its worker is gone."""
        worker = self._workers[pick.fetch_from]
        if slot != pick.decode or not worker.alive:
            return None
        return Held(worker, worker.life, "", pick.fetch_tokens, leased=False)

    def _prefill(self, lived: _Lived, prefill: Prefill, now: float) -> None:
        worker = self._workers[prefill.reservation.slot]
        if not self._connects(worker, lived, now):
            return
        stream = self._stream(lived, worker, prefill.reservation, now)
        stream.leg = True
        lease = self._scenario.split.lease
        try:
            worker.submit(
                Sequence(
                    stream.id,
                    lived.asked.input_tokens,
                    1,
                    block_hashes=lived.hashes,
                    arrival=now,
                    lease_seconds=lease,
                    priority=lived.asked.priority,
                ),
                now,
            )
        except ValueError:
            del self.streams[stream.id]
            self._tell(lived, Prefilled(now, _BAD_REQUEST, None), now)

    def _connects(self, worker: TwinWorker, lived: _Lived, now: float) -> bool:
        """Whether a worker takes the connection; if not, the life is told, at once or after the time-out."""
        if self._lost and worker.number in self._lost:
            self._check_at(now + self._scenario.timeouts.connect_s, partial(self._no_connection, lived))
            return False
        if not worker.alive:
            self._tell(lived, Failed(now, Failure.CONNECT_REFUSED), now)
            return False
        return True

    def _no_connection(self, lived: _Lived, now: float) -> None:
        self._tell(lived, Failed(now, Failure.CONNECT_TIMEOUT), now)

    def _stream(self, lived: _Lived, worker: TwinWorker, reservation: Reservation, now: float) -> Stream:
        """A new sequence of a request; ids are never used twice, as an old one may still be somewhere."""
        number, lived.sequences = lived.sequences, lived.sequences + 1
        name = f"{lived.index}.{number}" if number else str(lived.index)
        stream = self.streams[name] = Stream(name, lived, worker, reservation, now)
        return stream

    def _prefilled(self, stream: Stream, finished: Finished, now: float) -> None:
        """A prefill leg was answered."""
        lived, held = stream.lived, finished.held
        if self._scenario.first_token is FirstToken.PREFILL and lived.first_s is None:
            lived.first_s, lived.given = now, 1
        params = None
        if held is not None and stream.worker.alive:
            params = finished.id.encode()
            lived.held = lived.held or {}
            lived.held[params] = Held(stream.worker, stream.worker.life, finished.id, held.tokens)
        self._tell(lived, Prefilled(now, _OK, params), now)

    # Ends

    def _finish(self, lived: _Lived, now: float) -> None:
        asked, first = lived.asked, lived.first_s
        outcome = Outcome(
            lived.index, Verdict.COMPLETED, asked.arrival_s, 0.0,
            ttft_s=None if first is None else first - asked.arrival_s,
            e2e_s=now - asked.arrival_s,
            prompt_tokens=asked.input_tokens,
            cached_tokens=lived.cached,
            output_tokens=lived.given,
            asked_tokens=asked.output_tokens,
        )  # fmt: skip
        self._tell(lived, Ended(now), now)
        self._settle(lived, outcome)

    def _lose(self, lived: _Lived, verdict: Verdict, error: str, detail: str, now: float) -> None:
        lived.life.close()
        asked = lived.asked
        outcome = Outcome(
            lived.index, verdict, asked.arrival_s, 0.0, e2e_s=now - asked.arrival_s, asked_tokens=asked.output_tokens,
            error=str(error), detail=detail,
        )  # fmt: skip
        self._settle(lived, outcome)

    def _settle(self, lived: _Lived, outcome: Outcome) -> None:
        if self.living.pop(lived.index, None) is None:
            raise RuntimeError(f"request {lived.index} ended twice")
        self._on_settled(outcome)


def _fetched(stream: Stream, finished: Finished) -> int:
    """Prompt tokens that were brought from another worker's cache: a hit, unlike those that a leg computed."""
    return finished.remote_tokens if stream.source is not None and not stream.source.leased else 0
