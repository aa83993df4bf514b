"""Client connections: requests in, answers out, and every way a client can misbehave in between.

One request at a time is served per connection; what a client sends ahead waits in a short queue, and beyond
that we stop reading. A client that closes its side (even only the sending half) has left: its request is
cancelled at the worker.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools
from penstock.router.shell.forms import CONTINUE, Fault, fault_response, head
from penstock.router.shell.inbound import Inbound

if TYPE_CHECKING:
    from penstock.router.shell.exchange import Exchange
    from penstock.router.shell.gateway import Gateway

_NEVER = float("inf")
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 256 * 1024 * 1024
_IGNORED_BODY = 64 * 1024
"""A body nobody wants is read to its end up to this size, to keep the connection; larger, it is closed."""


class ClientConnection(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_arriving",
        "_current",
        "_exchange",
        "_fields",
        "_gateway",
        "_held",
        "_in_head",
        "_lingering",
        "_parser",
        "_peer",
        "_read_paused",
        "_silent_head",
        "_transport",
        "_unread_since",
        "_waiting",
        "deadline",
    )

    def __init__(self, gateway: "Gateway") -> None:
        """A connection to be."""
        self._gateway = gateway
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._arriving: Inbound | None = None
        self._current: Inbound | None = None
        self._exchange: Exchange | None = None
        self._waiting: deque[Inbound] = deque()
        self._in_head = False
        self._fields: list[tuple[bytes, bytes]] = []
        """Header fields of the request that is arriving, until its head is whole."""
        self._silent_head = 0
        self._held = b""
        self._lingering = -1
        self._read_paused = False
        self._peer = b""
        self._unread_since = _NEVER
        self.deadline = _NEVER
        """Loop time at which the client has been silent for too long; `inf` while it waits for us."""

    # ---- asyncio ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]).encode() if isinstance(peer, tuple) else b"unknown"
        gateway = self._gateway
        gateway.counters.accepted_connections += 1
        gateway.connections.add(self)
        self.deadline = gateway.coarse_now + gateway.settings.header_timeout
        if len(gateway.connections) > gateway.settings.max_connections:
            message = "This gateway has as many connections as it may have; try again shortly."
            self._refuse(Fault(503, message, "TooManyConnections", type="server_error", close=True, retry_after=1.0))

    def data_received(self, data: bytes) -> None:
        """Called by the loop with what the client sent."""
        if self._lingering >= 0:
            self._discard(len(data))
            return
        in_head = self._in_head
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # refused when its head was complete; what follows would be another protocol
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserError as bad:
            self._mark(Fault(400, f"The request is not valid HTTP: {bad}.", "malformed_request", close=True))
        if in_head and self._in_head:
            # The parser gathers an unfinished header line silently; count what it was fed.
            self._silent_head += len(data)
            if self._silent_head > self._gateway.settings.max_header_bytes:
                self._mark(_head_too_large(self._gateway.settings.max_header_bytes))
        arriving = self._arriving
        if arriving is not None:
            if arriving.fault is not None and arriving.fault.close and self._current is None:
                self._refuse(arriving.fault, arriving)
                return
            self.deadline = self._patience()
        self._read_ahead()

    def eof_received(self) -> bool:
        """Called by the loop: the client sends no more."""
        if self._exchange is not None:
            self._leave()
        elif self._arriving is not None and self._lingering < 0:
            message = "The connection ended in the middle of the request."
            self._refuse(Fault(400, message, "truncated_request", close=True), self._arriving)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop when the connection is over."""
        self._leave()
        self._gateway.connections.discard(self)
        for inbound in (*self._waiting, *filter(None, (self._arriving, self._current))):
            self._gateway.unbuffer(inbound)
        self._waiting.clear()

    def pause_writing(self) -> None:
        """Called by the loop: the client reads slower than we write."""
        self._unread_since = self._gateway.coarse_now
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        """Called by the loop: it has caught up."""
        self._unread_since = _NEVER
        if self._exchange is not None:
            self._exchange.resume()

    def _leave(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()

    # ---- httptools --------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._arriving = Inbound()
        self._fields = []
        self._in_head = True
        self._silent_head = 0
        if self._current is None:
            self.deadline = self._gateway.coarse_now + self._gateway.settings.header_timeout

    def on_url(self, url: bytes) -> None:
        """Called by the parser, perhaps in pieces."""
        assert self._arriving is not None
        self._arriving.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser; trailers of a chunked body are dropped."""
        if self._in_head:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Called by the parser; what can be refused now is, before any body is taken."""
        inbound = self._arriving
        assert inbound is not None
        self._in_head = False
        parser = self._parser
        inbound.read_fields(self._fields)
        inbound.path = inbound.target.partition(b"?")[0]
        inbound.method = parser.get_method()
        keep = parser.should_keep_alive()
        # Who keeps a connection without a word about it is not of version 1.0, whose text is dear to ask for.
        inbound.http_1_0 = (not keep or inbound.connection != b"") and parser.get_http_version() == "1.0"
        inbound.keep_alive = keep and not inbound.http_1_0
        self._gateway.name_request(inbound)
        inbound.fault = _UPGRADE if parser.should_upgrade() else self._gateway.check_head(inbound)
        if inbound.fault is not None and inbound.length > _IGNORED_BODY:
            inbound.fault = _closing(inbound.fault)
        if inbound.expect and inbound.fault is None:
            if inbound.expect.lower() != b"100-continue":
                inbound.fault = Fault(
                    417, "The only expectation known here is 100-continue.", "expectation", close=True
                )
            elif self._current is None and not inbound.http_1_0 and inbound.length:
                self._write(CONTINUE)
        elif inbound.expect:
            # The client waits for our word before it sends the body; a refusal leaves its next byte in doubt.
            inbound.fault = _closing(inbound.fault) if inbound.fault is not None else None

    def on_body(self, data: bytes) -> None:
        """Called by the parser."""
        inbound = self._arriving
        assert inbound is not None
        inbound.size += len(data)
        if inbound.fault is not None:
            if inbound.size > _IGNORED_BODY:
                inbound.fault = _closing(inbound.fault)
            return
        inbound.fault = self._gateway.buffer(inbound, len(data))
        if inbound.fault is None:
            inbound.body.append(data)
        else:
            inbound.body.clear()

    def on_message_complete(self) -> None:
        """Called by the parser: a request is whole."""
        inbound, self._arriving = self._arriving, None
        assert inbound is not None
        inbound.whole = True
        self._in_head = False
        if self._current is None:
            self._begin(inbound)
        else:
            self._waiting.append(inbound)

    # ---- serving ------------------------------------------------------------------------------

    def _begin(self, inbound: Inbound) -> None:
        """Serve a whole request."""
        self._current = inbound
        self.deadline = _NEVER
        if inbound.fault is not None:
            self.respond(inbound.fault, inbound)
            self.finished(close=inbound.fault.close or not inbound.keep_alive)
            return
        self._gateway.serve(self, inbound)

    def begin_exchange(self, exchange: "Exchange") -> None:
        """The request being served goes to a worker."""
        self._exchange = exchange
        if self._unread_since != _NEVER:
            exchange.pause()  # the answer before this one is still unread

    def finished(self, *, close: bool, abort: bool = False) -> None:
        """The request being served has its answer; turn to the next one."""
        self._exchange = None
        current, self._current = self._current, None
        if current is not None and current.buffered:
            self._gateway.unbuffer(current)
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if abort:
            transport.abort()
        elif close or self._gateway.draining:
            self._close(unread=self._arriving is not None or bool(self._waiting))
        elif self._waiting:
            # Through the loop, so that a long pipeline does not become a deep stack.
            self._gateway.loop.call_soon(self._next)
        else:
            self._rest()

    def _next(self) -> None:
        if self._waiting and self._current is None and self._lingering < 0:
            self._begin(self._waiting.popleft())
            self._read_ahead()

    def _rest(self) -> None:
        """Nothing to do: wait for the next request, or for the rest of one."""
        now, settings = self._gateway.coarse_now, self._gateway.settings
        if self._arriving is None:
            self.deadline = now + settings.keepalive_timeout
        elif self._arriving.fault is not None and self._arriving.fault.close:
            self._refuse(self._arriving.fault, self._arriving)
        else:
            if self._arriving.expect and not self._in_head:
                self._write(CONTINUE)
            if self._in_head:
                self.deadline = now + settings.header_timeout
            self.deadline = self._patience()
        self._read_ahead()

    def _patience(self) -> float:
        """Until when to wait for the rest of the request that is arriving."""
        if self._current is not None:
            return _NEVER
        settings = self._gateway.settings
        if self._in_head:
            # From the first byte of the head, not from the last one: dripping buys no time.
            return self.deadline
        assert self._arriving is not None
        now = self._gateway.coarse_now
        if self._arriving.body_until == _NEVER:
            self._arriving.body_until = now + settings.receive_timeout
        return min(now + settings.body_timeout, self._arriving.body_until)

    def _read_ahead(self) -> None:
        """Stop reading while too much waits; go on when it does not."""
        if self._arriving is None and not self._waiting and not self._read_paused:
            return
        crowded = len(self._waiting) >= self._gateway.settings.max_pipelined or (
            self._current is not None and self._arriving is not None and self._arriving.size > _IGNORED_BODY
        )
        if self._transport is None or crowded == self._read_paused or self._transport.is_closing():
            return
        self._read_paused = crowded
        if crowded:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def check(self, now: float) -> None:
        """Called now and then: act on a client that has been silent for too long."""
        if now >= self._unread_since + self._gateway.settings.send_timeout:
            if self._transport is not None:
                self._transport.abort()
            return
        if now < self.deadline:
            return
        self.deadline = _NEVER
        if self._lingering < 0 and self._arriving is not None:
            what = "head" if self._in_head else "body"
            message = f"The request's {what} did not arrive in time."
            self._refuse(Fault(408, message, "request_timeout", close=True), self._arriving)
        elif self._transport is not None:
            self._transport.close() if self._lingering < 0 else self._transport.abort()

    def drain(self) -> None:
        """The gateway is going away: leave now if there is nothing to do."""
        if self._current is None and self._arriving is None and self._transport is not None:
            self._transport.close()

    def cut(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # ---- writing ------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            self._gateway.counters.sent_bytes += len(data)
            transport.write(data)

    def hold(self, data: bytes) -> None:
        """Write together with what comes next (`pass_on` or `release_hold`)."""
        self._held = data

    def release_hold(self) -> None:
        """Write what is held."""
        if self._held:
            held, self._held = self._held, b""
            self._write(held)

    def pass_on(self, data: bytes) -> None:
        """Write response bytes as they came."""
        if self._held:
            data = self._held + data
            self._held = b""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            self._gateway.counters.sent_bytes += len(data)
            transport.write(data)

    def respond(self, fault: Fault, inbound: Inbound) -> None:
        """Answer with an error of our own."""
        keep_alive = inbound.keep_alive and not fault.close and not self._gateway.draining
        self._gateway.counters.requests[("", "", fault.status)] += self._exchange is None
        self._write(fault_response(fault, inbound.request_id, keep_alive=keep_alive))

    def respond_json(self, body: bytes, inbound: Inbound) -> None:
        """Answer with JSON of our own (empty for none)."""
        fields = [b"x-request-id: " + inbound.request_id]
        if body:
            fields.append(b"content-type: application/json")
        keep_alive = inbound.keep_alive and not self._gateway.draining
        answer = head(200, fields, length=len(body), keep_alive=keep_alive)
        self._write(answer if inbound.method == b"HEAD" else answer + body)
        self.finished(close=not keep_alive)

    def forwarded_for(self, inbound: Inbound) -> bytes:
        """Value of X-Forwarded-For towards the worker: what came, and this client."""
        return inbound.forwarded_for + b", " + self._peer if inbound.forwarded_for else self._peer

    # ---- ending -------------------------------------------------------------------------------

    def _mark(self, fault: Fault) -> None:
        """Something is wrong with what is arriving; it is answered in its turn."""
        inbound = self._arriving
        if inbound is None:
            # Between messages, or after one that ends the connection: an answer in its turn needs a carrier.
            inbound = self._arriving = Inbound()
        if inbound.fault is None or not inbound.fault.close:
            inbound.fault = fault

    def _refuse(self, fault: Fault, inbound: Inbound | None = None) -> None:
        """Answer and end the connection, though the client may still be sending."""
        self._arriving = None
        self._in_head = False
        refused = inbound or Inbound()
        self._gateway.unbuffer(refused)
        if not refused.request_id:
            self._gateway.name_request(refused)
        self.respond(fault, refused)
        self._close(unread=True)

    def _close(self, *, unread: bool) -> None:
        """Close; with unread bytes in the way, first let the client read our answer.

        Closing a socket that still has bytes to read makes the kernel send a reset, and that can overtake
        the answer. So the sending half is closed and the rest read and dropped, for a bounded while.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._waiting.clear()
        if not unread:
            transport.close()
            return
        self._lingering = 0
        self.deadline = self._gateway.coarse_now + _LINGER_SECONDS
        transport.write_eof()
        if self._read_paused:
            self._read_paused = False
            transport.resume_reading()

    def _discard(self, size: int) -> None:
        self._lingering += size
        if self._lingering > _LINGER_BYTES and self._transport is not None:
            self._transport.abort()


_UPGRADE = Fault(400, "This gateway speaks HTTP/1.1 only; send no Upgrade header.", "upgrade", close=True)


def _closing(fault: Fault) -> Fault:
    """The same fault, ending the connection."""
    if fault.close:
        return fault
    return Fault(fault.status, fault.message, fault.code, fault.type, fault.param, True, fault.retry_after, fault.allow)


def _head_too_large(limit: int) -> Fault:
    return Fault(431, f"The request's head is larger than {limit} bytes.", "header_too_large", close=True)
