"""Sockets that never close a descriptor which is no longer theirs.

aiohttp opens a socket itself and hands it to the event loop. When the peer resets it during the TLS handshake
(an API server that restarts does), uvloop closes the descriptor but leaves its number in the Python object. At
some later garbage collection that object closes the number again, by then a client's connection or a watch:
requests end in mid-air, and a TLS stream reads another connection's bytes. Seen with uvloop 0.23 in the fault
scenario; `tests/router/test_sockets.py` shows it.
"""

from __future__ import annotations

import os
import socket
import ssl

import aiohttp
from aiohttp.connector import AddrInfoType
from kubernetes_asyncio.client import ApiClient


class OwnedSocket(socket.socket):
    """A socket that knows which open file its descriptor stood for when it was made."""

    __slots__ = ("_file",)

    def __init__(self, family: int, kind: int, proto: int) -> None:
        """As `socket.socket`."""
        super().__init__(family, kind, proto)
        self._file = _file_of(self.fileno())

    @property
    def mine(self) -> bool:
        """Whether the descriptor is still open and still this socket's."""
        return self.fileno() >= 0 and _file_of(self.fileno()) == self._file

    def close(self) -> None:
        """Close the descriptor if it is this socket's, else forget its number."""
        if self.fileno() >= 0 and not self.mine:
            self.detach()
        super().close()

    def __del__(self) -> None:
        self.close()


def open_socket(address: AddrInfoType) -> socket.socket:
    """The socket factory for aiohttp on uvloop."""
    family, kind, proto, _, _ = address
    return OwnedSocket(family, kind, proto)


async def use_owned_sockets(api: ApiClient) -> None:
    """Let a Kubernetes client open its connections by `open_socket`; call it before the first request."""
    settings = api.configuration
    context = ssl.create_default_context(cafile=settings.ssl_ca_cert)
    if settings.cert_file:
        context.load_cert_chain(settings.cert_file, keyfile=settings.key_file)
    if not settings.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    await api.rest_client.close()
    connector = aiohttp.TCPConnector(ssl=context, socket_factory=open_socket)
    # Watch events carry whole objects, larger than aiohttp's usual buffer.
    session = aiohttp.ClientSession(connector=connector, trust_env=True, read_bufsize=1 << 21)
    api.rest_client.pool_manager = session


def _file_of(descriptor: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino
