"""What one scaling cycle looks at: deployments, their WorkerPools, and the load on them, at one time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.autoscaler.decisions.capacity import Objectives, WorkerModel
from penstock.autoscaler.decisions.demand import TokenMix
from penstock.core.fleet import UNKNOWN, Signal

Key = tuple[str, str]
"""Namespace and name of a ModelDeployment."""


@dataclass(frozen=True, slots=True)
class Pods:
    """Pod objects of one WorkerPool. Each holds the accelerators of a worker, or will."""

    ready: int = 0
    starting: int = 0
    """On a node, not ready."""
    pending: int = 0
    """Without a node."""
    terminating: int = 0
    pending_s: float = 0.0
    """How long the longest of the pending ones has waited."""
    ready_s: float = math.inf
    """How long the longest of the ready ones has been so; infinite where nobody says."""
    starting_s: float | None = None
    """How long ago the starting ones were made, in the mean; None where nobody says."""

    @property
    def live(self) -> int:
        """Pods that are not on their way out."""
        return self.ready + self.starting + self.pending

    @property
    def scheduled(self) -> int:
        """Live pods that have a node."""
        return self.ready + self.starting


@dataclass(frozen=True, slots=True)
class PoolView:
    """One WorkerPool."""

    name: str
    pool: str
    """Pool in the ModelDeployment's spec."""
    role: str
    accelerator: str
    accelerators: int
    """Of one worker."""
    cost_per_hour: float | None
    """Of one worker; None where its class has no price."""
    worker: WorkerModel | None
    """None where no profile describes it."""
    replicas: int
    least: int
    most: int
    pods: Pods = Pods()
    running: Signal = UNKNOWN
    """Requests running or waiting on its workers."""
    startup_s: float = 60.0
    """From the wish for a worker to its first request."""
    give_up_s: float = 300.0
    """How long pods may be pending before the class counts as out of capacity."""
    exhausted: bool = False
    """The class gave no capacity lately: no more is asked of it for now."""
    other_writer: str = ""
    """Field manager that wrote `replicas` lately and is not ours."""

    @property
    def ceiling(self) -> int:
        """Most workers that may be planned here now."""
        return min(self.most, max(self.least, self.pods.scheduled)) if self.exhausted else self.most

    @property
    def weight(self) -> float:
        """What one worker costs: money, or accelerators where there is no price."""
        return self.cost_per_hour if self.cost_per_hour is not None else float(max(1, self.accelerators))


@dataclass(frozen=True, slots=True)
class RoleLoad:
    """Forecast load on the workers of one role."""

    rate: float
    """Requests per second to be ready for: an upper quantile, at the time when new workers would serve."""
    level: float
    """Requests per second expected."""
    waiting: float
    age_s: float
    coverage: float
    sure: float | None = None
    """Requests per second that come even if chance was with the looks: a lower quantile; None where nobody says."""


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """One ModelDeployment with its WorkerPools."""

    key: Key
    mode: str
    """`Off`, `Advise` or `Auto`."""
    objectives: Objectives
    pools: tuple[PoolView, ...]
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Fewest and most workers of each pool of the spec, over its classes."""
    loads: Mapping[str, RoleLoad] = field(default_factory=dict)
    """By role; a role that is missing was never measured."""
    mix: TokenMix | None = None
    prefill_share: float | None = None
    """Share of requests whose prompt goes to a prefill worker when those have room; None: nobody knows."""
    max_accelerators: int | None = None
    max_cost: float | None = None
    """Money per hour."""
    model: str = ""
    """The served name, by which requests are counted."""
    moving: bool = False
    """A roll is under way: pods of two revisions stand side by side."""
    to_zero_after_s: float | None = None
    """Seconds without a request after which the user would have no worker left; None where that is not asked for."""

    def pool(self, name: str) -> PoolView:
        """The WorkerPool of this name. Raises KeyError."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """Everything one cycle may know. `now` in epoch seconds."""

    now: float
    deployments: tuple[DeploymentView, ...] = ()
    class_limits: Mapping[str, int] = field(default_factory=dict)
    """Most accelerators of a class, over all deployments; a class that is missing has no limit of its own."""

    def find(self, key: Key) -> DeploymentView | None:
        """The deployment, or None when it is gone."""
        return next((view for view in self.deployments if view.key == key), None)
