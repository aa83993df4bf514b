"""The service proxy on real sockets: bytes, half-closes, refusals, back-pressure and dead endpoints."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from penstock.box.services.listeners import ServiceListeners, open_door
from penstock.box.services.relay import Budget
from penstock.box.services.table import Address, Route, Table

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])
"""The loop that the box runs on, and the one that its interface is defined by."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def _endpoint(serve: Serve) -> AsyncIterator[Address]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()


@asynccontextmanager
async def _proxy(*endpoints: Address, budget: Budget | None = None) -> AsyncIterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = await open_door(listening, lambda _client: endpoints, budget or Budget())
    try:
        yield listening.getsockname()[1]
    finally:
        server.close()


def _closed_port() -> Address:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address: Address = probe.getsockname()
        return address


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write(b"<end>")
    writer.write_eof()
    writer.close()


async def test_bytes_and_half_close_pass_both_ways() -> None:
    async with _endpoint(_echo) as address, _proxy(address) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        payload = bytes(range(256)) * 40_000

        async def send() -> None:
            writer.write(payload)
            writer.write_eof()
            await writer.drain()

        task = asyncio.create_task(send())
        heard = await asyncio.wait_for(reader.read(-1), 30)
        await task
        writer.close()
    # The echo's last words come after our half-close: the other direction stayed open.
    assert heard == payload + b"<end>"


async def test_an_endpoint_that_speaks_first_is_heard() -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async with _endpoint(greet) as address, _proxy(address) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(-1), 10) == b"hello"
        writer.close()


async def test_what_a_client_sends_at_once_is_never_lost() -> None:
    async with _endpoint(_echo) as address, _proxy(address) as port:
        for number in range(50):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(b"early %d" % number)
            client.shutdown(socket.SHUT_WR)
            reader, writer = await asyncio.open_connection(sock=client)
            assert await asyncio.wait_for(reader.read(-1), 10) == b"early %d<end>" % number
            writer.close()


async def test_another_endpoint_is_tried_when_one_does_not_answer() -> None:
    async with _endpoint(_echo) as address, _proxy(_closed_port(), _closed_port(), address) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        assert await asyncio.wait_for(reader.readexactly(1), 10) == b"x"
        writer.close()


@pytest.mark.parametrize("endpoints", [(), (_closed_port(),)])
async def test_with_nobody_to_serve_the_client_is_reset(endpoints: tuple[Address, ...]) -> None:
    async with _proxy(*endpoints) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readexactly(1), 10)
        writer.close()


async def test_a_reset_endpoint_resets_the_client() -> None:
    async def vanish(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with _endpoint(vanish) as address, _proxy(address) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readexactly(1), 10)
        writer.close()


async def test_connections_are_bounded_and_given_back() -> None:
    budget = Budget(limit=1)
    async with _endpoint(_echo) as address, _proxy(address, budget=budget) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        assert await asyncio.wait_for(reader.readexactly(1), 10) == b"x"
        refused, other = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(refused.readexactly(1), 10)
        other.close()
        writer.close()
        async with asyncio.timeout(10):
            while budget.open:  # noqa: ASYNC110 - a counter, not an event
                await asyncio.sleep(0.01)


async def test_a_slow_reader_slows_the_sender_down() -> None:
    sent = 0

    async def pour(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        try:
            while sent < 1 << 30:
                writer.write(b"x" * (1 << 16))
                await writer.drain()
                sent += 1 << 16
        except OSError:
            return

    async with _endpoint(pour) as address, _proxy(address) as port:
        client = socket.create_connection(("127.0.0.1", port))
        before = -1
        async with asyncio.timeout(30):
            while sent == 0 or sent != before:
                before = sent
                await asyncio.sleep(0.3)
        assert sent < 64 << 20
        client.close()


async def test_listeners_follow_the_table() -> None:
    address = _closed_port()
    async with _endpoint(_echo) as first:
        listeners = ServiceListeners(Budget(), frozenset({"127.0.0.9"}))
        route = Route("ns", "web", "", (first,))
        await listeners.sync(Table({address: route, ("127.0.0.9", address[1]): route}, {}))
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"x")
        assert await asyncio.wait_for(reader.readexactly(1), 10) == b"x"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.9", address[1])
        await listeners.sync(Table({address: Route("ns", "web", "", ())}, {}))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        # What was open before stays open.
        writer.write(b"y")
        assert await asyncio.wait_for(reader.readexactly(1), 10) == b"y"
        writer.close()
