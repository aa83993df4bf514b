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
    Event,
    Failed,
    Life,
    PassOn,
    Pause,
    Prefill,
    Prefilled,
    Refuse,
    Resumed,
    SplitLimits,
    live,
)
from penstock.router.decisions.leg_forms import first_leg, held_params, second_leg
from penstock.router.decisions.replay import DONE, ask_for_rest, read_tokens, token_question
from penstock.router.shell.forms import (
    LAST_CHUNK,
    NOT_FORWARDED,
    NOT_RETURNED,
    Fault,
    chunk,
    error_event,
    named_by_connection,
)
from penstock.router.shell.keepsake import Aborted, Keepsake
from penstock.router.shell.leg_call import Answer
from penstock.router.shell.models import ServedModel
from penstock.router.shell.resumption import Resumption
from penstock.router.shell.upstream import UpstreamConnection, returned_fields

if TYPE_CHECKING:
    from penstock.router.shell.client import ClientConnection
    from penstock.router.shell.gateway import Gateway
    from penstock.router.shell.inbound import Inbound
    from penstock.router.shell.prompts import Prompts

_STATUS = {
    RejectReason.NO_WORKERS: 503,
    RejectReason.WORKERS_BUSY: 429,
    RejectReason.DEADLINE_PASSED: 503,
    RejectReason.RETRIES_EXHAUSTED: 502,
}


_TAIL = 4096
"""Bytes at the end of an answer in which its usage stands."""


class Exchange:
    """A request, its life, and the two connections it uses."""

    __slots__ = (
        "_attempt",
        "_body",
        "_chunked",
        "_client",
        "_close",
        "_code",
        "_connecting",
        "_connection",
        "_event_stream",
        "_gateway",
        "_inbound",
        "_keepsake",
        "_leg",
        "_life",
        "_model",
        "_paused",
        "_preparing",
        "_request",
        "_saw_body",
        "_split",
        "_started",
        "_tail",
        "_timer",
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
    ) -> None:
        """An exchange that has not begun. `split`: limits of its legs, None where it has none."""
        self._gateway = gateway
        self._client = client
        self._inbound = inbound
        self._body = body
        self._request = request
        self._model = model
        self._started = now
        self._life: Life | None = None
        self._split = split
        self._attempt: Attempt | None = None
        self._leg: Prefill | None = None
        self._keepsake: Keepsake | None = None
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._tail = (b"", b"")
        self._paused = False
        self._chunked = False
        self._event_stream = False
        self._saw_body = False
        self._close = not inbound.keep_alive
        self._code = 0
        self.passing = False
        """Whether a response is being given to the client; false again while somebody else is asked for its rest."""
        self.deadline = float("inf")
        """Loop time at which the worker has been silent for too long."""

    # ---- driving ------------------------------------------------------------------------------

    def start(self, seed: int) -> None:
        """Begin."""
        gateway = self._gateway
        self._life = live(
            self._request, gateway.fleet, self._model.policy, gateway.retry_limits, self._started, seed, self._split
        )
        self._do(next(self._life))

    def start_described(self, prompts: "Prompts", *, chat: bool, seed: int) -> None:
        """Begin once the prompt is known as well as it can be."""
        self._preparing = self._gateway.loop.create_task(self._describe(prompts, chat, seed))

    async def _describe(self, prompts: "Prompts", chat: bool, seed: int) -> None:
        try:
            self._request = await prompts.describe(self._request, self._body, chat=chat)
        except Exception:
            self._gateway.log.exception("a prompt could not be described", extra={"request": self._request.id})
        self._preparing = None
        self.start(seed)

    def _tell(self, event: Event) -> None:
        """Report what happened and do what is asked next."""
        if self._life is None:
            return
        try:
            action = self._life.send(event)
        except StopIteration:
            self._life = None
            return
        self._do(action)

    def _do(self, action: Action) -> None:
        if isinstance(action, Attempt):
            self._try(action)
        elif isinstance(action, Prefill):
            self._try_leg(action)
        elif isinstance(action, Pause):
            loop = self._gateway.loop
            self._timer = loop.call_later(action.seconds, lambda: self._tell(Resumed(loop.time())))
        elif isinstance(action, Refuse):
            self._refuse(action)
        elif isinstance(action, Cut):
            self._cut(action)
        elif isinstance(action, PassOn):
            self.passing = True

    # ---- attempts -----------------------------------------------------------------------------

    def _try(self, attempt: Attempt) -> None:
        """Send the request over an idle connection, or make one."""
        self._attempt = attempt
        self._leg = None
        counters = self._gateway.counters
        counters.picks[(attempt.pick.policy, attempt.pick.reason)] += 1
        if not attempt.fresh:
            now = self._gateway.loop.time()
            self._gateway.explanations.remember(self._request, attempt.pick, attempt.number, now)
            if self._gateway.prompts is not None:
                self._gateway.prompts.picked(self._request, attempt.pick)
        if attempt.split is not None:
            counters.splits[(self._model.name, attempt.split)] += 1
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
        gateway = self._gateway
        try:
            connection = await gateway.connect(worker)
        except TimeoutError:
            outcome = Failure.CONNECT_TIMEOUT
        except OSError:
            outcome = Failure.CONNECT_REFUSED
        else:
            self._connecting = None
            gateway.counters.connects["Connected"] += 1
            self._send(connection)
            return
        self._connecting = None
        gateway.counters.connects[outcome] += 1
        self.broke(outcome)

    def _send(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        self.deadline = self._gateway.coarse_now + self._gateway.settings.response_timeout
        if self._leg is not None:
            body = first_leg(self._body)
            connection.send(Answer(self._leg_done, self.broke), self._head(connection.worker, body), body)
            return
        if self._attempt is not None and self._attempt.resumes:
            self._ask_for_rest(connection)
            return
        body = self._body
        if self._attempt is not None and self._attempt.transfer is not None:
            body = second_leg(body, self._attempt.transfer.params)
        connection.send(self, self._head(connection.worker, body), body)
        if self._paused:
            connection.pause()

    def _leg_done(self, connection: UpstreamConnection, status: int, answer: bytes) -> None:
        """The first leg's answer is whole."""
        gateway = self._gateway
        self._connection = None
        gateway.pool.give(connection)
        params = held_params(answer) if status == 200 else None
        gateway.counters.legs[(self._model.name, "Held" if params else "NothingHeld")] += 1
        self._tell(Prefilled(gateway.loop.time(), status, params))

    def _ask_for_rest(self, connection: UpstreamConnection) -> None:
        """Ask for what is missing of a stream; how many tokens the client has is asked first."""
        kept = self._keepsake
        assert kept is not None
        text = kept.transcript.text
        if kept.tokens is None and text:
            question = token_question(kept.body, text)
            sink = Answer(self._counted, self.broke)
            connection.send(sink, self._head(connection.worker, question, b"/tokenize"), question)
            return
        rest = ask_for_rest(kept.body, kept.transcript, kept.tokens or [])
        taker = Resumption(rest, kept.transcript, self._continued, self._pass_events, self._rest_ended, self.broke)
        connection.send(taker, self._head(connection.worker, rest.body), rest.body)
        if self._paused:
            connection.pause()

    def _counted(self, connection: UpstreamConnection, status: int, answer: bytes) -> None:
        """The tokens of what was said are known."""
        kept = self._keepsake
        assert kept is not None
        kept.tokens = read_tokens(answer) if status == 200 else None
        if kept.tokens is None:
            self._gateway.pool.give(connection)
            self.broke(Failure.BAD_RESPONSE)
        elif connection.usable:
            self._send(connection)
        else:
            self._reach(connection.worker, fresh=True)

    def _continued(self, connection: UpstreamConnection) -> bool:
        """Another worker answered; whether its response is the one to go on with."""
        self._tell(Answered(self._gateway.loop.time(), connection.status))
        if self.passing:
            self._gateway.counters.continued[self._model.name] += 1
        return self.passing

    def _pass_events(self, data: bytes) -> None:
        """Give rewritten events to the client."""
        self.deadline = self._gateway.coarse_now + self._gateway.settings.stream_timeout
        self._client.pass_on(chunk(data))

    def _rest_ended(self) -> None:
        """The continuation is whole, if it ended as a stream ends."""
        kept = self._keepsake
        assert kept is not None
        if not kept.transcript.done:
            self.broke(Failure.RESET)
            return
        self._client.pass_on(LAST_CHUNK)
        self.ended()

    def _head(self, worker: Worker, body: bytes, target: bytes = b"") -> bytes:
        """Head of the request as the worker gets it."""
        inbound = self._inbound
        dropped = NOT_FORWARDED
        if inbound.connection:
            dropped = dropped | named_by_connection(inbound.connection)
        lines = [
            b"POST %b HTTP/1.1\r\nhost: %b:%d\r\ncontent-length: %d\r\nx-request-id: %b\r\nx-forwarded-for: %b"
            % (
                target or inbound.target,
                worker.host.encode(),
                worker.port,
                len(body),
                inbound.request_id,
                self._client.forwarded_for(inbound),
            )
        ]
        lines += [b"%b: %b" % (name, value) for lower, name, value in inbound.fields if lower not in dropped]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    # ---- what the upstream connection reports ---------------------------------------------------

    def answered(self, connection: UpstreamConnection, more: bool) -> bool:
        """Decide whether this response is the one the client gets, and if so write its head."""
        self._tell(Answered(self._gateway.loop.time(), connection.status))
        if not self.passing or connection is not self._connection:
            self._gateway.counters.retries[(self._model.name, Failure.UNAVAILABLE)] += 1
            return False
        self._code = connection.status
        self._pass_head(connection)
        if not more:
            self._client.release_hold()
        return True

    def _pass_head(self, connection: UpstreamConnection) -> None:
        dropped = NOT_RETURNED
        framed = False
        for name, value in connection.fields:
            lower = name.lower()
            if lower == b"content-length":
                framed = True
            elif lower == b"transfer-encoding":
                framed = self._chunked = True
            elif lower == b"content-type":
                self._event_stream = value.startswith(b"text/event-stream")
            elif lower == b"connection":
                dropped = dropped | named_by_connection(value)
        fields = returned_fields(connection.fields, dropped)
        fields.append(b"x-request-id: " + self._inbound.request_id)
        bodiless = connection.status in (204, 304)
        if self._inbound.http_1_0:
            connection.recoded = self._chunked or not framed
            self._chunked = False
            self._close = True
        elif self._chunked or not (framed or bodiless):
            connection.recoded = not self._chunked
            self._chunked = True
            fields.append(b"transfer-encoding: chunked")
        else:
            connection.recoded = False
        if self._close or self._gateway.draining:
            self._close = True
            fields.append(b"connection: close")
        if self._event_stream and self._chunked and not connection.recoded and self._gateway.has_room_to_keep():
            self._keepsake = Keepsake(self._body)
        else:
            # The body frees memory now: it is not needed for another attempt any more.
            self._gateway.unbuffer(self._inbound)
            self._body = b""
        self._client.hold(b"\r\n".join((connection.status_line, *fields)) + b"\r\n\r\n")

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
        connection = self._connection
        if self._keepsake is not None and connection is not None:
            try:
                data = self._keepsake.take(data, whole=connection.between_chunks)
            except Aborted:
                connection.abort()
                self.broke(Failure.RESET)
                return
            if not data:
                return
        elif connection is not None and connection.recoded and self._chunked:
            data = chunk(data)
        self._client.pass_on(data)

    def _measure_hit(self) -> None:
        """Compare the hit the pick expected with what the answer's end says of it."""
        prompts, attempt = self._gateway.prompts, self._attempt
        if prompts is not None and attempt is not None and self._gateway.fleet.holds(attempt.reservation):
            apart = attempt.transfer is not None or attempt.resumes
            prompts.finished(self._request, attempt.pick, b"".join(self._tail)[-_TAIL:], apart=apart)

    def ended(self) -> None:
        """The response is whole."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if connection.recoded and self._chunked:
                self._client.pass_on(LAST_CHUNK)
            connection.recoded = False
            if self._paused:
                connection.resume()
            self._gateway.pool.give(connection)
        self._measure_hit()
        self._client.release_hold()
        now = self._gateway.loop.time()
        self._tell(Ended(now))
        self._finish(now, close=self._close)

    def broke(self, failure: Failure) -> None:
        """The attempt failed, or the response broke."""
        if self._life is None:
            return
        if not self.passing:
            self._connection = None
            if failure is not Failure.STALE_CONNECTION:
                counters, model = self._gateway.counters, self._model.name
                counters.retries[(model, failure)] += 1
                if self._leg is not None:
                    counters.legs[(model, failure)] += 1
        self.deadline = float("inf")
        mendable = self.passing and self._keepsake is not None and self._keepsake.mendable()
        if self.passing and self._keepsake is not None and self._keepsake.complete():
            self._close_stream(self._keepsake)
            return
        if mendable:
            self._connection = None
            self.passing = False
            self._client.release_hold()
        self._tell(Failed(self._gateway.loop.time(), failure, mendable))

    def _close_stream(self, kept: Keepsake) -> None:
        """The worker was lost when all but the end of the stream had been given."""
        self._connection = None
        self._client.pass_on(LAST_CHUNK if kept.transcript.done else chunk(DONE) + LAST_CHUNK)
        self.ended()

    # ---- ends ---------------------------------------------------------------------------------

    def _refuse(self, action: Refuse) -> None:
        rejection = action.rejection
        status = _STATUS[rejection.reason]
        self._gateway.counters.rejected[(self._model.name, rejection.reason)] += 1
        kind = "rate_limit_error" if status == 429 else "server_error"
        fault = Fault(status, rejection.message, rejection.reason, type=kind, retry_after=rejection.retry_after)
        self._code = status
        if rejection.reason is RejectReason.RETRIES_EXHAUSTED:
            self._gateway.log.warning(rejection.message, extra={"request": self._request.id, "model": self._model.name})
        self._end_life()
        self._client.respond(fault, self._inbound)
        self._finish(self._gateway.loop.time(), close=self._close)

    def _cut(self, action: Cut) -> None:
        """The response broke in the middle: an error event where the stream can take one, and an end."""
        model, failure = self._model.name, action.failure
        self._gateway.counters.cut[(model, failure)] += 1
        message = f"The response broke after its first byte ({failure}); worker {action.worker.name} is not to be had."
        if self._keepsake is not None:
            message += f" It was not continued: {self._keepsake.reason or 'nobody could take it over'}."
        self._gateway.log.warning(message, extra={"request": self._request.id, "model": model})
        connection, self._connection = self._connection, None
        self._client.release_hold()
        self._end_life()
        recoded = connection is not None and connection.recoded
        clean = recoded or (connection is not None and connection.between_chunks) or not self._saw_body
        if self._keepsake is not None:
            clean = self._keepsake.between_events
        if self._event_stream and self._chunked and clean:
            event = error_event(Fault(502, message, str(failure), type="server_error"))
            self._client.pass_on(chunk(event) + LAST_CHUNK)
            self._finish(self._gateway.loop.time(), close=True)
            return
        if self._event_stream and self._inbound.http_1_0:
            self._client.pass_on(error_event(Fault(502, message, str(failure), type="server_error")))
            self._finish(self._gateway.loop.time(), close=True)
            return
        # No room for words: a body shorter than announced is the one error every client notices.
        self._finish(self._gateway.loop.time(), close=True, abort=True)

    def client_gone(self) -> None:
        """The client left: stop the worker's work for it and give everything back."""
        if self._life is None and self._preparing is None:
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
        """Close the life (giving its reservation back) and everything that could still tell it something."""
        if self._preparing is not None:
            self._preparing.cancel()
            self._preparing = None
        if self._life is not None:
            life, self._life = self._life, None
            life.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None

    def _finish(self, now: float, *, close: bool, abort: bool = False) -> None:
        self._record(now)
        self._client.finished(close=close, abort=abort)

    def _record(self, now: float) -> None:
        gateway, model = self._gateway, self._model
        gateway.unbuffer(self._inbound)
        gateway.exchange_over(self)
        gateway.counters.requests[(model.name, model.policy.name, self._code)] += 1
        gateway.counters.duration[model.name].observe(now - self._started)
        if gateway.settings.access_log:
            self._log(now)

    def _log(self, now: float) -> None:
        attempt = self._attempt
        extra: dict[str, object] = {
            "request": self._request.id,
            "model": self._model.name,
            "path": self._inbound.target.decode("latin-1"),
            "code": self._code,
            "seconds": round(now - self._started, 4),
        }
        if attempt is not None:
            extra |= {"worker": attempt.worker.name, "attempts": attempt.number, "reason": str(attempt.pick.reason)}
        self._gateway.log.info("request", extra=extra)

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
