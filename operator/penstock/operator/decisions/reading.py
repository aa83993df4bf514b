"""Stored JSON to frozen views. Tolerant: a field that is missing or new is no reason to fail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from penstock.api import ModelDeploymentSpec
from penstock.api.base import ANNOTATION_KV_HASH, LABEL_REVISION
from penstock.operator.decisions.observed import Deployment, Meta, Node, Pod, Pool, Raw, ReplicaSet
from penstock.operator.decisions.times import epoch
from penstock.operator.decisions.writes import Ref
from pydantic import ValidationError

ENGINE_CONTAINER = "engine"


def read_meta(stored: Raw, api_version: str = "", kind: str = "") -> Meta:
    """Metadata of any object. Items of a List carry no type of their own: `api_version` and `kind` stand in."""
    metadata = stored["metadata"]
    ref = Ref(
        stored.get("apiVersion", api_version), stored.get("kind", kind), metadata.get("namespace"), metadata["name"]
    )
    owners = metadata.get("ownerReferences") or ()
    return Meta(
        ref=ref,
        uid=metadata.get("uid", ""),
        generation=int(metadata.get("generation", 0)),
        created=metadata.get("creationTimestamp") or "",
        deleting="deletionTimestamp" in metadata,
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        owner_uid=next((owner["uid"] for owner in owners if owner.get("controller")), None),
    )


def read_deployment(stored: Raw) -> Deployment:
    """A ModelDeployment; one that an older or newer release wrote may be unreadable, which its status then says."""
    raw = stored.get("spec") or {}
    spec, unreadable = None, ""
    try:
        spec = ModelDeploymentSpec.read(raw)
    except ValidationError as error:
        unreadable = "; ".join(f"{_path(item['loc'])}: {item['msg']}" for item in error.errors())
    served = str((raw.get("model") or {}).get("name", ""))
    return Deployment(read_meta(stored), spec, unreadable, served, stored.get("status") or {})


def read_pool(stored: Raw) -> Pool:
    """A WorkerPool."""
    return Pool(read_meta(stored), stored.get("spec") or {}, stored.get("status") or {})


def read_replica_set(stored: Raw) -> ReplicaSet:
    """A ReplicaSet; of its template only the revision and the hash that says who its pods' peers are."""
    meta = read_meta(stored)
    conditions = (stored.get("status") or {}).get("conditions") or ()
    failure = next((c.get("message", "") for c in conditions if _holds(c, "ReplicaFailure")), "")
    spec = stored.get("spec") or {}
    template = (spec.get("template") or {}).get("metadata") or {}
    kv_hash = (template.get("annotations") or {}).get(ANNOTATION_KV_HASH, "")
    return ReplicaSet(meta, meta.labels.get(LABEL_REVISION, ""), int(spec.get("replicas", 1)), failure, kv_hash)


def read_pod(stored: Raw) -> Pod:
    """A worker pod."""
    status, metadata = stored.get("status") or {}, stored["metadata"]
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    scheduled, ready = conditions.get("PodScheduled", {}), conditions.get("Ready", {})
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    waiting, detail = _trouble(containers)
    deleted = metadata.get("deletionTimestamp")
    node = (stored.get("spec") or {}).get("nodeName") or ""
    return Pod(
        meta=read_meta(stored),
        node=node,
        ready=ready.get("status") == "True",
        scheduled=bool(node) or scheduled.get("status") == "True",
        unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else "",
        waiting=waiting,
        detail=detail,
        restarts=max((int(c.get("restartCount", 0)) for c in containers), default=0),
        served_before=_served_before(ready, containers),
        finished=status.get("phase") in ("Succeeded", "Failed"),
        gone_by=epoch(deleted) if deleted else None,
    )


def read_node(stored: Raw) -> Node:
    """A node's labels, readiness and devices."""
    status = stored.get("status") or {}
    ready = any(_holds(c, "Ready") for c in status.get("conditions") or ())
    devices = {name: int(text) for name, text in (status.get("allocatable") or {}).items() if _is_device(name, text)}
    schedulable = not (stored.get("spec") or {}).get("unschedulable", False)
    metadata = stored["metadata"]
    return Node(metadata["name"], metadata.get("labels") or {}, ready, schedulable, devices)


def _holds(condition: Mapping[str, Any], kind: str) -> bool:
    return condition.get("type") == kind and condition.get("status") == "True"


def _is_device(name: str, text: Any) -> bool:
    return "/" in name and str(text).isdigit()


def _trouble(containers: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """Why a container waits, beyond the ordinary, and what is known about it."""
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            return reason, f"{container.get('name', '')}: {_last_end(container) or waiting.get('message', '')}"
    return "", ""


def _last_end(container: Mapping[str, Any]) -> str:
    ended = (container.get("lastState") or {}).get("terminated")
    if not ended:
        return ""
    said = (ended.get("message") or "").strip()
    return f"{ended.get('reason', 'ended')} with exit code {ended.get('exitCode')}" + (f": {said}" if said else "")


def _served_before(ready: Mapping[str, Any], containers: Iterable[Mapping[str, Any]]) -> bool:
    """Readiness turned false after the engine started: it had been true in between."""
    changed = ready.get("lastTransitionTime")
    if ready.get("status") != "False" or not changed:
        return False
    engine = next((c for c in containers if c.get("name") == ENGINE_CONTAINER), {})
    started = ((engine.get("state") or {}).get("running") or {}).get("startedAt")
    return started is not None and epoch(changed) > epoch(started)


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in ("spec", *location))
