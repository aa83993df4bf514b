"""Names and labels of what the operator makes; the borders page fixes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from penstock.api.base import (
    API_VERSION,
    GROUP,
    LABEL_ACCELERATOR,
    LABEL_DEPLOYMENT,
    LABEL_POOL,
    LABEL_REVISION,
    LABEL_ROLE,
)

MANAGED_BY = ("app.kubernetes.io/managed-by", "penstock")
ANNOTATION_INPUTS = f"{GROUP}/input-hash"
"""On WorkerPools: hash of everything the pod template was rendered from; equal inputs reuse the stored template."""
DEFAULT_POOL = "serve"
"""Pool made where the spec lists none."""
REVISION_DIGITS = 10


def worker_pool_name(deployment: str, pool: str, accelerator: str) -> str:
    """Name of the WorkerPool of a pool on one accelerator class. Two can be equal: see `taken`."""
    return f"{deployment}-{pool}-{accelerator}"


def replica_set_name(worker_pool: str, revision: str) -> str:
    """Name of a WorkerPool's ReplicaSet of one revision."""
    return f"{worker_pool}-{revision}"


def drain_config_map_name(deployment: str) -> str:
    """Name of the ConfigMap that carries the drain script."""
    return f"{deployment}-drain"


def prefill_service_name(deployment: str, kv_hash: str) -> str:
    """Name of the headless Service of a deployment's prefill workers of one hash.

    A Service's name is shorter than a deployment's may be, and must begin with a letter: a digest fits always.
    """
    return f"prefill-{digest([deployment, kv_hash])[:16]}"


def pool_labels(deployment: str, pool: str, role: str, accelerator: str) -> dict[str, str]:
    """Labels of a WorkerPool; with the revision also those of its ReplicaSets and pods."""
    return {
        LABEL_DEPLOYMENT: deployment,
        LABEL_POOL: pool,
        LABEL_ROLE: role,
        LABEL_ACCELERATOR: accelerator,
        MANAGED_BY[0]: MANAGED_BY[1],
    }


def pool_selector(deployment: str, pool: str, accelerator: str) -> str:
    """`status.selector` of a WorkerPool: its workers of all revisions, one pod each."""
    parts = {LABEL_DEPLOYMENT: deployment, LABEL_POOL: pool, LABEL_ACCELERATOR: accelerator}
    return ",".join(f"{key}={value}" for key, value in sorted(parts.items()))


def owner_reference(kind: str, name: str, uid: str, api_version: str = API_VERSION) -> dict[str, Any]:
    """Controller reference. It does not block the owner's deletion: nothing of ours ever does."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, as hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def revision_of(template: Mapping[str, Any]) -> str:
    """Revision of a pod template: the first hex digits of its SHA-256."""
    return digest(template)[:REVISION_DIGITS]


__all__ = [
    "ANNOTATION_INPUTS",
    "API_VERSION",
    "DEFAULT_POOL",
    "LABEL_ACCELERATOR",
    "LABEL_DEPLOYMENT",
    "LABEL_POOL",
    "LABEL_REVISION",
    "LABEL_ROLE",
    "MANAGED_BY",
    "digest",
    "drain_config_map_name",
    "owner_reference",
    "pool_labels",
    "pool_selector",
    "prefill_service_name",
    "replica_set_name",
    "revision_of",
    "worker_pool_name",
]
