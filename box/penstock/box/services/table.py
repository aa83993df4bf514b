"""From Services and EndpointSlices to routes: which address and port leads to which pods. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]
Address = tuple[str, int]

SERVICE_NAME_LABEL = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True)
class Route:
    """Where connections to one port of a Service go. `sticky` keeps a client address on one endpoint."""

    namespace: str
    service: str
    port: str
    endpoints: tuple[Address, ...]
    sticky: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Every TCP route: by ClusterIP and port, and by (namespace, service, port name)."""

    by_address: Mapping[Address, Route]
    by_name: Mapping[tuple[str, str, str], Route]


EMPTY = Table({}, {})


def build_table(services: Iterable[Object], slices: Iterable[Object]) -> Table:
    """Routes of all TCP ports of all Services with a ClusterIP. Endpoints are sorted, so that order never flaps."""
    by_service = slices_by_service(slices)
    by_address: dict[Address, Route] = {}
    by_name: dict[tuple[str, str, str], Route] = {}
    for service in services:
        key = service_key(service)
        for route, port in _routes(service, by_service.get(key, ())):
            by_name[(*key, route.port)] = route
            for address in cluster_addresses(service):
                by_address[(address, port)] = route
    return Table(by_address, by_name)


def service_key(item: Object) -> tuple[str, str]:
    """(namespace, name)."""
    return item["metadata"]["namespace"], item["metadata"]["name"]


def cluster_addresses(service: Object) -> tuple[str, ...]:
    """A Service's ClusterIPs; none when it is headless or an external name."""
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        return ()
    addresses = spec.get("clusterIPs") or [spec.get("clusterIP", "")]
    return tuple(address for address in addresses if address and address != "None")


def slices_by_service(slices: Iterable[Object]) -> dict[tuple[str, str], list[Object]]:
    """IPv4 EndpointSlices grouped by the Service they belong to."""
    grouped: dict[tuple[str, str], list[Object]] = {}
    for item in slices:
        name = item["metadata"].get("labels", {}).get(SERVICE_NAME_LABEL)
        if name and item.get("addressType") == "IPv4":
            grouped.setdefault((item["metadata"]["namespace"], name), []).append(item)
    return grouped


def _routes(service: Object, slices: Iterable[Object]) -> Iterable[tuple[Route, int]]:
    namespace, name = service_key(service)
    sticky = service["spec"].get("sessionAffinity") == "ClientIP"
    for port in service["spec"].get("ports") or ():
        if port.get("protocol", "TCP") == "TCP":
            port_name = port.get("name") or ""
            endpoints = tuple(sorted(set(_endpoints(port_name, slices))))
            yield Route(namespace, name, port_name, endpoints, sticky), int(port["port"])


def _endpoints(port_name: str, slices: Iterable[Object]) -> list[Address]:
    ready: list[Address] = []
    leaving: list[Address] = []
    for item in slices:
        numbers = [p["port"] for p in item.get("ports") or () if (p.get("name") or "") == port_name and p.get("port")]
        for endpoint in item.get("endpoints") or ():
            target = ready if is_ready(endpoint) else leaving if _serves_while_leaving(endpoint) else None
            if target is not None:
                target += [(endpoint["addresses"][0], number) for number in numbers]
    # As kube-proxy does: when every pod is on its way out, those that still answer are better than nobody.
    return ready or leaving


def is_ready(endpoint: Object) -> bool:
    """An endpoint without a readiness condition counts as ready, as the API defines it."""
    ready = (endpoint.get("conditions") or {}).get("ready")
    return ready is None or bool(ready)


def _serves_while_leaving(endpoint: Object) -> bool:
    conditions = endpoint.get("conditions") or {}
    return bool(conditions.get("serving")) and bool(conditions.get("terminating"))
