"""The cluster's DNS records, from Services and EndpointSlices: the names that Kubernetes specifies. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.box.services.table import Object, cluster_addresses, is_ready, service_key, slices_by_service


@dataclass(frozen=True, slots=True)
class Srv:
    """A port and the name of the host that has it."""

    port: int
    target: str


@dataclass(slots=True)
class Records:
    """What one name has. A name with no records at all exists all the same (something lies below it)."""

    addresses: list[str] = field(default_factory=list)
    services: list[Srv] = field(default_factory=list)
    alias: str | None = None
    pointers: list[str] = field(default_factory=list)


Zone = Mapping[str, Records]
"""Records by full name, lower case, without the final dot."""


def build_zone(services: Iterable[Object], slices: Iterable[Object], domain: str) -> Zone:
    """Every name below `domain`: Services, headless Services' pods, SRV of named ports, and their reverse names."""
    zone: dict[str, Records] = {domain: Records(), f"svc.{domain}": Records(), f"pod.{domain}": Records()}
    by_service = slices_by_service(slices)
    for service in services:
        namespace, name = service_key(service)
        full = f"{name}.{namespace}.svc.{domain}"
        addresses = cluster_addresses(service)
        if service["spec"].get("type") == "ExternalName":
            _record(zone, full, domain).alias = str(service["spec"].get("externalName", "")).rstrip(".")
        elif addresses:
            _add_cluster_service(zone, service, full, addresses, domain)
        else:
            _add_headless(zone, service, full, by_service.get((namespace, name), ()), domain)
    return zone


def _record(zone: dict[str, Records], name: str, domain: str) -> Records:
    # Names above a record exist too: a resolver that asks for one must hear "no data", not "no such name".
    parent = name.partition(".")[2]
    while parent.endswith(domain) and parent not in zone:
        zone[parent] = Records()
        parent = parent.partition(".")[2]
    return zone.setdefault(name, Records())


def _add_cluster_service(
    zone: dict[str, Records], service: Object, full: str, addresses: Iterable[str], domain: str
) -> None:
    record = _record(zone, full, domain)
    for address in addresses:
        record.addresses.append(address)
        zone.setdefault(reverse_name(address), Records()).pointers.append(full)
    for port in service["spec"].get("ports") or ():
        if port.get("name"):
            srv = _record(zone, _srv_name(port, full), domain)
            srv.services.append(Srv(int(port["port"]), full))


def _add_headless(zone: dict[str, Records], service: Object, full: str, slices: Iterable[Object], domain: str) -> None:
    record = _record(zone, full, domain)
    publish_all = bool(service["spec"].get("publishNotReadyAddresses"))
    for item in slices:
        for endpoint in item.get("endpoints") or ():
            if not (publish_all or is_ready(endpoint)):
                continue
            address = endpoint["addresses"][0]
            host = f"{endpoint.get('hostname') or address.replace('.', '-')}.{full}"
            _append(record.addresses, address)
            _append(_record(zone, host, domain).addresses, address)
            _append(zone.setdefault(reverse_name(address), Records()).pointers, host)
            for port in item.get("ports") or ():
                if port.get("name") and port.get("port"):
                    _append(_record(zone, _srv_name(port, full), domain).services, Srv(int(port["port"]), host))


def _append(items: list[Any], item: object) -> None:
    if item not in items:
        items.append(item)


def _srv_name(port: Object, full: str) -> str:
    return f"_{port['name']}._{str(port.get('protocol', 'TCP')).lower()}.{full}"


def reverse_name(address: str) -> str:
    """`10.96.0.1` as the name that reverse look-ups ask for."""
    return ".".join(reversed(address.split("."))) + ".in-addr.arpa"


def pod_address(name: str, domain: str) -> str | None:
    """The address in a name like `10-244-1-7.default.pod.cluster.local`; None when it is no such name."""
    label, _, rest = name.partition(".")
    parts = label.split("-")
    octets = [int(part) for part in parts if part.isdecimal() and len(part) <= 3]
    namespace, _, tail = rest.partition(".")
    if tail != f"pod.{domain}" or not namespace or len(parts) != 4 or len(octets) != 4 or max(octets) > 255:
        return None
    return ".".join(str(octet) for octet in octets)
