"""What a scaling cycle is told of the cluster, before anything is made of it: deployments, WorkerPools, workers.

The shell reads these facts from the API server, the twin from its own workers; `observe` makes the same of both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.autoscaler.decisions.capacity import Objectives, WorkerModel
from penstock.autoscaler.decisions.observations import WorkerHistory
from penstock.autoscaler.decisions.snapshot import Key


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """One worker's pod, and what it said. Times in epoch seconds."""

    history: WorkerHistory
    scheduled: bool
    started: bool
    """Its engine has passed its startup probe: from now on silence is missing data."""
    ready: bool
    terminating: bool
    created: float | None
    """None where nobody knows."""
    ready_since: float | None = None
    """None while it is not ready."""
    revision: str = ""

    @property
    def expected(self) -> bool:
        """Whether it ought to answer: coverage is a share of these workers."""
        return self.started and not self.terminating


@dataclass(frozen=True, slots=True)
class SeenPool:
    """One WorkerPool, as `PoolView` has it, and its workers; those whose pod has ended are not among them."""

    name: str
    pool: str
    role: str
    accelerator: str
    accelerators: int
    cost_per_hour: float | None
    worker: WorkerModel | None
    """By its profile; what the engines report of their KV caches is put in."""
    replicas: int
    least: int
    most: int
    workers: tuple[SeenWorker, ...] = ()
    startup_s: float | None = None
    """What its engine class says; None where it does not."""
    provision_s: float = 0.0
    """What its accelerator class says that a new node takes."""
    other_writer: str = ""


@dataclass(frozen=True, slots=True)
class SeenDeployment:
    """One ModelDeployment with its WorkerPools, as `DeploymentView` has it."""

    key: Key
    mode: str
    objectives: Objectives
    pools: tuple[SeenPool, ...]
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    max_accelerators: int | None = None
    max_cost: float | None = None
    model: str = ""
    to_zero_after_s: float | None = None
    """`scaleToZeroAfter`, in seconds; None where no such thing is asked for."""
