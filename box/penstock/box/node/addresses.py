"""Pod addresses of one node: who has which, and the hardware address that goes with each.

The next free address after the last one given is taken, so an address rests as long as possible before it is used
again. The hardware address follows from it, so a neighbour's memory of the former holder is still right.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field


class NoAddressLeft(RuntimeError):
    """Every address of the node's range is in use."""


@dataclass(slots=True)
class AddressPool:
    """Addresses of `cidr` less the network's, the first (the bridge of node 0) and the broadcast's."""

    cidr: str
    _held: set[str] = field(default_factory=set)
    _last: int = 0

    def take(self) -> str:
        """A free address; raises NoAddressLeft."""
        network = ipaddress.IPv4Network(self.cidr)
        usable = network.num_addresses - 3
        for step in range(usable):
            index = (self._last + step) % usable
            address = str(network[index + 2])
            if address not in self._held:
                self._last = index + 1
                self._held.add(address)
                return address
        raise NoAddressLeft(f"all {usable} pod addresses of {self.cidr} are in use: delete pods or add nodes")

    def give_back(self, address: str) -> None:
        """Free an address; one that nobody holds is ignored."""
        self._held.discard(address)


def hardware_address(address: str) -> str:
    """The locally administered MAC of a pod address, the same for ever."""
    return "0a:58:" + ":".join(f"{part:02x}" for part in ipaddress.IPv4Address(address).packed)
