"""Connections to workers: kept open, one request at a time, response bytes handed on as they come.

A response is *watched*, not parsed: the C parser follows along to say where the message ends, and the bytes
go to the exchange untouched. Only when the client cannot take them as they are (HTTP/1.0, or a body that
ends with the connection) are they taken apart (`recoded`).
"""

import asyncio
import socket
from typing import TYPE_CHECKING, cast
from typing import Protocol as Interface

import httptools
from penstock.core.fleet import Failure, Worker

if TYPE_CHECKING:
    from penstock.router.shell.pool import Pool

MAX_HEAD = 64 * 1024
_HEAD_END = b"\r\n\r\n"


class ResponseSink(Interface):
    """Who gets a response: the exchange."""

    def answered(self, connection: "UpstreamConnection", more: bool) -> bool:
        """The head is known. True: pass the body on. False: nobody wants it.

        `more` says that `body` or `ended` follows at once, so head and body can be written together.
        """
        ...

    def body(self, data: bytes) -> None:
        """Some bytes of the body, in the form `connection.recoded` says."""
        ...

    def ended(self) -> None:
        """The response is whole."""
        ...

    def broke(self, failure: Failure) -> None:
        """The response will never be whole."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """One connection to a worker."""

    __slots__ = (
        "_buffer",
        "_complete",
        "_head_held",
        "_in_chunk",
        "_in_message",
        "_keep",
        "_left",
        "_parser",
        "_sink",
        "_surplus",
        "_tail",
        "_until_close",
        "chunked",
        "fields",
        "idle_since",
        "named",
        "pool",
        "recoded",
        "reused",
        "sized",
        "status",
        "status_line",
        "transport",
        "worker",
    )

    def __init__(self, pool: "Pool", worker: Worker) -> None:
        """A connection to be, of this pool, to this worker."""
        self.pool = pool
        self.worker = worker
        self.transport: asyncio.Transport | None = None
        self.reused = False
        """Whether a response has come over it before: a failure may then just be a stale connection."""
        self.idle_since = 0.0
        self.status = 0
        self.status_line = b""
        self.fields: list[tuple[bytes, bytes, bytes]] = []
        """Header fields of the response: name in lower case, name as sent, value."""
        self.named = b""
        """What the response's Connection headers name."""
        self.chunked = self.sized = False
        """How the response's body is framed: in chunks, or by a length; neither: it ends with the connection."""
        self.recoded = False
        """Whether `body` gets the payload (True) or the bytes as they came (False)."""
        self._parser = httptools.HttpResponseParser(self)
        self._sink: ResponseSink | None = None
        self._reset()

    def _reset(self) -> None:
        self._buffer = b""
        self._in_message = False
        self._head_held = False
        self._complete = False
        self._surplus = False
        self._in_chunk = False
        self._keep = True
        self._until_close = False
        self._left = -1
        self._tail = b""

    # ---- towards the worker -----------------------------------------------------------------

    def send(self, sink: ResponseSink, head: bytes, body: bytes) -> None:
        """Send a request; its response goes to `sink`."""
        self._sink = sink
        self._reset()
        assert self.transport is not None
        if len(body) < 65536:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)

    def abort(self) -> None:
        """Drop the connection at once, and with it whatever the worker is doing for it."""
        self._sink = None
        if self.transport is not None:
            self.transport.abort()

    @property
    def usable(self) -> bool:
        """Whether another request may be sent over it."""
        return self._keep and self.transport is not None and not self.transport.is_closing()

    @property
    def between_chunks(self) -> bool:
        """Whether what was passed on so far ends where another chunk may begin."""
        return not self._in_chunk and self._tail == b"\r\n"

    def pause(self) -> None:
        """Stop reading: the client is slower than the worker."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    # ---- asyncio ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        # uvloop's transports are not subclasses of asyncio's.
        self.transport = cast("asyncio.Transport", transport)
        _watch_for_death(self.transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop with what the worker sent."""
        if self._in_message:
            self._pass(data)
        elif self._sink is None:
            self.abort()  # nobody asked: either surplus of an earlier response, or not a worker at all
        elif self._head_held:
            self._buffer = data
            self._announce()
        else:
            self._head(data)

    def eof_received(self) -> bool:
        """Called by the loop; the transport closes itself afterwards."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop when the connection is over, for whatever reason."""
        self._keep = False
        self.pool.forget(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        if self._in_message and self._until_close and exc is None:
            sink.ended()
        elif self.reused and not self._in_message and not self._head_held and not self._buffer:
            sink.broke(Failure.STALE_CONNECTION)
        else:
            sink.broke(Failure.RESET)

    # ---- the response -----------------------------------------------------------------------

    def _head(self, data: bytes) -> None:
        """Collect the head; interim (1xx) responses are swallowed."""
        self._buffer += data
        while True:
            end = self._buffer.find(_HEAD_END)
            if end < 0:
                if len(self._buffer) > MAX_HEAD or not _may_be_http(self._buffer):
                    self._break(Failure.BAD_RESPONSE)
                return
            end += len(_HEAD_END)
            head, self._buffer = self._buffer[:end], self._buffer[end:]
            self._forget_head()
            if not self._feed(head) or not 100 <= (status := self._parser.get_status_code()) <= 999 or status == 101:
                self._break(Failure.BAD_RESPONSE)
                return
            if status >= 200:
                break
            self._complete = False
        self.status = status
        self.status_line = b"HTTP/1.1" + head[8 : head.find(b"\r\n")]
        # An engine sends the head of a stream when it accepts the request, long before the first token. As long as
        # it has said nothing else, another worker can still take the request over: the head waits for the body.
        self._head_held = self.status == 200 and not self._buffer and not self._complete
        if not self._head_held:
            self._announce()

    def _announce(self) -> None:
        """Hand the head to the sink, then the part of the body that came with it."""
        self._in_message = True
        self._keep = self._parser.should_keep_alive()
        self._until_close = not (self.chunked or self.sized or self._complete)
        sink = self._sink
        assert sink is not None
        rest, self._buffer = self._buffer, b""
        if not sink.answered(self, bool(rest) or self._complete):
            self.abort()
            return
        if rest or self._complete:
            self._pass(rest)

    def _forget_head(self) -> None:
        """Nothing is known of the response yet."""
        self.fields = []
        self.named = b""
        self.chunked = self.sized = False
        self._left = -1

    def _pass(self, data: bytes) -> None:
        """Pass body bytes on; never a byte beyond the end of the message."""
        sink = self._sink
        if sink is None:
            self.abort()  # surplus, or the rest of what nobody wants any more
            return
        whole = self._feed(data) if data else True
        if not whole and not self._complete:
            self._break(Failure.BAD_RESPONSE)
            return
        if self._surplus or not whole:
            self._keep = False
            if self._left < 0 and not self.recoded:
                self._break(Failure.BAD_RESPONSE)
                return
        if not self.recoded:
            if self._left >= 0:
                data = data[: self._left]
                self._left -= len(data)
            self._tail = data[-2:]
            if data:
                sink.body(data)
        if self._complete and self._sink is not None:
            self._sink = None
            self.reused = True
            sink.ended()

    def _feed(self, data: bytes) -> bool:
        """Let the parser follow; False when it cannot."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False
        return True

    def _break(self, failure: Failure) -> None:
        sink, self._sink = self._sink, None
        self._keep = False
        if self.transport is not None:
            self.transport.abort()
        if sink is not None:
            sink.broke(failure)

    # ---- httptools --------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Called by the parser; a second message in answer to one request is surplus."""
        if self._complete:
            self._surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser; trailers are not looked at."""
        if self._in_message:
            return
        lower = name.lower()
        self.fields.append((lower, name, value))
        if lower == b"content-length":
            self._left, self.sized = int(value), True
        elif lower == b"transfer-encoding":
            self.chunked = True
        elif lower == b"connection":
            self.named = self.named + b"," + value if self.named else value

    def on_body(self, data: bytes) -> None:
        """Called by the parser with payload, which only a recoded response needs."""
        if self.recoded and self._sink is not None and not self._surplus:
            self._sink.body(data)

    def on_chunk_header(self) -> None:
        """Called by the parser."""
        self._in_chunk = True

    def on_chunk_complete(self) -> None:
        """Called by the parser."""
        self._in_chunk = False

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._complete = True


def _may_be_http(start: bytes) -> bool:
    return start[:5] == b"HTTP/"[: len(start)]


def _watch_for_death(transport: asyncio.Transport) -> None:
    """Let the kernel notice a worker that vanished without a word (its node lost), within about 15 s."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 6), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000)
