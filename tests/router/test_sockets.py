"""A reset during the TLS handshake must never cost another connection its descriptor."""

import asyncio
import gc
import os
import socket
import ssl
import struct

import uvloop
from penstock.router.shell.discovery.sockets import OwnedSocket, open_socket

ROUNDS = 20
LINGER_ZERO = struct.pack("ii", 1, 0)


async def resetting_server(listener: socket.socket) -> None:
    """Accept and reset, as an API server does that is going down."""
    loop = asyncio.get_running_loop()
    while True:
        connection, _ = await loop.sock_accept(listener)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        connection.close()


def listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


async def fail_handshakes(make: type[socket.socket]) -> int:
    """How many innocent descriptors were closed by sockets whose handshake was reset."""
    loop = asyncio.get_running_loop()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with listen() as listener:
        server = loop.create_task(resetting_server(listener))
        failed, numbers = [], []
        for _ in range(ROUNDS):
            client = make(socket.AF_INET, socket.SOCK_STREAM, 0)
            client.setblocking(False)
            await loop.sock_connect(client, listener.getsockname())
            numbers.append(client.fileno())
            try:
                await loop.create_connection(asyncio.Protocol, sock=client, ssl=context, server_hostname="x")
            except OSError:
                failed.append(client)
            await asyncio.sleep(0.002)
        server.cancel()
    assert len(failed) == ROUNDS
    innocent = [os.open("/dev/null", os.O_RDONLY) for _ in range(2 * ROUNDS)]
    assert set(innocent) & set(numbers), "no number was used again: the test proves nothing"
    del client
    failed.clear()
    gc.collect()
    return sum(not closed_cleanly(descriptor) for descriptor in innocent)


def closed_cleanly(descriptor: int) -> bool:
    try:
        os.close(descriptor)
    except OSError:
        return False
    return True


def test_our_sockets_close_only_what_is_theirs() -> None:
    assert uvloop.run(fail_handshakes(OwnedSocket)) == 0


def test_a_socket_that_is_still_its_own_is_closed() -> None:
    made = open_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0)))
    assert isinstance(made, OwnedSocket) and made.mine
    number = made.fileno()
    del made
    assert not closed_cleanly(number)
