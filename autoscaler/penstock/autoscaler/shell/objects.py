"""Pods and WorkerPools as the API server writes them, read into the few facts that matter here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

DEPLOYMENT_LABEL = "penstock.dev/deployment"
_POOL_LABEL = "penstock.dev/pool"
_ROLE_LABEL = "penstock.dev/role"
_ACCELERATOR_LABEL = "penstock.dev/accelerator"
_MODEL_ANNOTATION = "penstock.dev/model"
_REVISION_LABEL = "penstock.dev/revision"
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_ENGINE = "engine"
_PORT = "http"

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class PoolKey:
    """Which pool on which accelerator class: one WorkerPool object."""

    namespace: str
    deployment: str
    pool: str
    role: str
    accelerator: str
    model: str


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker's pod."""

    namespace: str
    name: str
    pool: PoolKey
    metrics_url: str | None
    """None while the pod has no address."""
    started: bool
    """Its engine has passed its startup probe: from now on silence is missing data."""
    ready: bool
    terminating: bool
    scheduled: bool = False
    finished: bool = False
    """Its pod ended (evicted, or lost with its node) and holds nothing any more."""
    revision: str = ""
    created: float = 0.0
    """Epoch seconds."""
    ready_since: float | None = None
    """Epoch seconds; None while it is not ready."""
    deletion_cost: str | None = None

    @property
    def expected(self) -> bool:
        """Whether it ought to answer: coverage is a share of these workers."""
        return self.started and not self.terminating


@dataclass(frozen=True, slots=True)
class Pool:
    """A WorkerPool object."""

    key: PoolKey
    desired: int | None
    name: str = ""
    uid: str = ""
    version: str = ""
    """`metadata.resourceVersion`."""
    spec: Object = field(default_factory=dict)
    managed: tuple[Object, ...] = ()
    """`metadata.managedFields`."""


def read_worker(pod: Object) -> Worker | None:
    """The worker of a pod, or None when the pod lacks the labels or the engine that make it one."""
    metadata, spec, status = pod.get("metadata", {}), pod.get("spec", {}), pod.get("status", {})
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    engine = next((c for c in spec.get("containers") or () if c.get("name") == _ENGINE), None)
    if engine is None or DEPLOYMENT_LABEL not in labels or _POOL_LABEL not in labels:
        return None
    statuses = (c for c in status.get("containerStatuses") or () if c.get("name") == _ENGINE)
    running: Object = next(statuses, {})
    return Worker(
        namespace=metadata["namespace"],
        name=metadata["name"],
        pool=PoolKey(
            metadata["namespace"],
            labels[DEPLOYMENT_LABEL],
            labels[_POOL_LABEL],
            labels.get(_ROLE_LABEL, ""),
            labels.get(_ACCELERATOR_LABEL, ""),
            annotations.get(_MODEL_ANNOTATION, ""),
        ),
        metrics_url=_metrics_url(engine, status),
        started=bool(running.get("started")),
        ready=any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ()),
        terminating="deletionTimestamp" in metadata,
        scheduled=bool(spec.get("nodeName")),
        finished=status.get("phase") in ("Succeeded", "Failed"),
        revision=labels.get(_REVISION_LABEL, ""),
        created=epoch(metadata.get("creationTimestamp")) or 0.0,
        ready_since=_ready_since(status),
        deletion_cost=annotations.get(DELETION_COST),
    )


def read_pool(pool: Object) -> Pool | None:
    """The facts of a WorkerPool, or None when it lacks what names it."""
    metadata, spec = pool.get("metadata", {}), pool.get("spec", {})
    if not spec.get("deploymentName") or not spec.get("poolName"):
        return None
    key = PoolKey(
        metadata["namespace"],
        spec["deploymentName"],
        spec["poolName"],
        spec.get("role", ""),
        spec.get("acceleratorClassName", ""),
        spec.get("modelName", ""),
    )
    return Pool(
        key,
        spec.get("replicas"),
        metadata.get("name", ""),
        metadata.get("uid", ""),
        metadata.get("resourceVersion", ""),
        spec,
        tuple(metadata.get("managedFields") or ()),
    )


def epoch(text: str | None) -> float | None:
    """Epoch seconds of an RFC 3339 time; None for none, or for what is no time."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None


def _ready_since(status: Object) -> float | None:
    ready: Object = next((c for c in status.get("conditions") or () if c.get("type") == "Ready"), {})
    return epoch(ready.get("lastTransitionTime")) if ready.get("status") == "True" else None


def _metrics_url(engine: Object, status: Object) -> str | None:
    address = status.get("podIP")
    port = next((p.get("containerPort") for p in engine.get("ports") or () if p.get("name") == _PORT), None)
    if not address or not port:
        return None
    return f"http://[{address}]:{port}/metrics" if ":" in address else f"http://{address}:{port}/metrics"
