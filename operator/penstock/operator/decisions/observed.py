"""What a reconcile looks at: one ModelDeployment, what it owns, and the cluster-wide facts it depends on.

Frozen views, made from stored JSON once per version. Two views are equal when nothing that matters to us changed, so
a heartbeat in a status wakes nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.api import AcceleratorClass, EngineClass, ModelDeploymentSpec, PerformanceProfile
from penstock.operator.decisions.writes import Ref

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Meta:
    """The part of an object's metadata that decisions use."""

    ref: Ref
    uid: str
    generation: int
    created: str
    """RFC 3339; sorts as text."""
    deleting: bool
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    owner_uid: str | None
    """uid of the controlling owner."""

    @property
    def name(self) -> str:
        """The object's name."""
        return self.ref.name


@dataclass(frozen=True, slots=True)
class Deployment:
    """A ModelDeployment. `spec` is None where this release cannot read it; `unreadable` then says why."""

    meta: Meta
    spec: ModelDeploymentSpec | None
    unreadable: str
    served_name: str
    """`spec.model.name` even where the rest is unreadable."""
    status: Raw

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name)."""
        return self.meta.ref.namespace or "", self.meta.name

    @property
    def seniority(self) -> tuple[str, str, str]:
        """Sorts deployments of one served name: the first one keeps it."""
        return self.meta.created, *self.key


@dataclass(frozen=True, slots=True)
class Pool:
    """A WorkerPool as stored."""

    meta: Meta
    spec: Raw
    status: Raw

    @property
    def replicas(self) -> int | None:
        """Workers wanted; None until the number was first set."""
        return self.spec.get("replicas")

    @property
    def pool_name(self) -> str:
        """Pool in the ModelDeployment's spec."""
        return str(self.spec.get("poolName", ""))

    @property
    def accelerator(self) -> str:
        """Accelerator class."""
        return str(self.spec.get("acceleratorClassName", ""))

    @property
    def revision(self) -> str:
        """Revision the pool is moving to, or is at."""
        return str(self.spec.get("revision", ""))


@dataclass(frozen=True, slots=True)
class ReplicaSet:
    """A ReplicaSet of one revision of a WorkerPool."""

    meta: Meta
    revision: str
    replicas: int
    failure: str
    """Message of its condition ReplicaFailure; empty where pods can be made."""
    kv_hash: str = ""
    """KV-compatibility hash of its pods."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A worker."""

    meta: Meta
    node: str
    ready: bool
    scheduled: bool
    unschedulable: str
    """The scheduler's message; empty while it has not tried or found a node."""
    waiting: str
    """Reason a container waits for (`CrashLoopBackOff`, `ErrImagePull`); empty otherwise."""
    detail: str
    """Message that goes with `waiting`, or how the container last ended."""
    restarts: int
    served_before: bool
    """Was ready since its container started, and is not now."""
    finished: bool
    """Phase Succeeded or Failed: evicted, or lost with its node."""
    gone_by: float | None
    """Epoch seconds by which a pod on its way out must be gone; None for others."""

    @property
    def live(self) -> bool:
        """Not on its way out and not finished."""
        return not self.meta.deleting and not self.finished


@dataclass(frozen=True, slots=True)
class Node:
    """A node, as far as capacity goes."""

    name: str
    labels: Mapping[str, str]
    ready: bool
    schedulable: bool
    allocatable: Mapping[str, int]
    """Extended resources in whole devices."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What all deployments share."""

    engines: Mapping[str, EngineClass] = field(default_factory=dict)
    accelerators: Mapping[str, AcceleratorClass] = field(default_factory=dict)
    profiles: tuple[PerformanceProfile, ...] = ()
    nodes: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything one reconcile may know."""

    now: float
    """Epoch seconds."""
    deployment: Deployment
    cluster: Cluster
    pools: tuple[Pool, ...] = ()
    replica_sets: tuple[ReplicaSet, ...] = ()
    pods: tuple[Pod, ...] = ()
    rivals: tuple[Deployment, ...] = ()
    """Other ModelDeployments of the same served name."""
    taken: Mapping[str, str] = field(default_factory=dict)
    """WorkerPools of other deployments whose names begin as ours do, and the deployments they are of."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Revision to what the API server said when it refused the rendered pod."""
    drain_current: bool = False
    """Whether the drain script is known to be in place."""
    endpoint: str = ""
    """Base address of the OpenAI endpoint; empty where the operator was not told."""
    sidecar_image: str = ""
    """Image of the P/D sidecar for decode workers; empty: they get none."""
    more_policies: frozenset[str] = frozenset()
    """Routing policies that the release's routers have from files, beside those that ship."""
    services: Mapping[str, str] = field(default_factory=dict)
    """Services known to be in place: name to digest of what was applied."""
