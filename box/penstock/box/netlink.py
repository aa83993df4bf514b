"""The box's private network, made over netlink: loopback, the pods' bridge, the nodes' addresses, the Service range."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from penstock.box.components import SERVICE_RANGE
from pyroute2 import IPRoute

BRIDGE = "cni0"
BRIDGE_ADDRESS = "10.244.0.1"
BRIDGE_PREFIX = 16
HOST_ADDRESS = "10.89.0.1"
"""The box itself: the address at which pods reach the API server behind the `kubernetes` Service."""

_BRIDGE_LINK_ADDRESS = "02:50:53:00:00:01"  # locally administered; the box's network has one bridge only
_RTN_LOCAL = 2
_RT_TABLE_LOCAL = 255
_RT_SCOPE_HOST = 254


def make_network(node_addresses: Iterable[str]) -> None:
    """Build the network in the current network namespace, which must be new."""
    with IPRoute() as netlink:
        loopback = netlink.link_lookup(ifname="lo")[0]
        netlink.link("set", index=loopback, state="up")
        for address in (HOST_ADDRESS, *node_addresses):
            netlink.addr("add", index=loopback, address=address, prefixlen=32)
        _make_bridge(netlink)
        # Every Service address becomes an address of this machine, so the service proxy can listen on it.
        netlink.route(
            "add", dst=SERVICE_RANGE, oif=loopback, type=_RTN_LOCAL, table=_RT_TABLE_LOCAL, scope=_RT_SCOPE_HOST
        )


def _make_bridge(netlink: Any) -> None:
    # A bridge without an address of its own takes the lowest of its ports', so it changes as pods come and go, and
    # every pod that remembers the old one loses its gateway for seconds.
    netlink.link("add", ifname=BRIDGE, kind="bridge", address=_BRIDGE_LINK_ADDRESS)
    bridge = netlink.link_lookup(ifname=BRIDGE)[0]
    netlink.addr("add", index=bridge, address=BRIDGE_ADDRESS, prefixlen=BRIDGE_PREFIX)
    netlink.link("set", index=bridge, state="up")
