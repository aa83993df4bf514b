"""One request on its way: drives the life of a request with real connections.

All judgement is in `decisions.life`; this file only does what it yields and reports what happened.
"""

import asyncio
from typing import TYPE_CHECKING

from penstock.core.fleet import Failure, RejectReason, Request, Worker
from penstock.router.decisions import (
    Action,
    Answered,
    Attempt,
    Cut,
    Ended,
    Failed,
    PassOn,
    Prefill,
    Prefilled,
    Refuse,
    SplitLimits,
    live,
)
from penstock.router.decisions.leg_forms import first_leg, held_params, second_leg
from penstock.router.decisions.replay import DONE
from penstock.router.shell.continuation import Continuation
from penstock.router.shell.driver import Driver
from penstock.router.shell.forms import LAST_CHUNK, chunk, error_event
from penstock.router.shell.heads import answer_head, request_head
from penstock.router.shell.keepsake import Aborted, Keepsake
from penstock.router.shell.last_words import access_record, cut_off, refusal
from penstock.router.shell.leg_call import Answer
from penstock.router.shell.models import ServedModel
from penstock.router.shell.upstream import ResponseSink, UpstreamConnection

if TYPE_CHECKING:
    from penstock.router.shell.client import ClientConnection
    from penstock.router.shell.gateway import Gateway
    from penstock.router.shell.inbound import Inbound
    from penstock.router.shell.prompts import Prompts

_NEVER = float("inf")
_NOTHING = (b"", b"")
_TAIL = 4096
"""Bytes at the end of an answer in which its usage stands."""


class Exchange:
    """A request, its life, and the two connections it uses."""

    __slots__ = (
        "_attempt",
        "_barred",
        "_body",
        "_chunked",
        "_client",
        "_close",
        "_code",
        "_connecting",
        "_connection",
        "_driver",
        "_event_stream",
        "_gateway",
        "_inbound",
        "_keepsake",
        "_leg",
        "_leg_hit",
        "_model",
        "_paused",
        "_request",
        "_saw_body",
        "_split",
        "_started",
        "_tail",
        "deadline",
        "passing",
    )

    def __init__(
        self,
        gateway: "Gateway",
        client: "ClientConnection",
        inbound: "Inbound",
        body: bytes,
        request: Request,
        model: ServedModel,
        now: float,
        split: SplitLimits | None = None,
        barred: frozenset[int] = frozenset(),
    ) -> None:
        """An exchange that has not begun. `split`: limits of its legs, None where it has none.

        Slots in `barred` cannot serve it, whatever happens.
        """
        self._barred = barred
        self._gateway = gateway
        self._client = client
        self._inbound = inbound
        self._body = body
        self._request = request
        self._model = model
        self._started = now
        self._driver = Driver(gateway.loop, self._do)
        self._split = split
        self._attempt: Attempt | None = None
        self._leg: Prefill | None = None
        self._leg_hit: tuple[int | None, int | None] = (None, None)
        self._keepsake: Keepsake | None = None
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._tail = _NOTHING
        self._paused = False
        self._chunked = False
        self._event_stream = False
        self._saw_body = False
        self._close = not inbound.keep_alive
        self._code = 0
        self.passing = False
        """Whether a response is being given to the client; false again while somebody else is asked for its rest."""
        self.deadline = _NEVER
        """Loop time at which the worker has been silent for too long."""

    # ---- driving ------------------------------------------------------------------------------

    def start(self, seed: int) -> None:
        """Begin."""
        gateway, request, policy = self._gateway, self._request, self._model.policy
        life = live(
            request, gateway.fleet, policy, gateway.retry_limits, self._started, seed, self._split, self._barred
        )
        self._driver.begin(life)

    def start_described(self, prompts: "Prompts", *, chat: bool, seed: int) -> None:
        """Begin once the prompt is known as well as it can be: mostly at once."""
        try:
            request = prompts.describe_at_once(self._request, self._body, chat=chat)
        except Exception:
            self._not_described()
            request = self._request
        if request is None:
            self._driver.prepare(self._describe(prompts, chat, seed))
            return
        self._request = request
        self.start(seed)

    async def _describe(self, prompts: "Prompts", chat: bool, seed: int) -> None:
        try:
            self._request = await prompts.describe(self._request, self._body, chat=chat)
        except Exception:
            self._not_described()
        self.start(seed)

    def _not_described(self) -> None:
        self._gateway.log.exception("a prompt could not be described", extra={"request": self._request.id})

    def _do(self, action: Action) -> None:
        if isinstance(action, PassOn):
            self.passing = True
        elif isinstance(action, Attempt):
            self._try(action)
        elif isinstance(action, Prefill):
            self._try_leg(action)
        elif isinstance(action, Refuse):
            self._refuse(action)
        elif isinstance(action, Cut):
            self._cut(action)
        else:
            self._driver.pause(action)

    # ---- attempts -----------------------------------------------------------------------------

    def _try(self, attempt: Attempt) -> None:
        """Send the request over an idle connection, or make one."""
        self._attempt = attempt
        self._leg = None
        self._gateway.note_attempt(self._request, attempt)
        self._reach(attempt.worker, attempt.fresh)

    def _try_leg(self, leg: Prefill) -> None:
        """Send the first leg."""
        self._leg = leg
        self._reach(leg.worker, leg.fresh)

    def _reach(self, worker: Worker, fresh: bool) -> None:
        connection = None if fresh else self._gateway.pool.take(worker)
        if connection is not None:
            self._send(connection)
        else:
            self._connecting = self._gateway.loop.create_task(self._connect(worker))

    async def _connect(self, worker: Worker) -> None:
        """Make a connection within the connect time-out."""
        outcome = await self._gateway.dial(worker)
        self._connecting = None
        if isinstance(outcome, Failure):
            self.broke(outcome)
        else:
            self._send(outcome)

    def _send(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        self.deadline = self._gateway.coarse_now + self._gateway.settings.response_timeout
        if self._leg is not None:
            self.put(connection, Answer(self._leg_done, self.broke), first_leg(self._body))
            return
        attempt, body = self._attempt, self._body
        assert attempt is not None
        paused = self._paused
        if attempt.resumes:
            assert self._keepsake is not None
            paused = Continuation(self._keepsake, self).ask(connection) and paused
        else:
            if attempt.transfer is not None:
                body = second_leg(body, attempt.transfer.params)
            self.put(connection, self, body)
        if paused:
            connection.pause()

    def put(self, connection: UpstreamConnection, sink: ResponseSink, body: bytes, target: bytes = b"") -> None:
        """Send a request to the connection's worker (`target` where not the client's); the answer goes to `sink`."""
        inbound = self._inbound
        client = self._client.forwarded_for(inbound)
        connection.send(sink, request_head(inbound, connection.worker, client, len(body), target), body)

    def _leg_done(self, connection: UpstreamConnection, status: int, answer: bytes) -> None:
        """The first leg's answer is whole."""
        gateway = self._gateway
        self._connection = None
        gateway.pool.give(connection)
        params = held_params(answer) if status == 200 else None
        leg = self._leg
        if params is not None and leg is not None and gateway.prompts is not None:
            # Which worker has run the prompt is known now, and what it found; the decode leg cannot tell either.
            self._leg_hit = _foretold(leg), gateway.prompts.measured(leg.worker.name, answer)
        gateway.counters.legs[(self._model.name, "Held" if params else "NothingHeld")] += 1
        self._driver.tell(Prefilled(gateway.loop.time(), status, params))

    # ---- the rest of a broken stream ------------------------------------------------------------

    def asked_tokens(self, connection: UpstreamConnection) -> None:
        """The tokens are known: ask the same worker for the rest, over this connection if it can be used."""
        if connection.usable:
            self._send(connection)
        else:
            self._reach(connection.worker, fresh=True)

    def continued(self, connection: UpstreamConnection) -> bool:
        """Another worker answered; whether its response is the one to go on with."""
        self._driver.tell(Answered(self._gateway.loop.time(), connection.status))
        if self.passing:
            self._gateway.counters.continued[self._model.name] += 1
        return self.passing

    def pass_events(self, data: bytes) -> None:
        """Give rewritten events to the client."""
        self.deadline = self._gateway.coarse_now + self._gateway.settings.stream_timeout
        self._client.pass_on(chunk(data))

    def rest_ended(self) -> None:
        """The continuation is whole, and ended as a stream ends."""
        self._client.pass_on(LAST_CHUNK)
        self.ended()

    # ---- what the upstream connection reports ---------------------------------------------------

    def answered(self, connection: UpstreamConnection, more: bool) -> bool:
        """Decide whether this response is the one the client gets, and if so write its head."""
        self._driver.tell(Answered(self._gateway.loop.time(), connection.status))
        if not self.passing or connection is not self._connection:
            self._gateway.counters.retries[(self._model.name, Failure.UNAVAILABLE)] += 1
            return False
        self._code = connection.status
        self._pass_head(connection)
        if not more:
            self._client.release_hold()
        return True

    def _pass_head(self, connection: UpstreamConnection) -> None:
        close = self._close or self._gateway.draining
        written = answer_head(connection, self._inbound, close=close)
        self._chunked, self._event_stream, self._close = written.chunked, written.event_stream, written.close
        if self._event_stream and self._chunked and not connection.recoded and self._gateway.has_room_to_keep():
            self._keepsake = Keepsake(self._body)
        else:
            # The body frees memory now: it is not needed for another attempt any more.
            self._gateway.unbuffer(self._inbound)
            self._body = b""
        self._client.hold(written.head)

    def body(self, data: bytes) -> None:
        """Pass bytes to the client."""
        gateway = self._gateway
        self._tail = (self._tail[1], data)
        if not self._saw_body:
            self._saw_body = True
            if self._attempt is not None:
                gateway.fleet.prefilled(self._attempt.reservation)
            waited = gateway.loop.time() - self._started
            gateway.counters.time_to_first_byte[self._model.name].observe(waited)
        self.deadline = gateway.coarse_now + gateway.settings.stream_timeout
        connection, kept = self._connection, self._keepsake
        if connection is not None:
            if kept is not None:
                try:
                    data = kept.take(data, whole=connection.between_chunks)
                except Aborted:
                    connection.abort()
                    self.broke(Failure.RESET)
                    return
                if not data:
                    return
            elif connection.recoded and self._chunked:
                data = chunk(data)
        self._client.pass_on(data)

    def _measure_hit(self, prompts: "Prompts") -> None:
        """Compare the hit the pick expected with what the worker that ran the prompt says of it."""
        attempt = self._attempt
        if attempt is None or attempt.pick.expected_hit_tokens is None:
            return
        expected: int | None = attempt.pick.expected_hit_tokens
        measured: int | None = None
        if attempt.transfer is not None:
            expected, measured = self._leg_hit
        elif not attempt.resumes and self._gateway.fleet.holds(attempt.reservation):
            expected = _foretold(attempt)
            measured = prompts.measured(attempt.worker.name, b"".join(self._tail)[-_TAIL:])
        measured = prompts.finished(self._request, expected, measured)
        if measured is not None:
            self._gateway.explanations.measured(self._request.id, measured)

    def ended(self) -> None:
        """The response is whole."""
        connection, self._connection = self._connection, None
        gateway = self._gateway
        if connection is not None:
            if connection.recoded and self._chunked:
                self._client.pass_on(LAST_CHUNK)
            connection.recoded = False
            if self._paused:
                connection.resume()
            gateway.pool.give(connection)
        if gateway.prompts is not None:
            self._measure_hit(gateway.prompts)
        self._client.release_hold()
        now = gateway.loop.time()
        self._driver.tell(Ended(now))
        self._finish(now, close=self._close)

    def broke(self, failure: Failure) -> None:
        """The attempt failed, or the response broke."""
        if not self._driver.running:
            return
        if not self.passing:
            self._connection = None
            if failure is not Failure.STALE_CONNECTION:
                counters, model = self._gateway.counters, self._model.name
                counters.retries[(model, failure)] += 1
                if self._leg is not None:
                    counters.legs[(model, failure)] += 1
        self.deadline = _NEVER
        mendable = self.passing and self._keepsake is not None and self._keepsake.mendable()
        if self.passing and self._keepsake is not None and self._keepsake.complete():
            self._close_stream(self._keepsake)
            return
        if mendable:
            self._connection = None
            self.passing = False
            self._client.release_hold()
        self._driver.tell(Failed(self._gateway.loop.time(), failure, mendable))

    def _close_stream(self, kept: Keepsake) -> None:
        """The worker was lost when all but the end of the stream had been given."""
        self._connection = None
        self._client.pass_on(LAST_CHUNK if kept.transcript.done else chunk(DONE) + LAST_CHUNK)
        self.ended()

    # ---- ends ---------------------------------------------------------------------------------

    def _refuse(self, action: Refuse) -> None:
        rejection = action.rejection
        fault = refusal(rejection)
        self._gateway.counters.rejected[(self._model.name, rejection.reason)] += 1
        self._code = fault.status
        if rejection.reason is RejectReason.RETRIES_EXHAUSTED:
            self._gateway.log.warning(rejection.message, extra={"request": self._request.id, "model": self._model.name})
        self._end_life()
        self._client.respond(fault, self._inbound)
        self._finish(self._gateway.loop.time(), close=self._close)

    def _cut(self, action: Cut) -> None:
        """The response broke in the middle: an error event where the stream can take one, and an end."""
        model = self._model.name
        self._gateway.counters.cut[(model, action.failure)] += 1
        fault = cut_off(action, self._keepsake)
        self._gateway.log.warning(fault.message, extra={"request": self._request.id, "model": model})
        connection, self._connection = self._connection, None
        self._client.release_hold()
        self._end_life()
        recoded = connection is not None and connection.recoded
        clean = recoded or (connection is not None and connection.between_chunks) or not self._saw_body
        if self._keepsake is not None:
            clean = self._keepsake.between_events
        if self._event_stream and self._chunked and clean:
            self._client.pass_on(chunk(error_event(fault)) + LAST_CHUNK)
            self._finish(self._gateway.loop.time(), close=True)
            return
        if self._event_stream and self._inbound.http_1_0:
            self._client.pass_on(error_event(fault))
            self._finish(self._gateway.loop.time(), close=True)
            return
        # No room for words: a body shorter than announced is the one error every client notices.
        self._finish(self._gateway.loop.time(), close=True, abort=True)

    def client_gone(self) -> None:
        """The client left: stop the worker's work for it and give everything back."""
        if not (self._driver.running or self._driver.pending):
            return
        self._gateway.counters.client_gone[self._model.name] += 1
        self._end_life()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.abort()
        self._code = 499
        self._record(self._gateway.loop.time())

    def worker_gone(self, slot: int) -> None:
        """The worker's pod is gone; if it owes us a first byte, somebody else must give it."""
        now_at = self._leg or self._attempt
        if now_at is None or now_at.reservation.slot != slot or self.passing:
            return
        self._give_up(Failure.WORKER_GONE)

    def check(self, now: float) -> None:
        """Called now and then: has the worker been silent for too long?"""
        if now >= self.deadline and (not self._paused or self._leg is not None):
            self._give_up(Failure.RESPONSE_TIMEOUT)

    def _give_up(self, failure: Failure) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.abort()
        self.broke(failure)

    def _end_life(self) -> None:
        """Nothing of this request goes on."""
        self._driver.end()
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None

    def _finish(self, now: float, *, close: bool, abort: bool = False) -> None:
        self._record(now)
        self._client.finished(close=close, abort=abort)

    def _record(self, now: float) -> None:
        gateway, model = self._gateway, self._model
        if self._inbound.buffered:
            gateway.unbuffer(self._inbound)
        gateway.exchange_over(self)
        gateway.counters.requests[(model.name, model.policy.name, self._code)] += 1
        gateway.counters.duration[model.name].observe(now - self._started)
        if gateway.settings.access_log:
            target, seconds = self._inbound.target, now - self._started
            extra = access_record(self._request, model.name, target, self._code, seconds, self._attempt)
            gateway.log.info("request", extra=extra)

    # ---- backpressure -------------------------------------------------------------------------

    def pause(self) -> None:
        """The client does not keep up."""
        self._paused = True
        if self._connection is not None and self._leg is None:
            self._connection.pause()

    def resume(self) -> None:
        """The client keeps up again."""
        self._paused = False
        self.deadline = self._gateway.coarse_now + self._gateway.settings.stream_timeout
        if self._connection is not None:
            self._connection.resume()


def _foretold(ran: Attempt | Prefill) -> int | None:
    """The hit its pick expected of the worker that ran the prompt; None for another than the pick meant for it."""
    pick = ran.pick
    meant = pick.decode if pick.prefill is None else pick.prefill
    return pick.expected_hit_tokens if ran.reservation.slot == meant else None
