"""`python -m penstock.box.services`: the service proxy, the DNS and the host's doors of one box, as one process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvloop
from penstock.box.components import CLUSTER_DOMAIN, DNS_ADDRESS
from penstock.box.netlink import HOST_ADDRESS
from penstock.box.ready import client_context, kubeconfig_identity
from penstock.box.services.dns import answer, serve_dns
from penstock.box.services.listeners import ServiceListeners, Turns, open_door
from penstock.box.services.reflector import Reflector, watch_timeouts
from penstock.box.services.relay import Budget
from penstock.box.services.table import EMPTY, Address, Table, build_table
from penstock.box.services.zone import Zone, build_zone
from penstock.box.settings import INNER_API_PORT

_SETTLE_SECONDS = 0.02
_SERVICES = "/api/v1/services"
_SLICES = "/apis/discovery.k8s.io/v1/endpointslices"


@dataclass(frozen=True, slots=True)
class _Options:
    kubeconfig: Path
    api_door: int
    gateway_door: int
    gateway: tuple[str, str, str]


def _options() -> _Options:
    parser = argparse.ArgumentParser(prog="penstock.box.services", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--api-door", type=int, required=True, help="descriptor of the host's socket for the API")
    parser.add_argument(
        "--gateway-door", type=int, required=True, help="descriptor of the host's socket for the gateway"
    )
    parser.add_argument("--gateway", required=True, help="NAMESPACE/SERVICE/PORT behind the gateway's door")
    given = parser.parse_args()
    namespace, service, port = given.gateway.split("/")
    return _Options(given.kubeconfig, given.api_door, given.gateway_door, (namespace, service, port))


def _client(kubeconfig: Path) -> httpx.AsyncClient:
    ca, identity = kubeconfig_identity(kubeconfig)
    server = f"https://127.0.0.1:{INNER_API_PORT}"
    context = client_context(ca, identity)
    return httpx.AsyncClient(base_url=server, verify=context, timeout=watch_timeouts(), trust_env=False)


class ServiceNetwork:
    """Holds table and zone, and keeps listeners equal to them."""

    def __init__(self, client: httpx.AsyncClient, gateway: tuple[str, str, str]) -> None:
        self._dirty = asyncio.Event()
        self._services = Reflector(client, _SERVICES, self._dirty.set)
        self._slices = Reflector(client, _SLICES, self._dirty.set)
        self._budget = Budget()
        # The DNS answers on its own address itself.
        self._listeners = ServiceListeners(self._budget, frozenset({DNS_ADDRESS}))
        self._table: Table = EMPTY
        self._zone: Zone = {}
        self._gateway = gateway
        self._gateway_turns = Turns()

    async def run(self, api_door: socket.socket, gateway_door: socket.socket) -> None:
        """Serve until cancelled."""
        api: Sequence[Address] = (("127.0.0.1", INNER_API_PORT),)
        await open_door(api_door, lambda _client: api, self._budget)
        await open_door(gateway_door, self._choose_gateway, self._budget)
        await serve_dns((DNS_ADDRESS, HOST_ADDRESS), self._resolve)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._services.run())
            group.create_task(self._slices.run())
            group.create_task(self._follow())

    def _choose_gateway(self, client: str) -> Sequence[Address]:
        return self._gateway_turns.order(self._table.by_name.get(self._gateway), client)

    def _resolve(self, message: bytes, udp: bool) -> bytes | None:
        return answer(message, self._zone, CLUSTER_DOMAIN, udp=udp)

    async def _follow(self) -> None:
        while True:
            await self._dirty.wait()
            # A roll-out changes many slices at once; one pass serves them all.
            await asyncio.sleep(_SETTLE_SECONDS)
            self._dirty.clear()
            services, slices = list(self._services.items.values()), list(self._slices.items.values())
            self._table = build_table(services, slices)
            self._zone = build_zone(services, slices, CLUSTER_DOMAIN)
            await self._listeners.sync(self._table)


async def _main(options: _Options) -> None:
    async with _client(options.kubeconfig) as client:
        network = ServiceNetwork(client, options.gateway)
        await network.run(socket.socket(fileno=options.api_door), socket.socket(fileno=options.gateway_door))


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    uvloop.run(_main(_options()))


if __name__ == "__main__":
    main()
