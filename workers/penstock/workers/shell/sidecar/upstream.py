"""Connections to engines: one request at a time, the answer's bytes handed on as they come.

An answer is watched, not parsed: the C parser follows along to say where the message ends, and the bytes go to the
client's connection untouched, chunk sizes and all.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol, cast

import httptools
from penstock.core.fleet import Failure, Worker

MAX_HEAD = 64 << 10
MAX_KEPT = 8 << 20
"""Bytes of an answer that is kept whole: a first leg's names each block of the prompt."""
MAX_IDLE = 64
"""Idle connections kept per worker."""
_HEAD_END = b"\r\n\r\n"


class Broken(Exception):
    """The worker will not answer, or its answer will never be whole."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Taker(Protocol):
    """Who gets an answer's bytes."""

    def take(self, data: bytes) -> None:
        """Some bytes, framing included."""
        ...


class Upstream(asyncio.Protocol):
    """One connection to a worker."""

    def __init__(self, worker: Worker) -> None:
        """A connection to be."""
        self.worker = worker
        self.reused = False
        """Whether an answer came over it before: a failure may then just be a stale connection."""
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.status_line = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.chunked = False
        self._length = -1
        self._head = b""
        self._in_body = self._complete = self._surplus = self._in_chunk = False
        self._keep = True
        self._failure: Failure | None = None
        self._held = b""
        self._kept: bytearray | None = None
        self._taker: Taker | None = None
        self._tail = b""
        self._heard = self._silence = 0.0

    # ---- asking -------------------------------------------------------------------------------

    async def ask(self, request: bytes, silence: float) -> None:
        """Send a request and wait for the head of its answer, `silence` seconds at most; raises `Broken`."""
        self._reset()
        if self._transport is None or self._transport.is_closing():
            raise Broken(Failure.STALE_CONNECTION if self.reused else Failure.RESET)
        self._transport.write(request)
        self._watch(silence)
        await self._wait()

    async def keep(self, silence: float) -> bytes:
        """The answer's body, whole and without its framing; raises `Broken`."""
        self._kept = bytearray()
        await self._rest(silence)
        return bytes(self._kept)

    async def pass_to(self, taker: Taker, silence: float) -> None:
        """Give the answer's body to `taker` as it comes, until it is whole; raises `Broken`."""
        self._taker = taker
        await self._rest(silence)

    async def _rest(self, silence: float) -> None:
        held, self._held = self._held, b""
        self._watch(silence)
        self.resume()
        self._body(held)
        if not self._complete:
            await self._wait()

    async def _wait(self) -> None:
        if self._failure is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._failure is not None:
            raise Broken(self._failure)

    def _watch(self, silence: float) -> None:
        """From now on, so many seconds without a byte break the answer. One timer, moved on only when it rings."""
        self._heard, self._silence = self._loop.time(), silence
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(silence, self._ring)

    def _ring(self) -> None:
        due = self._heard + self._silence
        if due <= self._loop.time():
            self._break(Failure.RESPONSE_TIMEOUT)
        else:
            self._timer = self._loop.call_at(due, self._ring)

    def _quiet(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ---- state ----------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether another request may be sent over it."""
        open_ = self._transport is not None and not self._transport.is_closing()
        return open_ and self._keep and self._complete and not self._surplus

    @property
    def until_close(self) -> bool:
        """Whether the body ends with the connection."""
        return not (self.chunked or self._length >= 0 or self.status in (204, 304))

    @property
    def between_chunks(self) -> bool:
        """Whether what was passed on so far ends where another chunk may begin."""
        return self.chunked and not self._in_chunk and self._tail in (b"", b"\r\n")

    def abort(self) -> None:
        """Drop the connection at once, and with it whatever the worker is doing for it."""
        self._quiet()
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading: the client is slower than the worker."""
        self._quiet()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._timer is None:
            self._watch(self._silence)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # ---- asyncio ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another base class
        _watch_for_death(self._transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop with what the worker sent."""
        self._heard = self._loop.time()
        if self._in_body:
            self._body(data)
        elif self._waiter is not None:
            self._on_head(data)
        else:
            self.abort()  # nobody asked

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop when the connection is over, for whatever reason."""
        self._keep = False
        self._quiet()
        if self._complete:
            return
        if self._in_body and self.until_close and exc is None:
            self._complete = True
            self._wake()
        elif self.reused and not self._in_body and not self._head:
            self._fail(Failure.STALE_CONNECTION)
        else:
            self._fail(Failure.RESET)

    # ---- the answer -------------------------------------------------------------------------------

    def _on_head(self, data: bytes) -> None:
        self._head += data
        while (end := self._head.find(_HEAD_END)) >= 0:
            end += len(_HEAD_END)
            head, self._head = self._head[:end], self._head[end:]
            self.fields = []
            if not self._feed(head) or self._parser.get_status_code() == 101:
                self._break(Failure.BAD_RESPONSE)
                return
            self.status = self._parser.get_status_code()
            if self.status >= 200:
                self._begin_body(head)
                return
            self._complete = False  # an interim answer is swallowed
        if len(self._head) > MAX_HEAD or not self._head.startswith(b"HTTP/"[: len(self._head)]):
            self._break(Failure.BAD_RESPONSE)

    def _begin_body(self, head: bytes) -> None:
        self.status_line = b"HTTP/1.1" + head[8 : head.find(b"\r\n")]
        self._keep = self._parser.should_keep_alive()
        for name, value in self.fields:
            lower = name.lower()
            if lower == b"content-length":
                self._length = int(value)
            elif lower == b"transfer-encoding":
                self.chunked = True
        self._in_body = True
        self._held, self._head = self._head, b""
        self.pause()  # until somebody says where the body goes
        self._wake()

    def _body(self, data: bytes) -> None:
        if data and not self._feed(data) and not self._complete:
            self._break(Failure.BAD_RESPONSE)
            return
        if self._kept is not None and len(self._kept) > MAX_KEPT:
            self._break(Failure.BAD_RESPONSE)
            return
        if self._taker is not None and data:
            if self._length >= 0 and len(data) > self._length:
                data, self._surplus = data[: self._length], True
            elif self._surplus and self.chunked:
                self._break(Failure.BAD_RESPONSE)  # a second answer to one request is never passed on
                return
            self._length -= len(data) if self._length >= 0 else 0
            self._tail = data[-2:]
            self._taker.take(data)
        if self._complete:
            self.reused = True
            self._quiet()
            self._wake()

    def _feed(self, data: bytes) -> bool:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._surplus = self._complete
            return False
        return True

    def _break(self, failure: Failure) -> None:
        self._keep = self._complete = False
        self._fail(failure)
        self.abort()

    def _fail(self, failure: Failure) -> None:
        if self._failure is None:
            self._failure = failure
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ---- httptools --------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._surplus = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser; trailers are not wanted."""
        if not self._in_body:
            self.fields.append((name, value))

    def on_body(self, data: bytes) -> None:
        """Called by the parser with payload, which only a kept answer needs."""
        if self._kept is not None and not self._surplus:
            self._kept += data

    def on_chunk_header(self) -> None:
        """Called by the parser."""
        self._in_chunk = True

    def on_chunk_complete(self) -> None:
        """Called by the parser."""
        self._in_chunk = False

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._complete = True


class Connections:
    """Idle connections to workers; the newest is used first, so that old ones fall idle."""

    def __init__(self, connect_timeout: float, idle_timeout: float) -> None:
        """Seconds to connect, and seconds an idle connection is kept: less than the worker keeps it."""
        self._connect_timeout = connect_timeout
        self._idle_timeout = idle_timeout
        self._idle: dict[str, list[Upstream]] = {}
        self._loop = asyncio.get_running_loop()

    async def to(self, worker: Worker, *, fresh: bool = False) -> Upstream:
        """An idle connection, or a new one; raises `Broken`."""
        while idle := self._idle.get(worker.name) if not fresh else None:
            connection = idle.pop()
            if connection.usable and self._loop.time() - connection.idle_since < self._idle_timeout:
                return connection
            connection.abort()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, made = await self._loop.create_connection(lambda: Upstream(worker), worker.host, worker.port)
        except TimeoutError:
            raise Broken(Failure.CONNECT_TIMEOUT) from None
        except OSError:
            raise Broken(Failure.CONNECT_REFUSED) from None
        return made

    def give(self, connection: Upstream) -> None:
        """Keep a connection for the next request, or close it."""
        idle = self._idle.setdefault(connection.worker.name, [])
        if connection.usable and len(idle) < MAX_IDLE:
            connection.idle_since = self._loop.time()
            idle.append(connection)
        else:
            connection.abort()

    def sweep(self) -> None:
        """Close what was idle too long, and forget workers nobody asks any more."""
        now = self._loop.time()
        for name, idle in list(self._idle.items()):
            old = [c for c in idle if not c.usable or now - c.idle_since >= self._idle_timeout]
            for connection in old:
                idle.remove(connection)
                connection.abort()
            if not idle:
                del self._idle[name]

    def close(self) -> None:
        """Close every idle connection."""
        for idle in self._idle.values():
            for connection in idle:
                connection.abort()
        self._idle.clear()


def _watch_for_death(transport: asyncio.Transport) -> None:
    """Let the kernel notice a worker that vanished without a word, its node lost, within about 15 s."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 6), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
