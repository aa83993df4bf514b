"""One request over one connection, timed: a client light enough not to distort what it measures.

Every request has its own connection, as independent users have, and is never sent again: what the server
does with it is the result. Bytes are timed when the event loop delivers them and otherwise left alone. Times are of
the monotonic clock: uvloop's own stands still within a turn of the loop and counts whole milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from dataclasses import dataclass, replace
from typing import cast
from urllib.parse import urlsplit

import httptools
from penstock.cli.replay_stream import StreamEnd, StreamWatch, error_message
from penstock.core.reports import Outcome, Verdict

_MAX_ERROR_BYTES = 16 * 1024
_REJECTED = frozenset({429, 503})
_FINISHED = frozenset({"length", "stop"})


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go."""

    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None
    headers: bytes
    """Header lines common to all requests, each ended by CR LF."""
    address: str | None = None
    """The address that `host` was found at, so that no request waits for a name server."""

    @classmethod
    def of(cls, url: str, api_key: str | None) -> Target:
        """The completions endpoint under a base URL such as http://127.0.0.1:8000 (`/v1` may be given or not)."""
        base = normal_base(url)
        parts = urlsplit(base)
        secure = parts.scheme == "https"
        lines = [f"Host: {parts.netloc}", "Content-Type: application/json", "Accept: text/event-stream"]
        lines += ["User-Agent: penstock-replay", "Connection: close"]
        lines += [f"Authorization: Bearer {api_key}"] if api_key else []
        return cls(
            host=parts.hostname or "",
            port=parts.port or (443 if secure else 80),
            path=f"{parts.path}/v1/completions",
            tls=ssl.create_default_context() if secure else None,
            headers="".join(f"{line}\r\n" for line in lines).encode("latin-1"),
        )

    async def located(self, timeout_s: float) -> Target:
        """This target with the first of its addresses that takes a connection. Raises OSError when none does."""
        loop = asyncio.get_running_loop()
        failure: OSError = OSError(f"{self.host} has no address")
        for *_, address in await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            try:
                async with asyncio.timeout(timeout_s):
                    transport, _ = await loop.create_connection(asyncio.Protocol, str(address[0]), self.port)
            except OSError as error:
                failure = error
                continue
            transport.abort()
            return replace(self, address=str(address[0]))
        raise failure

    def head(self, request_id: str, length: int) -> bytes:
        """The request's first lines, for a body of `length` bytes."""
        return (
            f"POST {self.path} HTTP/1.1\r\nX-Request-Id: {request_id}\r\nContent-Length: {length}\r\n".encode()
            + self.headers
            + b"\r\n"
        )


def normal_base(url: str) -> str:
    """The URL without a trailing slash or `/v1`. Raises ValueError unless it is http(s) with a host."""
    base = url.rstrip("/").removesuffix("/v1")
    parts = urlsplit(base)
    if (
        parts.scheme not in {"http", "https"}
        or not parts.hostname
        or parts.query
        or parts.username
        or not base.isascii()
    ):
        raise ValueError(f"{url!r} is no base URL; give one such as http://127.0.0.1:8000")
    _ = parts.port  # raises ValueError by itself when it is no port
    return base


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bounds on one request, seconds."""

    connect_s: float = 10.0
    request_s: float = 600.0


class _Exchange(asyncio.Protocol):
    """Writes one request, watches its response; `finished` is set when nothing more will come."""

    def __init__(self, loop: asyncio.AbstractEventLoop, request: tuple[bytes, bytes]) -> None:
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._error = b""
        self.status: int | None = None
        self.streamed = False
        self.watch = StreamWatch()
        self.finished: asyncio.Future[str | None] = loop.create_future()
        """Its result is None for a whole message, else the kind of break."""
        self.last_byte_at: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are of this form without inheriting it.
        cast(asyncio.WriteTransport, transport).writelines(self._request)

    def data_received(self, data: bytes) -> None:
        self.last_byte_at = time.monotonic()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, ValueError):
            self._finish("BadResponse")

    def connection_lost(self, exc: Exception | None) -> None:
        # Without a length and without chunks a response ends where the connection does.
        self._finish(None if self.watch.done else ("Reset" if exc else "StreamCut"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self.streamed = value.lower().startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self.status == 200 and self.streamed:
            self.watch.feed(body, self.last_byte_at or time.monotonic())
        elif len(self._error) < _MAX_ERROR_BYTES:
            self._error += body[:_MAX_ERROR_BYTES]

    def on_message_complete(self) -> None:
        if self.status is not None and self.status >= 200:
            self._finish(None)

    def refusal(self) -> str:
        """What the body of a response that is no stream says."""
        try:
            body = json.loads(self._error)
        except ValueError:
            return self._error[:300].decode("utf-8", "replace")
        return error_message(body) if isinstance(body, dict) else str(body)[:300]

    def _finish(self, broken: str | None) -> None:
        if not self.finished.done():
            self.finished.set_result(broken)


async def send(
    target: Target,
    body: bytes,
    *,
    index: int,
    request_id: str,
    asked_tokens: int,
    due: float,
    start: float,
    timeouts: Timeouts,
) -> Outcome:
    """Send one request now and say what became of it; never raises but for cancellation.

    `due` and `start` are times of the monotonic clock: when the request ought to be sent, and when the run began.
    """
    loop = asyncio.get_running_loop()
    sent = time.monotonic()
    exchange = _Exchange(loop, (target.head(request_id, len(body)), body))
    broken, detail = await _converse(loop, target, exchange, timeouts)
    verdict, error, end, detail = _judge(exchange, broken, detail)
    first = exchange.watch.first_content_at or exchange.watch.first_event_at
    ended = exchange.last_byte_at if error is None and exchange.last_byte_at else time.monotonic()
    return Outcome(
        index=index,
        verdict=verdict,
        sent_s=sent - start,
        lag_s=max(0.0, sent - due),
        ttft_s=first - sent if first is not None else None,
        e2e_s=ended - sent,
        prompt_tokens=end.prompt_tokens,
        cached_tokens=end.cached_tokens,
        output_tokens=end.output_tokens,
        asked_tokens=asked_tokens,
        error=error,
        detail=detail,
    )


async def _converse(
    loop: asyncio.AbstractEventLoop, target: Target, exchange: _Exchange, timeouts: Timeouts
) -> tuple[str | None, str | None]:
    """Connect, and wait for the end: (kind of break or None, its detail)."""
    try:
        async with asyncio.timeout(timeouts.connect_s):
            transport, _ = await loop.create_connection(
                lambda: exchange,
                target.address or target.host,
                target.port,
                ssl=target.tls,
                server_hostname=target.host if target.tls else None,
            )
    except TimeoutError:
        return "ConnectTimeout", f"no connection to {target.host}:{target.port} within {timeouts.connect_s:g} s"
    except ConnectionRefusedError as error:
        return "ConnectRefused", str(error)
    except (OSError, ssl.SSLError) as error:
        return "ConnectFailed", str(error)
    try:
        async with asyncio.timeout(timeouts.request_s):
            broken = await exchange.finished
    except BaseException as error:
        transport.abort()
        if isinstance(error, TimeoutError):
            return "TimedOut", f"no end within {timeouts.request_s:g} s"
        raise
    transport.close()
    return broken, None


def _judge(
    exchange: _Exchange, broken: str | None, detail: str | None
) -> tuple[Verdict, str | None, StreamEnd, str | None]:
    """Verdict, kind of error, the stream's end, and the error's detail."""
    nothing = StreamEnd(done=False)
    if exchange.status is not None and exchange.status != 200:
        verdict = Verdict.REJECTED if exchange.status in _REJECTED else Verdict.FAILED
        return verdict, f"Http{exchange.status}", nothing, exchange.refusal()
    if broken is not None and not exchange.streamed:
        return Verdict.FAILED, broken, nothing, detail
    if not exchange.streamed:
        return Verdict.FAILED, "NotAStream", nothing, exchange.refusal()
    try:
        end = exchange.watch.end()
    except ValueError as error:
        return Verdict.FAILED, "BadResponse", nothing, str(error)
    if end.error is not None:
        return Verdict.FAILED, "ErrorEvent", end, end.error
    if broken is not None or not end.done:
        return Verdict.FAILED, broken or "StreamCut", end, detail or "the stream ended without [DONE]"
    if end.finish_reason not in _FINISHED:
        return Verdict.FAILED, "Aborted", end, f"finish_reason is {end.finish_reason}"
    return Verdict.COMPLETED, None, end, None
