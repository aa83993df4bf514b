"""The headless Services by which decode pods' sidecars know the prefill workers they may ask.

One for each KV-compatibility hash of a deployment: its name resolves to the ready prefill pods of that hash and to
nothing else, which makes the cluster's DNS the list of whom a request may be sent to. A Service is owned by the
ReplicaSets whose pods it selects, so it goes with the last revision of its hash.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from penstock.api import Role
from penstock.api.base import ANNOTATION_KV_HASH, LABEL_ROLE
from penstock.operator.decisions.naming import (
    LABEL_DEPLOYMENT,
    MANAGED_BY,
    digest,
    owner_reference,
    prefill_service_name,
)
from penstock.operator.decisions.observed import Deployment, Observed, ReplicaSet
from penstock.operator.decisions.writes import Apply


def service_writes(seen: Observed) -> tuple[Apply, ...]:
    """Services that are not known to be as they are to be."""
    if not seen.sidecar_image:
        return ()
    mine = {pool.meta.uid for pool in seen.pools if pool.meta.owner_uid == seen.deployment.meta.uid}
    by_hash: dict[str, list[ReplicaSet]] = {}
    for item in seen.replica_sets:
        prefills = item.meta.labels.get(LABEL_ROLE) == Role.PREFILL and bool(item.kv_hash)
        if prefills and item.meta.owner_uid in mine and not item.meta.deleting:
            by_hash.setdefault(item.kv_hash, []).append(item)
    bodies = [prefill_service(seen.deployment, kv_hash, owners) for kv_hash, owners in sorted(by_hash.items())]
    return tuple(Apply(body) for body in bodies if seen.services.get(body["metadata"]["name"]) != digest(body))


def prefill_service(deployment: Deployment, kv_hash: str, owners: Iterable[ReplicaSet]) -> dict[str, Any]:
    """The headless Service of a deployment's prefill workers of one hash."""
    meta = deployment.meta
    references = [
        {**owner_reference("ReplicaSet", owner.meta.name, owner.meta.uid, "apps/v1"), "controller": False}
        for owner in sorted(owners, key=lambda owner: owner.meta.name)
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": prefill_service_name(meta.name, kv_hash),
            "namespace": meta.ref.namespace,
            "labels": {LABEL_DEPLOYMENT: meta.name, MANAGED_BY[0]: MANAGED_BY[1]},
            "ownerReferences": references,
        },
        "spec": {
            "clusterIP": "None",
            "selector": {LABEL_DEPLOYMENT: meta.name, LABEL_ROLE: str(Role.PREFILL), ANNOTATION_KV_HASH: kv_hash},
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }
