"""Where workers find accelerators: nodes that are there, and nodes that a node autoscaler orders while workers wait.

Workers are placed first fit, in the order of their making, as a scheduler does whose queue is fair. For those that find
no place nodes are ordered, as many as they need, never more than may be added. A node comes after its provisioning
time, or never; it stays, whoever is still there to use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from penstock.core.models import Parallelism, find_accelerator
from penstock.simulator.events import READY, EventQueue
from penstock.simulator.placement import Node, Taken, first_fit
from penstock.simulator.scaling_rules import Provisioning
from penstock.simulator.scenario import Impossible

__all__ = ["Inventory", "Wanting"]

_NODE_KEYS = 1 << 40  # Behind the keys of all workers.


@dataclass(frozen=True, slots=True)
class Wanting:
    """A worker that waits for a place."""

    accelerator: str
    degrees: Parallelism


@dataclass(slots=True)
class _Orders:
    """What was ordered of one class."""

    rule: Provisioning
    made: int = 0
    coming: int = 0
    """Nodes on their way, those that will never come among them."""
    came: list[float] = field(default_factory=list)


class Inventory:
    """Nodes and what is free on them; `arrived(now)` is called when a node has come, or is known not to."""

    def __init__(
        self, nodes: list[Node], rules: Sequence[Provisioning], events: EventQueue, arrived: Callable[[float], None]
    ) -> None:
        """Raises `Impossible` for nodes of a class that nobody knows."""
        self.nodes, self._events, self._arrived = nodes, events, arrived
        self._there = len(nodes)  # From the start.
        self._made = 0
        self._orders = {rule.accelerator: _Orders(rule) for rule in rules}
        for name in self._orders:
            if find_accelerator(name) is None:
                raise Impossible(f"provisioning: accelerator class {name!r} is not in the catalogue")

    def place(self, wanting: Wanting) -> Taken | None:
        """Take accelerators for a worker; None where no node has them."""
        mine = [node for node in self.nodes if node.accelerator.name == wanting.accelerator]
        return first_fit(mine, wanting.degrees)

    def give_back(self, taken: Taken) -> None:
        """A worker is gone."""
        for node, count in taken:
            node.free += count

    def order_for(self, waiting: Sequence[Wanting], now: float) -> None:
        """See that enough nodes are on their way for these workers, which fit on none that is there."""
        for name, orders in self._orders.items():
            needed = sum(one.degrees.accelerators for one in waiting if one.accelerator == name)
            while needed > orders.coming * orders.rule.accelerators and orders.made < orders.rule.nodes:
                self._order(name, orders, now)

    def provision_s(self, accelerator: str) -> float:
        """What a new node of a class takes; 0 where none is ever ordered."""
        orders = self._orders.get(accelerator)
        return 0.0 if orders is None else orders.rule.provision_s

    def limits(self) -> dict[str, int]:
        """Most accelerators of each class that nodes are ordered of: those there are, and those that may be added."""
        return {
            name: orders.rule.nodes * orders.rule.accelerators
            + sum(node.size for node in self.nodes[: self._there] if node.accelerator.name == name)
            for name, orders in self._orders.items()
        }

    def added(self) -> dict[str, int]:
        """Nodes that came, by class."""
        return {name: len(orders.came) for name, orders in self._orders.items()}

    def ordered(self) -> dict[str, int]:
        """Nodes that were asked for, by class."""
        return {name: orders.made for name, orders in self._orders.items()}

    def _order(self, name: str, orders: _Orders, now: float) -> None:
        rule, number = orders.rule, orders.made
        orders.made, orders.coming, self._made = orders.made + 1, orders.coming + 1, self._made + 1
        lost = number in rule.lost
        at = now + (max(rule.give_up_s, rule.provision_s) if lost else rule.provision_s)
        self._events.at(at, READY, _NODE_KEYS + self._made, lambda time, _: self._end(name, lost, time))

    def _end(self, name: str, lost: bool, now: float) -> None:
        """An order's node has come, or never will."""
        orders = self._orders[name]
        orders.coming -= 1
        if not lost:
            self._come(name, orders, now)
        self._arrived(now)

    def _come(self, name: str, orders: _Orders, now: float) -> None:
        orders.came.append(now)
        accelerator = find_accelerator(name)
        assert accelerator is not None
        number, size = len(self.nodes), orders.rule.accelerators
        self.nodes.append(Node(f"added-{number}", number, accelerator, size, size))
