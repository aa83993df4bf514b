"""What a scenario says of scaling and of power, as data: bounds, budgets, times, where nodes come from, domains."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from penstock.autoscaler.decisions.cycle import CycleTimes
from penstock.autoscaler.decisions.planners import find_planner

__all__ = ["Autoscaling", "Bounds", "Drain", "PowerDomain", "Provisioning"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Fewest and most workers of a pool."""

    pool: str
    least: int = 1
    most: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise ValueError(f"pool {self.pool}: {self.least} to {self.most} workers; give 0 <= least <= most")


@dataclass(frozen=True, slots=True)
class Provisioning:
    """Nodes that a node autoscaler adds while workers wait for one. Seconds."""

    accelerator: str
    accelerators: int
    """On each node."""
    nodes: int
    """Most that are added."""
    provision_s: float = 120.0
    """From the order to the node."""
    lost: tuple[int, ...] = ()
    """Orders, from 0, whose node never comes."""
    give_up_s: float = 900.0
    """After which a node that has not come is ordered anew where it is still needed."""

    def __post_init__(self) -> None:
        if self.accelerators < 1 or self.nodes < 0:
            raise ValueError(
                f"provisioning of {self.accelerator}: {self.nodes} nodes of {self.accelerators}; "
                "give nodes of at least 1 accelerator"
            )
        if not (math.isfinite(self.provision_s) and self.provision_s >= 0):
            raise ValueError(f"provisioning of {self.accelerator} takes {self.provision_s} s; give 0 or more")


@dataclass(frozen=True, slots=True)
class Drain:
    """How a worker that is being deleted ends. Seconds; the defaults are those of the pods we render."""

    idle_s: float = 5.0
    """Without work for so long, it ends; in pools that are apart at least the lease of a prompt's KV."""
    grace_s: float = 120.0
    """`terminationGracePeriodSeconds`."""
    stop_s: float = 25.0
    """What of the grace is left for the engine's own end: SIGTERM comes so long before it is over."""
    poll_s: float = 0.5
    """Between two looks at the engine."""

    def __post_init__(self) -> None:
        if not (0 <= self.idle_s <= self.deadline_s and self.poll_s > 0):
            raise ValueError(
                f"a grace of {self.grace_s} s with {self.stop_s} s for the engine's end leaves no {self.idle_s} s "
                "without work; give a longer grace"
            )

    @property
    def deadline_s(self) -> float:
        """When SIGTERM comes whatever runs, from the deletion on."""
        return self.grace_s - self.stop_s


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """The autoscaler in the loop: what `spec.autoscaling` and the autoscaler's flags say."""

    bounds: tuple[Bounds, ...]
    """Of every pool that is scaled; another keeps its replicas."""
    mode: str = "Auto"
    """`Off`, `Advise` or `Auto`."""
    attainment: float = 0.95
    cycle_interval_s: float = 5.0
    times: CycleTimes = field(default_factory=CycleTimes)
    max_accelerators: int | None = None
    max_cost: float | None = None
    """Money per hour."""
    provisioning: tuple[Provisioning, ...] = ()
    drain: Drain = field(default_factory=Drain)
    until_s: float = 0.0
    """The run goes on at least so long, also when all requests are answered."""

    def __post_init__(self) -> None:
        if self.mode not in ("Off", "Advise", "Auto"):
            raise ValueError(f"autoscaling mode {self.mode!r}; give Off, Advise or Auto")
        if not 0 < self.attainment < 1:
            raise ValueError(f"attainment {self.attainment}; give a share between 0 and 1")
        if not self.cycle_interval_s > 0:
            raise ValueError(f"a cycle every {self.cycle_interval_s} s; give more than 0")
        if self.times.signal_window_s < 2 * self.times.scrape_interval_s:
            raise ValueError("the signal window must hold at least two scrapes: raise it, or lower the scrape interval")
        find_planner(self.times.planner)
        for what, names in (
            ("bounds of pool", [bounds.pool for bounds in self.bounds]),
            ("provisioning of", [one.accelerator for one in self.provisioning]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} {twice[0]} stand there twice; keep one")


@dataclass(frozen=True, slots=True)
class PowerDomain:
    """Nodes that share a watt budget; those of its children are its own too."""

    name: str
    nodes: tuple[int, ...] = ()
    """By number, from 0 in the order of node groups."""
    budget_w: float | None = None
    """None: it is only measured."""
    parent: str = ""

    def __post_init__(self) -> None:
        if self.budget_w is not None and not self.budget_w > 0:
            raise ValueError(f"power domain {self.name}: a budget of {self.budget_w} W; give more than 0")
