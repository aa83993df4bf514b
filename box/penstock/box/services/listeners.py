"""One listener per ClusterIP and port, kept equal to the table; and the doors through which the host comes in."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import zlib
from collections.abc import Callable, Sequence

from penstock.box.services.relay import Budget, Inbound
from penstock.box.services.table import Address, Route, Table

_LOG = logging.getLogger(__name__)
_BACKLOG = 1024


class Turns:
    """Round-robin over a route's endpoints; a sticky route gives a client address the same one while it lasts."""

    def __init__(self) -> None:
        self._next = itertools.count()

    def order(self, route: Route | None, client: str) -> Sequence[Address]:
        """All endpoints of `route`, the one whose turn it is first."""
        if route is None or not route.endpoints:
            return ()
        turn = zlib.crc32(client.encode()) if route.sticky else next(self._next)
        first = turn % len(route.endpoints)
        return route.endpoints[first:] + route.endpoints[:first]


class ServiceListeners:
    """Listens on every ClusterIP and port that leads somewhere; without endpoints the kernel refuses."""

    def __init__(self, budget: Budget, except_for: frozenset[str]) -> None:
        self._budget = budget
        self._except_for = except_for
        self._routes: dict[Address, Route] = {}
        self._servers: dict[Address, asyncio.Server] = {}

    async def sync(self, table: Table) -> None:
        """Open and close listeners until they match `table`; open connections stay."""
        wanted = {
            address: route
            for address, route in table.by_address.items()
            if route.endpoints and address[0] not in self._except_for
        }
        for address in self._servers.keys() - wanted.keys():
            self._servers.pop(address).close()
        self._routes = wanted
        for address in wanted.keys() - self._servers.keys():
            await self._open(address)

    async def _open(self, address: Address) -> None:
        turns = Turns()

        def choose(client: str) -> Sequence[Address]:
            return turns.order(self._routes.get(address), client)

        try:
            self._servers[address] = await _serve(choose, self._budget, host=address[0], port=address[1])
        except OSError as error:
            _LOG.warning("cannot listen on %s:%d: %s", *address, error)


async def open_door(
    listening: socket.socket, choose: Callable[[str], Sequence[Address]], budget: Budget
) -> asyncio.Server:
    """Relay connections of a socket that was opened on the host, outside the box."""
    return await _serve(choose, budget, sock=listening)


async def _serve(
    choose: Callable[[str], Sequence[Address]],
    budget: Budget,
    *,
    host: str | None = None,
    port: int | None = None,
    sock: socket.socket | None = None,
) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    if sock is not None:
        return await loop.create_server(lambda: Inbound(choose, budget), sock=sock, backlog=_BACKLOG)
    return await loop.create_server(lambda: Inbound(choose, budget), host, port or 0, backlog=_BACKLOG)
