"""What the router reads out of pods and ModelDeployments, and the condition it writes. Pure.

Objects are read tolerantly (a field that is missing or odd makes the object unusable, never the router):
they were checked when they were stored, and a router must outlive a newer version of the API.
"""

from dataclasses import dataclass, replace
from typing import Any

from penstock.api.quantities import parse_duration
from penstock.api.reasons import ConditionType, Reason
from penstock.core.fleet import Role, Worker
from penstock.router.shell.discovery.speeds import Speed, speed_of

DEPLOYMENT = "penstock.dev/deployment"
POOL = "penstock.dev/pool"
ROLE = "penstock.dev/role"
ACCELERATOR = "penstock.dev/accelerator"
MODEL = "penstock.dev/model"
KV_HASH = "penstock.dev/kv-hash"
PARALLELISM = "penstock.dev/parallelism"
DEFAULT_PORT = 8000
SIDECAR_PORT = "sidecar"

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SeenPod:
    """A worker's pod as last seen."""

    uid: str
    worker: Worker
    ready: bool
    leaving: bool


def read_pod(pod: Object) -> SeenPod | None:
    """A pod as a worker; `None` while it cannot be one (no address yet, ended, no model annotation)."""
    metadata, status = pod.get("metadata", {}), pod.get("status", {})
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    address, model = status.get("podIP"), annotations.get(MODEL)
    if not address or not model or status.get("phase") in ("Succeeded", "Failed"):
        return None
    try:
        role = Role.from_api(labels.get(ROLE, "PrefillDecode"))
    except ValueError:
        return None
    accelerator = labels.get(ACCELERATOR, "")
    speed = speed_of(model, accelerator, annotations.get(PARALLELISM, ""))
    worker = Worker(
        name=f"{metadata.get('namespace', '')}/{metadata['name']}",
        host=address,
        port=_port(pod),
        model=model,
        role=role,
        accelerator=accelerator,
        domain=annotations.get(KV_HASH, ""),
        namespace=metadata.get("namespace", ""),
        deployment=labels.get(DEPLOYMENT, ""),
        pool=labels.get(POOL, ""),
        prefill_ms=speed.prefill_ms,
        decode_ms=speed.decode_ms,
        experts_ms=speed.experts_ms,
        transfer_ms=speed.transfer_ms,
        price_per_hour=speed.price_per_hour,
        sidecar_port=_sidecar_port(pod),
    )
    leaving = metadata.get("deletionTimestamp") is not None
    return SeenPod(metadata.get("uid", ""), worker, _is_true(status, "Ready"), leaving)


def pool_key(worker: Worker) -> tuple[str, str]:
    """Namespace and name of the WorkerPool a worker belongs to."""
    return worker.namespace, f"{worker.deployment}-{worker.pool}-{worker.accelerator}"


def with_speed(seen: SeenPod, speed: Speed | None) -> SeenPod:
    """The same pod, its worker as fast and as dear as its WorkerPool says; unchanged where that says nothing."""
    if speed is None:
        return seen
    worker = replace(
        seen.worker,
        prefill_ms=speed.prefill_ms,
        decode_ms=speed.decode_ms,
        experts_ms=speed.experts_ms,
        transfer_ms=speed.transfer_ms,
        price_per_hour=speed.price_per_hour,
    )
    return replace(seen, worker=worker)


def _port(pod: Object) -> int:
    """The container port named `http`, of the container `engine` if it has one."""
    containers = pod.get("spec", {}).get("containers") or []
    for container in sorted(containers, key=lambda c: c.get("name") != "engine"):
        for port in container.get("ports") or []:
            if port.get("name") == "http":
                return int(port["containerPort"])
    return DEFAULT_PORT


def _sidecar_port(pod: Object) -> int | None:
    """The port named `sidecar` of a native sidecar; `None` where the pod has none."""
    for container in pod.get("spec", {}).get("initContainers") or []:
        for port in container.get("ports") or []:
            if port.get("name") == SIDECAR_PORT and container.get("restartPolicy") == "Always":
                return int(port["containerPort"])
    return None


def _is_true(status: Object, condition: str) -> bool:
    return any(c.get("type") == condition and c.get("status") == "True" for c in status.get("conditions") or [])


@dataclass(frozen=True, slots=True)
class Condition:
    """`RouterReady` as it stands on an object."""

    status: str
    reason: str
    message: str
    observed_generation: int
    since: str


@dataclass(frozen=True, slots=True)
class SeenDeployment:
    """A ModelDeployment as last seen."""

    namespace: str
    name: str
    generation: int
    model: str
    policy: str
    accepted: bool
    max_context_tokens: int | None
    ttft_ms: float | None
    tpot_ms: float | None
    router_ready: Condition | None


def read_deployment(item: Object) -> SeenDeployment | None:
    """What the router needs of a ModelDeployment; `None` when it names no model."""
    metadata, spec, status = item.get("metadata", {}), item.get("spec") or {}, item.get("status") or {}
    model, objectives = spec.get("model") or {}, spec.get("objectives") or {}
    if not model.get("name"):
        return None
    return SeenDeployment(
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        generation=int(metadata.get("generation", 0)),
        model=model["name"],
        policy=(spec.get("routing") or {}).get("policy", ""),
        accepted=_is_true(status, ConditionType.ACCEPTED),
        max_context_tokens=model.get("maxContextTokens"),
        ttft_ms=_milliseconds(objectives.get("ttft")),
        tpot_ms=_milliseconds(objectives.get("tpot")),
        router_ready=_router_ready(status),
    )


def _milliseconds(duration: Any) -> float | None:
    """A duration of the API, `None` when it is left out or says nothing."""
    try:
        return parse_duration(duration) * 1e3 if duration else None
    except (ValueError, TypeError):
        return None


def _router_ready(status: Object) -> Condition | None:
    for c in status.get("conditions") or []:
        if c.get("type") == ConditionType.ROUTER_READY:
            generation = int(c.get("observedGeneration") or 0)
            since = c.get("lastTransitionTime", "")
            return Condition(c.get("status", ""), c.get("reason", ""), c.get("message", ""), generation, since)
    return None


def router_ready(deployment: SeenDeployment, in_rotation: int, ready: int, pods: int, now: str) -> Condition | None:
    """The condition to write, `None` when what stands there already says it.

    `in_rotation` workers may be picked, `ready` pods pass their probe, of `pods` seen. `now` is RFC 3339.
    """
    noun = "worker" if in_rotation == 1 else "workers"
    if in_rotation:
        status, reason = "True", Reason.WORKERS_ROUTABLE
        message = f"{in_rotation} {noun} of {ready} ready pods in rotation"
    else:
        status, reason = "False", Reason.NO_ROUTABLE_WORKER
        message = f"no worker in rotation: {ready} of {pods} pods ready"
    before = deployment.router_ready
    since = before.since if before is not None and before.status == status and before.since else now
    wanted = Condition(status, str(reason), message, deployment.generation, since)
    return None if wanted == before else wanted


def condition_patch(deployment: SeenDeployment, condition: Condition) -> Object:
    """Server-side apply body that owns this one condition and nothing else."""
    return {
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": deployment.name, "namespace": deployment.namespace},
        "status": {
            "conditions": [
                {
                    "type": str(ConditionType.ROUTER_READY),
                    "status": condition.status,
                    "reason": condition.reason,
                    "message": condition.message,
                    "observedGeneration": condition.observed_generation,
                    "lastTransitionTime": condition.since,
                }
            ]
        },
    }
