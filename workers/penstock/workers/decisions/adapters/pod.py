"""The pod every adapter starts from: one container `engine`, its probes, its goodbye, its security context.

Adapters differ in command, arguments, environment and volumes only; what the cluster relies on (port name, probes,
drain, accelerators, restricted pod security) is written once, here.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.workers.decisions.adapters.compatibility import kv_compatibility_hash
from penstock.workers.decisions.adapters.goodbye import drain_hook, drain_mount, drain_volume
from penstock.workers.decisions.adapters.sidecar import sidecar_container
from penstock.workers.decisions.adapters.spec import WorkerSpec

CONTAINER = "engine"
KV_HASH = "penstock.dev/kv-hash"
USER_ID = 65532
"""Engines' images mostly default to root, which the restricted standard refuses: name a user instead."""

KV_EVENTS_PORT = 5557
KV_REPLAY_PORT = 5558
KV_TRANSFER_PORT = 5600


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineContainer:
    """What an adapter contributes to the pod."""

    command: Sequence[str]
    args: Sequence[str]
    env: Sequence[dict[str, Any]]
    probe_period_s: int
    """Period of the startup probe: how soon a fast start shows, and how often a slow one is asked."""
    requests: dict[str, str] = field(default_factory=dict)
    limits: dict[str, str] = field(default_factory=dict)
    read_only_root: bool = False
    volumes: Sequence[dict[str, Any]] = ()
    mounts: Sequence[dict[str, Any]] = ()


def pod_template(spec: WorkerSpec, engine: EngineContainer) -> dict[str, Any]:
    """The pod template of one worker; labels are the operator's, annotations that describe the engine stand here."""
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": spec.image,
        "command": list(spec.command or engine.command),
        "args": list(engine.args),
        "env": _merged_env(engine.env, spec.env),
        "ports": _ports(spec),
        **_probes(spec, engine.probe_period_s),
        "lifecycle": {"preStop": drain_hook(spec)},
        "resources": _resources(spec, engine),
        "securityContext": container_security(read_only_root=engine.read_only_root),
        "volumeMounts": [drain_mount(), *engine.mounts],
    }
    if spec.image_pull_policy:
        container["imagePullPolicy"] = spec.image_pull_policy
    pod: dict[str, Any] = {
        "containers": [container],
        "volumes": [drain_volume(spec), *engine.volumes],
        "terminationGracePeriodSeconds": math.ceil(spec.grace_s),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if spec.has_sidecar:
        pod["initContainers"] = [sidecar_container(spec, container_security(read_only_root=True))]
    if spec.node_selector:
        pod["nodeSelector"] = dict(spec.node_selector)
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in spec.image_pull_secrets]
    metadata: dict[str, Any] = {"annotations": _annotations(spec)}
    if spec.transfers_kv:
        # As a label too: the prefill workers' Service selects by it.
        metadata["labels"] = {KV_HASH: metadata["annotations"][KV_HASH]}
    return {"metadata": metadata, "spec": pod}


def pod_env() -> list[dict[str, Any]]:
    """The pod's own name and address, which engines announce to their peers and subscribers."""
    return [
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "VLLM_HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]


def kv_events_config(spec: WorkerSpec) -> str:
    """`--kv-events-config`: publish on all addresses; the topic tells the router which worker and model speak."""
    return json.dumps(
        {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{KV_EVENTS_PORT}",
            "replay_endpoint": f"tcp://*:{KV_REPLAY_PORT}",
            "topic": f"kv@$(POD_NAME)@{spec.model_name}",
        },
        separators=(",", ":"),
    )


def kv_transfer_config(spec: WorkerSpec) -> str:
    """`--kv-transfer-config` of a prefill or decode worker.

    A failed pull is recomputed: vLLM's own default fails the request, and for a prefill leg lost with its node the
    decode worker still has everything it needs.
    """
    config: dict[str, Any] = {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer" if spec.role == "Prefill" else "kv_consumer",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"kv_lease_duration": math.ceil(spec.kv_lease_s)},
    }
    return json.dumps(config, separators=(",", ":"))


def _annotations(spec: WorkerSpec) -> dict[str, str]:
    sizes = {name: getattr(spec.parallelism, name) for name in ("tensor", "pipeline", "data", "expert")}
    return {
        "penstock.dev/model": spec.model_name,
        "penstock.dev/parallelism": json.dumps(
            {k: v for k, v in sizes.items() if v != 1 or k == "tensor"}, separators=(",", ":")
        ),
        KV_HASH: kv_compatibility_hash(spec),
    }


def _ports(spec: WorkerSpec) -> list[dict[str, Any]]:
    ports = [("http", spec.port), ("kv-events", KV_EVENTS_PORT), ("kv-replay", KV_REPLAY_PORT)]
    if spec.transfers_kv:
        ports.append(("kv-transfer", KV_TRANSFER_PORT))
    return [{"name": name, "containerPort": number, "protocol": "TCP"} for name, number in ports]


def _probes(spec: WorkerSpec, startup_period_s: int) -> dict[str, Any]:
    def probe(**timing: int) -> dict[str, Any]:
        return {"httpGet": {"path": "/health", "port": "http"}, **timing}

    attempts = max(3, math.ceil(spec.startup_timeout_s / startup_period_s))
    return {
        "startupProbe": probe(periodSeconds=startup_period_s, timeoutSeconds=5, failureThreshold=attempts),
        "readinessProbe": probe(periodSeconds=5, timeoutSeconds=5, failureThreshold=2),
        # Slower to condemn than readiness: a long prefill on a busy node must not restart the engine.
        "livenessProbe": probe(periodSeconds=10, timeoutSeconds=10, failureThreshold=6),
    }


def _resources(spec: WorkerSpec, engine: EngineContainer) -> dict[str, Any]:
    limits = dict(engine.limits)
    if spec.accelerator_resource:
        limits[spec.accelerator_resource] = str(spec.parallelism.accelerators)
    resources = {"requests": dict(engine.requests), "limits": limits}
    return {name: amounts for name, amounts in resources.items() if amounts}


def container_security(*, read_only_root: bool) -> dict[str, Any]:
    """What the restricted pod security standard asks of a container."""
    context: dict[str, Any] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    if read_only_root:
        context["readOnlyRootFilesystem"] = True
    return context


def _merged_env(ours: Sequence[dict[str, Any]], theirs: Sequence[Any]) -> list[dict[str, Any]]:
    """Ours in order, each replaced by the user's of the same name, then the user's own."""
    by_name: dict[str, dict[str, Any]] = {entry["name"]: dict(entry) for entry in ours}
    by_name.update({entry["name"]: dict(entry) for entry in theirs})
    return list(by_name.values())
