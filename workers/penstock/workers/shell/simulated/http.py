"""The HTTP server under the simulated engine: one asyncio protocol per connection, no task per request.

A worker streams hundreds of tokens a second to tens of connections on a fraction of a core, so handlers are plain
functions: they answer at once, or keep the `Exchange` and write to it when the engine has something to say.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast
from urllib.parse import parse_qsl, urlsplit

import httptools

MAX_HEAD_BYTES = 64 << 10
MAX_BODY_BYTES = 64 << 20
MAX_PIPELINED = 16
REQUEST_TIMEOUT_S = 30.0
"""How long a client may take to send one request."""

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

_PHRASES = {
    200: b"OK",
    400: b"Bad Request",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    413: b"Content Too Large",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
}


class Request:
    """One received request; `headers` has lower-case names."""

    __slots__ = ("body", "headers", "method", "path", "query", "target")

    def __init__(self, method: str, target: str, headers: dict[bytes, bytes], body: bytes) -> None:
        parts = urlsplit(target)
        self.target = target
        self.method, self.path, self.headers, self.body = method, parts.path, headers, body
        self.query = dict(parse_qsl(parts.query))


class Exchange:
    """The answer to one request: either `respond` once, or `begin`, any number of `write`, `end`.

    Everything is silently dropped once the client has gone; `on_close` tells its owner that it has.
    """

    __slots__ = ("_chunked", "_connection", "_keep_alive", "begun", "on_close", "on_drain")

    def __init__(self, connection: "Connection", keep_alive: bool, chunked: bool) -> None:
        self._connection: Connection | None = connection
        self._keep_alive = keep_alive
        self._chunked = chunked
        self.begun = False
        self.on_close: Callable[[], None] | None = None
        self.on_drain: Callable[[], None] | None = None

    @property
    def open(self) -> bool:
        """Whether there is still somebody to write to."""
        return self._connection is not None

    @property
    def writable(self) -> bool:
        """False while the client reads slower than the engine writes; `on_drain` is called when that ends."""
        return self._connection is not None and self._connection.writable

    def respond(self, status: int, body: bytes = b"", content_type: bytes = JSON, extra: bytes = b"") -> None:
        """Send a whole response; `extra` is further header lines, each ended by CRLF."""
        length = b"content-length: %d\r\n" % len(body)
        kind = b"content-type: %b\r\n" % content_type if body else b""
        self._finish(self._head(status, kind + length + extra) + body)

    def begin(self, content_type: bytes = EVENT_STREAM) -> None:
        """Send the head of a streamed response."""
        self.begun = True
        framing = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        self._write(self._head(200, b"content-type: %b\r\n" % content_type + framing))

    def write(self, data: bytes) -> None:
        """Send a piece of a streamed response; `data` must not be empty."""
        self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self, data: bytes = b"") -> None:
        """Send the last piece of a streamed response and its end."""
        if self._chunked:
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + b"0\r\n\r\n"
        self._finish(data)

    @property
    def keeps_alive(self) -> bool:
        """Whether the client may send another request after this answer."""
        return self._keep_alive and self._connection is not None and not self._connection.closing

    @property
    def old(self) -> bool:
        """Whether the client speaks HTTP/1.0."""
        return not self._chunked

    def pass_on(self, data: bytes) -> None:
        """Send bytes of somebody else's answer as they are: head, framing and all."""
        self.begun = True
        self._write(data)

    def passed(self, *, keep_alive: bool = True) -> None:
        """Somebody else's answer was passed on whole."""
        self._keep_alive = self._keep_alive and keep_alive
        self._finish(b"")

    def cut(self) -> None:
        """Break the connection without an end, as a dying engine does."""
        if self._connection is not None:
            self._connection.abort()

    def _head(self, status: int, fields: bytes) -> bytes:
        closing = b"" if self._keep_alive else b"connection: close\r\n"
        return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (status, _PHRASES[status], fields, closing)

    def _write(self, data: bytes) -> None:
        if self._connection is not None:
            self._connection.send(data)

    def _finish(self, data: bytes) -> None:
        connection, self._connection = self._connection, None
        self.on_close = self.on_drain = None
        if connection is not None:
            connection.send(data)
            connection.finished(self._keep_alive and (self._chunked or not self.begun))

    def lost(self) -> None:
        """Called by the connection when the client has gone."""
        self._connection = None
        if self.on_close is not None:
            self.on_close()


Handler = Callable[[Request, Exchange], None]


class Server:
    """The listening socket and its connections."""

    def __init__(
        self,
        handler: Handler,
        keep_alive_s: float,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_connections: int | None = None,
        max_arriving_bytes: int | None = None,
    ) -> None:
        """`keep_alive_s`: idle connections are closed after this long (vLLM's own default is 5 s).

        Connections beyond `max_connections` are closed at once; None: as many as there are files for. Bodies that
        arrive or wait in line have `max_arriving_bytes` together, more are answered 503; None: no bound.
        """
        self.handler = handler
        self.max_body_bytes = max_body_bytes
        self.max_connections = max_connections
        self.max_arriving_bytes = max_arriving_bytes
        self.arriving_bytes = 0
        """Bytes of bodies that no handler has got yet."""
        self.connections: set[Connection] = set()
        self.closing = False
        self.frozen = False
        """A hung engine: bytes are still read, nothing is answered any more."""
        self._keep_alive_s = keep_alive_s
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None

    async def listen(self, host: str, port: int) -> int:
        """Start to accept connections; returns the port (which differs from `port` where that is 0)."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), host, port, backlog=1024, reuse_address=True)
        self._sweep_later()
        return int(self._server.sockets[0].getsockname()[1])

    def stop_accepting(self) -> None:
        """Refuse new connections, close idle ones, and let the others end after their response."""
        self.closing = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close_if_idle()

    def close(self) -> None:
        """Drop everything."""
        self.stop_accepting()
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self.connections):
            connection.close()

    def _sweep_later(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.connections):
            connection.close_if_stale(now, self._keep_alive_s)
        self._sweep = loop.call_later(min(1.0, self._keep_alive_s / 2), self._sweep_later)


class Connection(asyncio.Protocol):
    """One client connection: requests in order, one answered at a time."""

    def __init__(self, server: Server) -> None:
        self.writable = True
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._queue: deque[tuple[Request, bool, bool]] = deque()
        self._current: Exchange | None = None
        self._since = self._loop.time()
        self._arriving = 0
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._head_bytes = 0
        self._in_request = False

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another base class
        self._server.connections.add(self)
        most = self._server.max_connections
        if most is not None and len(self._server.connections) > most:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        self._queue.clear()
        self._arrived(self._arriving)
        if self._current is not None:
            current, self._current = self._current, None
            current.lost()

    def data_received(self, data: bytes) -> None:
        if self._server.frozen:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # an offer that is not taken up (RFC 9110, section 7.8): the request is answered, then it is over
        except _Refused as refused:
            self._refuse(refused.status, refused.message)
        except httptools.HttpParserError as error:
            # The parser wraps what its callbacks raise.
            cause = error.__context__
            if isinstance(cause, _Refused):
                self._refuse(cause.status, cause.message)
            else:
                self._refuse(400, f"malformed HTTP request: {error}")

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self._current is not None and self._current.on_drain is not None:
            self._current.on_drain()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._reset()
        self._in_request = True
        self._since = self._loop.time()

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value
        self._count_head(len(name) + len(value))

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _Refused(431, f"request head exceeds {MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        if self._headers.get(b"expect", b"").lower() == b"100-continue" and self._current is None:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._server.max_body_bytes:
            raise _Refused(413, f"request body exceeds {self._server.max_body_bytes} bytes")
        most = self._server.max_arriving_bytes
        if most is not None and self._server.arriving_bytes + len(body) > most:
            raise _Refused(503, "as many bytes of requests arrive as may at once; try again shortly")
        self._server.arriving_bytes += len(body)
        self._arriving += len(body)
        self._body.append(body)

    def _arrived(self, size: int) -> None:
        """So many bytes are not held here any more."""
        self._server.arriving_bytes -= size
        self._arriving -= size

    def on_message_complete(self) -> None:
        self._in_request = False
        request = Request(
            self._parser.get_method().decode("latin-1"),
            self._target.decode("latin-1"),
            self._headers,
            b"".join(self._body),
        )
        keep_alive = bool(self._parser.should_keep_alive()) and not self._parser.should_upgrade()
        chunked = self._parser.get_http_version() != "1.0"
        self._body = []
        if len(self._queue) >= MAX_PIPELINED:
            raise _Refused(400, f"more than {MAX_PIPELINED} requests without waiting for an answer")
        self._queue.append((request, keep_alive, chunked))
        if self._current is None:
            self._next()

    # What exchanges and the server call.

    @property
    def closing(self) -> bool:
        """Whether the connection ends with its present answer."""
        return self._server.closing

    def send(self, data: bytes) -> None:
        """Hand bytes to the socket."""
        if self._transport is not None and data:
            self._transport.write(data)

    def finished(self, keep_alive: bool) -> None:
        """The current answer is complete."""
        self._current = None
        self._since = self._loop.time()
        if not keep_alive or self._server.closing:
            self.close()
        elif self._queue:
            # Not at once: a long pipeline of small requests must not recurse.
            self._loop.call_soon(self._next)

    def close(self) -> None:
        """Close after what was written has been sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def close_if_idle(self) -> None:
        """Close where no request is being received or answered."""
        if self._current is None and not self._in_request and not self._queue:
            self.close()

    def close_if_stale(self, now: float, keep_alive_s: float) -> None:
        """Close where nothing has come for too long."""
        if self._in_request and now - self._since > REQUEST_TIMEOUT_S:
            self.abort()
        elif now - self._since > keep_alive_s:
            self.close_if_idle()

    def _next(self) -> None:
        if not self._queue or self._current is not None or self._transport is None:
            return
        request, keep_alive, chunked = self._queue.popleft()
        self._arrived(len(request.body))
        self._current = Exchange(self, keep_alive, chunked)
        self._server.handler(request, self._current)

    def _refuse(self, status: int, message: str) -> None:
        if self._current is None and self._transport is not None:
            Exchange(self, keep_alive=False, chunked=True).respond(status, message.encode(), TEXT)
        self.close()


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
