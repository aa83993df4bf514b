"""One request on its way: does what its life asks for, and tells it what came of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
from penstock.core.fleet import Failure, Rejection
from penstock.router.decisions.leg_forms import first_leg, held_params, second_leg
from penstock.router.decisions.steps import (
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
)
from penstock.workers.decisions.sidecar.prefillers import HEADER
from penstock.workers.shell.sidecar.upstream import Broken, Upstream
from penstock.workers.shell.simulated.http import Exchange, Request

if TYPE_CHECKING:
    from penstock.workers.shell.sidecar.proxy import Proxy

log = logging.getLogger("penstock.workers.sidecar")

REQUEST_ID = b"x-request-id"
CLIENT_LEFT = 499
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te")
) | {b"trailer", b"transfer-encoding", b"upgrade"}
_NOT_SENT = _HOP_BY_HOP | {b"host", b"content-length", b"expect", REQUEST_ID, HEADER}
_LAST_CHUNK = b"0\r\n\r\n"


def error_body(message: str, code: str) -> bytes:
    """An error of our own in OpenAI's form."""
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    return msgspec.json.encode({"error": error})


class Errand:
    """A request, its life, and the connection it uses now."""

    def __init__(self, proxy: Proxy, request: Request, exchange: Exchange, body: bytes, request_id: bytes) -> None:
        """An errand that has not begun. `body` is the client's without transfer parameters."""
        self._proxy = proxy
        self._request = request
        self._exchange = exchange
        self._body = body
        self._id = request_id
        self._upstream: Upstream | None = None
        self._named = HEADER in request.headers
        self._stall: asyncio.TimerHandle | None = None
        self.code = CLIENT_LEFT
        """Status the client got."""

    async def run(self, life: Life) -> None:
        """Carry the life to its end; cancel it when the client leaves."""
        try:
            action = next(life)
            while True:
                action = life.send(await self._do(action))
        except StopIteration:
            pass
        finally:
            life.close()
            self._caught_up()
            if self._upstream is not None:
                self._upstream.abort()

    async def _do(self, action: Action) -> Event:
        match action:
            case Prefill():
                return await self._prefill(action)
            case Attempt():
                return await self._attempt(action)
            case PassOn():
                return await self._pass_on()
            case Pause(seconds):
                await asyncio.sleep(seconds)
                return Resumed(self._now())
            case Refuse(rejection):
                self._refuse(rejection)
            case Cut(failure):
                self._cut(failure)
        return Ended(self._now())

    def _now(self) -> float:
        return self._proxy.loop.time()

    # ---- legs -----------------------------------------------------------------------------------

    async def _prefill(self, leg: Prefill) -> Event:
        """The first leg: the prompt to a prefill worker, and what it holds back."""
        counted = self._proxy.metrics.legs
        try:
            upstream = await self._ask(leg, first_leg(self._body))
            answer = await upstream.keep(self._proxy.options.stream_timeout)
        except Broken as broken:
            self._drop()
            if broken.failure is not Failure.STALE_CONNECTION:
                counted.labels(str(broken.failure)).inc()
            return Failed(self._now(), broken.failure)
        self._upstream = None
        self._proxy.connections.give(upstream)
        params = held_params(answer) if upstream.status == 200 else None
        counted.labels("Held" if params else "NothingHeld").inc()
        return Prefilled(self._now(), upstream.status, params)

    async def _attempt(self, attempt: Attempt) -> Event:
        """The request to this pod's engine, with the blocks of the first leg where there are any."""
        self._drop()
        body, where = self._body, "Fallback" if self._named else "Local"
        if attempt.transfer is not None:
            body, where = second_leg(body, attempt.transfer.params), "Transferred"
        self._proxy.metrics.decodes.labels(where).inc()
        try:
            upstream = await self._ask(attempt, body)
        except Broken as broken:
            self._drop()
            return Failed(self._now(), broken.failure)
        return Answered(self._now(), upstream.status)

    async def _ask(self, action: Prefill | Attempt, body: bytes) -> Upstream:
        upstream = await self._proxy.connections.to(action.worker, fresh=action.fresh)
        self._upstream = upstream
        head = self._head(action.worker.host, action.worker.port, len(body))
        await upstream.ask(head + body, self._proxy.options.response_timeout)
        return upstream

    def _head(self, host: str, port: int, length: int) -> bytes:
        request = self._request
        named = f"[{host}]" if ":" in host else host
        lines = [
            f"{request.method} {request.target} HTTP/1.1".encode("latin-1"),
            f"host: {named}:{port}".encode("latin-1"),
            b"x-request-id: " + self._id,
        ]
        if request.method == "POST":
            lines.append(b"content-length: %d" % length)
        dropped = _NOT_SENT | _listed(request.headers)
        lines += [b"%b: %b" % (name, value) for name, value in request.headers.items() if name not in dropped]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _drop(self) -> None:
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None

    # ---- the answer -----------------------------------------------------------------------------

    async def _pass_on(self) -> Event:
        """Give the answer to the client as it comes."""
        upstream, exchange = self._upstream, self._exchange
        assert upstream is not None
        self.code = upstream.status
        self._body = b""
        exchange.pass_on(self._answer_head(upstream))
        exchange.on_drain = self._go_on
        try:
            await upstream.pass_to(self, self._proxy.options.stream_timeout)
        except Broken as broken:
            return Failed(self._now(), broken.failure)
        exchange.passed(keep_alive=not upstream.until_close)
        self._upstream = None
        self._proxy.connections.give(upstream)
        return Ended(self._now())

    def take(self, data: bytes) -> None:
        """Bytes of the answer; the worker waits while the client does not keep up."""
        self._exchange.pass_on(data)
        if not self._exchange.writable and self._upstream is not None and self._stall is None:
            self._upstream.pause()
            self._stall = self._proxy.loop.call_later(self._proxy.options.stream_timeout, self._exchange.cut)

    def _go_on(self) -> None:
        """The client has caught up."""
        self._caught_up()
        if self._upstream is not None:
            self._upstream.resume()

    def _caught_up(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _answer_head(self, upstream: Upstream) -> bytes:
        listed = _listed({name.lower(): value for name, value in upstream.fields})
        dropped = _HOP_BY_HOP | listed | {REQUEST_ID}
        lines = [upstream.status_line, b"x-request-id: " + self._id]
        lines += [b"%b: %b" % field for field in upstream.fields if field[0].lower() not in dropped]
        if upstream.chunked:
            lines.append(b"transfer-encoding: chunked")
        if upstream.until_close or not self._exchange.keeps_alive:
            lines.append(b"connection: close")
        return b"\r\n".join(lines) + b"\r\n\r\n"

    # ---- ends -----------------------------------------------------------------------------------

    def _refuse(self, rejection: Rejection) -> None:
        self.code = int(HTTPStatus.SERVICE_UNAVAILABLE)
        retry = b"retry-after: %d\r\n" % max(1, round(rejection.retry_after))
        message = f"The engine of this pod did not take the request: {rejection.message}."
        log.warning("request %s: %s", self._id.decode("latin-1"), rejection.message)
        self._exchange.respond(self.code, error_body(message, str(rejection.reason)), extra=retry)

    def _cut(self, failure: Failure) -> None:
        """The answer broke in the middle: an error event where the stream can take one, and an end in any case."""
        upstream, exchange = self._upstream, self._exchange
        self._proxy.metrics.cut.labels(str(failure)).inc()
        message = f"The engine was lost in the middle of the answer ({failure}); send the request again."
        log.warning("request %s: %s", self._id.decode("latin-1"), message)
        if upstream is not None and upstream.between_chunks and _is_event_stream(upstream):
            event = b"data: " + error_body(message, str(failure)) + b"\n\n"
            exchange.pass_on(b"%x\r\n%b\r\n" % (len(event), event) + _LAST_CHUNK)
            exchange.passed(keep_alive=False)
        else:
            exchange.cut()


def _listed(headers: Mapping[bytes, bytes]) -> frozenset[bytes]:
    """Field names that a Connection header declares to concern one connection only."""
    return frozenset(name.strip().lower() for name in headers.get(b"connection", b"").split(b","))


def _is_event_stream(upstream: Upstream) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in upstream.fields
    )
