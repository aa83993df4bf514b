"""Two TCP connections made one: bytes, half-closes, back-pressure and resets pass through unread."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import cast

from penstock.box.services.table import Address

CONNECT_SECONDS = 3.0
MAX_CONNECTIONS = 8192
_MAX_ATTEMPTS = 4

Choose = Callable[[str], Sequence[Address]]
"""Endpoints for a client address, best first; empty when there is none."""


class Budget:
    """How many connections may be open at once, in all listeners together."""

    def __init__(self, limit: int = MAX_CONNECTIONS) -> None:
        self._limit = limit
        self.open = 0

    def take(self) -> bool:
        """Reserve one; False when all are taken."""
        if self.open >= self._limit:
            return False
        self.open += 1
        return True

    def give(self) -> None:
        """Return one."""
        self.open -= 1


class _Half(asyncio.Protocol):
    """One side of a relayed connection; everything it hears it says on its `peer`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer: _Half | None = None
        # Heard before there was a peer to tell: pausing a new transport may come a read too late.
        self._early: list[bytes] = []
        self._ended_early = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        _notice_death(self.transport)

    def data_received(self, data: bytes) -> None:
        peer = self.peer
        if peer is not None and peer.transport is not None:
            peer.transport.write(data)
        else:
            self._early.append(data)
            if self.transport is not None:
                self.transport.pause_reading()

    def eof_received(self) -> bool:
        transport = self.peer.transport if self.peer else None
        if transport is None:
            self._ended_early = True
            return True
        if transport.is_closing():
            return False
        transport.write_eof()
        return True  # The other direction stays open: a half-close is the client's to make.

    def join(self, peer: _Half) -> None:
        """Become `peer`'s other half: tell it what was heard so far, and listen on."""
        self.peer = peer
        for data in self._early:
            self.data_received(data)
        self._early.clear()
        if self._ended_early:
            self.eof_received()
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def abort(self) -> None:
        """Drop the connection."""
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        transport = self.peer.transport if self.peer else None
        if transport is None:
            return
        if error is None:
            transport.close()
        else:
            reset(transport)


class Inbound(_Half):
    """The client's side: finds an endpoint that takes the connection, then becomes half of a relay."""

    def __init__(self, choose: Choose, budget: Budget) -> None:
        super().__init__()
        self._choose = choose
        self._budget = budget
        self._task: asyncio.Task[None] | None = None
        self._counted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        if not self._budget.take():
            reset(self.transport)
            return
        self._counted = True
        # Nothing is read before there is somebody to say it to.
        self.transport.pause_reading()
        self._task = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        assert self.transport is not None
        client = self.transport.get_extra_info("peername")
        for host, port in list(self._choose(client[0] if client else ""))[:_MAX_ATTEMPTS]:
            outbound = await _try(host, port)
            if outbound is None:
                continue
            if self.transport.is_closing():
                outbound.abort()
                return
            outbound.join(self)
            self.join(outbound)
            return
        reset(self.transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._counted:
            self._budget.give()
        if self._task is not None and self.peer is None:
            self._task.cancel()
        super().connection_lost(error)


async def _try(host: str, port: int) -> _Half | None:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, protocol = await loop.create_connection(_Half, host, port)
    except OSError:  # TimeoutError is one.
        return None
    return protocol


def reset(transport: asyncio.Transport) -> None:
    """End a connection with RST: the client learns at once that nobody serves, instead of reading an empty answer."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    transport.abort()


def _notice_death(transport: asyncio.Transport) -> None:
    # A pod's network can vanish with the pod before any FIN leaves it; only the kernel's own probes tell.
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)
