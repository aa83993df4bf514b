"""Which accelerator class serves a deployment that lists no pools: the cheapest one at hand that holds the model.

A choice sticks: once a pool runs on a class it stays there while the class exists and the model fits, whatever
prices do. Moving costs a roll, and is the planner's business, not ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from penstock.api import AcceleratorClass, Reason
from penstock.core.models import ModelArchitecture, Parallelism
from penstock.operator.decisions.hardware import nodes_of
from penstock.operator.decisions.memory import Demand, fit_of, smallest_of
from penstock.operator.decisions.observed import Node
from penstock.operator.decisions.refusal import Refusal

USUAL_NODE = 8
"""Accelerators of a node that does not exist yet."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A class that could serve, with the fewest accelerators that hold the model."""

    name: str
    parallelism: Parallelism
    price: Decimal | None
    at_hand: bool
    """Nodes have it, or a node autoscaler or a queue brings it."""
    device: bool
    """A GPU; a CPU class serves only where nothing else does."""

    @property
    def cost(self) -> Decimal | None:
        """Money per hour of one worker."""
        return None if self.price is None else self.price * self.parallelism.accelerators

    @property
    def rank(self) -> tuple[bool, bool, bool, Decimal, int, str]:
        """Smaller is better: at hand, a device, priced, cheap, few accelerators; the name settles the rest."""
        cost = self.cost
        return (
            not self.at_hand,
            not self.device,
            cost is None,
            cost or Decimal(0),
            self.parallelism.accelerators,
            self.name,
        )

    def __str__(self) -> str:
        cost = f" at {self.cost:.2f}/h" if self.cost is not None else ""
        return f"{self.parallelism.accelerators} x {self.name}{cost}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The class taken, and why it and not the next."""

    name: str
    parallelism: Parallelism
    why: str


def choose(
    model: ModelArchitecture,
    demand: Demand,
    accelerators: Mapping[str, AcceleratorClass],
    nodes: Sequence[Node],
    running: tuple[str, Parallelism] | None,
) -> Choice:
    """The class for a pool that names none. `running` is where it already runs. Raises `Refusal` where none fits."""
    usable = {name: a for name, a in accelerators.items() if a.spec.device_class_name is None}
    if not usable:
        raise Refusal(
            Reason.NO_ACCELERATOR_CLASS,
            "spec.pools is left out and no AcceleratorClass exists to choose from; create one for your nodes "
            "(the chart ships a catalogue of them)",
        )
    ranked = sorted(_candidates(model, demand, usable.values(), nodes), key=lambda candidate: candidate.rank)
    if running is not None and running[0] in usable and fit_of(model, usable[running[0]], running[1], demand).fits:
        return Choice(*running, _kept(running, ranked))
    if not ranked:
        raise Refusal(Reason.MODEL_DOES_NOT_FIT, _nowhere(model, demand, usable))
    return Choice(ranked[0].name, ranked[0].parallelism, _chosen(ranked))


def largest_node(accelerator: AcceleratorClass, nodes: Sequence[Node]) -> int | None:
    """Most accelerators of the class on one node; None where no node has it yet or it takes no device."""
    resource = accelerator.spec.resource_name
    return (
        max((n.allocatable.get(resource, 0) for n in nodes_of(accelerator, nodes)), default=None) if resource else None
    )


def _candidates(
    model: ModelArchitecture, demand: Demand, accelerators: Iterable[AcceleratorClass], nodes: Sequence[Node]
) -> list[Candidate]:
    found = []
    for accelerator in accelerators:
        spec, have = accelerator.spec, bool(nodes_of(accelerator, nodes))
        most = 1 if spec.type == "CPU" else largest_node(accelerator, nodes) or USUAL_NODE
        parallelism = smallest_of(model, accelerator, demand, most)
        if parallelism is not None:
            at_hand = have or spec.capacity.source != "Nodes"
            found.append(Candidate(accelerator.metadata.name, parallelism, spec.price, at_hand, spec.type == "GPU"))
    return found


def _chosen(ranked: Sequence[Candidate]) -> str:
    best = ranked[0]
    why = (
        "cheapest class at hand that holds the model"
        if best.at_hand
        else "cheapest class that holds the model; no node has it yet"
    )
    return f"{best}: {why}" + (f" (next: {ranked[1]})" if len(ranked) > 1 else "")


def _kept(running: tuple[str, Parallelism], ranked: Sequence[Candidate]) -> str:
    if not ranked or ranked[0].name == running[0]:
        return _chosen(ranked) if ranked else f"{running[0]}: already runs there"
    return f"{running[0]}: already runs there (a new deployment would take {ranked[0]})"


def _nowhere(model: ModelArchitecture, demand: Demand, accelerators: Mapping[str, AcceleratorClass]) -> str:
    biggest = max(accelerators.values(), key=lambda a: (a.spec.type == "GPU", a.spec.memory_bytes))
    return (
        f"the model fits no accelerator class within one node: {fit_of(model, biggest, Parallelism(), demand).reason}"
    )
