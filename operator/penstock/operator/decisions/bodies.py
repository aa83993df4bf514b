"""The objects the operator applies, as plain JSON, and whether a stored one already says the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.operator.decisions.merge import merged
from penstock.operator.decisions.naming import (
    ANNOTATION_INPUTS,
    API_VERSION,
    LABEL_ACCELERATOR,
    LABEL_DEPLOYMENT,
    LABEL_POOL,
    LABEL_REVISION,
    MANAGED_BY,
    drain_config_map_name,
    owner_reference,
    pool_labels,
    replica_set_name,
)
from penstock.operator.decisions.observed import Deployment, Pool
from penstock.operator.decisions.plan import PoolPlan
from penstock.operator.decisions.speeds import speed_body
from penstock.workers.decisions.adapters import DRAIN_FILE, drain_script

Body = dict[str, Any]


def drain_config_map(deployment: Deployment) -> Body:
    """The ConfigMap with the drain script, owned by the deployment."""
    meta = deployment.meta
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": drain_config_map_name(meta.name),
            "namespace": meta.ref.namespace,
            "labels": {LABEL_DEPLOYMENT: meta.name, MANAGED_BY[0]: MANAGED_BY[1]},
            "ownerReferences": [owner_reference("ModelDeployment", meta.name, meta.uid)],
        },
        "data": {DRAIN_FILE: drain_script()},
    }


def worker_pool(deployment: Deployment, plan: PoolPlan, least: int, most: int) -> Body:
    """A WorkerPool without its replicas, which are not ours to declare."""
    meta = deployment.meta
    return {
        "apiVersion": API_VERSION,
        "kind": "WorkerPool",
        "metadata": {
            "name": plan.name,
            "namespace": meta.ref.namespace,
            "labels": pool_labels(meta.name, plan.pool, str(plan.role), plan.accelerator),
            "annotations": {ANNOTATION_INPUTS: plan.template.inputs_hash},
            "ownerReferences": [owner_reference("ModelDeployment", meta.name, meta.uid)],
        },
        "spec": {
            "deploymentName": meta.name,
            "poolName": plan.pool,
            "role": str(plan.role),
            "acceleratorClassName": plan.accelerator,
            "modelName": deployment.served_name,
            "parallelism": _degrees(plan),
            "acceleratorsPerWorker": plan.accelerators_per_worker,
            "minReplicas": least,
            "maxReplicas": most,
            "rollout": plan.rollout.to_dict(),
            "speed": speed_body(plan.speed, plan.cost_per_worker),
            "revision": plan.template.revision,
            "kvHash": plan.template.kv_hash,
            "template": plan.template.body,
        },
    }


def initial_replicas(namespace: str | None, name: str, replicas: int) -> Body:
    """The one field that is set once, under its own field manager."""
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": "WorkerPool", "metadata": metadata, "spec": {"replicas": replicas}}


def replica_set_probe(deployment: Deployment, plan: PoolPlan) -> Body:
    """A ReplicaSet of no pods, for a dry run: the API server checks the rendered pod before anything is stored."""
    meta = deployment.meta
    revision = plan.template.revision
    labels = {**pool_labels(meta.name, plan.pool, str(plan.role), plan.accelerator), LABEL_REVISION: revision}
    name = f"{replica_set_name(plan.name, revision)}-check"
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        # Its own name: a dry run over an existing object would check a change, not a creation.
        "metadata": {"name": name, "namespace": meta.ref.namespace},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {LABEL_REVISION: revision}},
            "template": merged(plan.template.body, {"metadata": {"labels": labels}}),
        },
    }


def replica_set(pool: Pool, template: Mapping[str, Any], revision: str, replicas: int) -> Body:
    """A ReplicaSet of one revision of a stored WorkerPool."""
    labels = {**pool.meta.labels, LABEL_REVISION: revision}
    ours = {key: labels[key] for key in sorted(labels) if key.startswith("penstock.dev/") or key == MANAGED_BY[0]}
    chosen = {key: ours[key] for key in (LABEL_DEPLOYMENT, LABEL_POOL, LABEL_ACCELERATOR, LABEL_REVISION)}
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": replica_set_name(pool.meta.name, revision),
            "namespace": pool.meta.ref.namespace,
            "labels": ours,
            "ownerReferences": [owner_reference("WorkerPool", pool.meta.name, pool.meta.uid)],
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": chosen},
            # Our labels are laid over the user's: a pod whose labels miss the selector would be made for ever.
            "template": merged(template, {"metadata": {"labels": ours}}),
        },
    }


def says_the_same(body: Body, stored: Pool) -> bool:
    """Whether applying `body` to the stored WorkerPool would change nothing."""
    metadata = body["metadata"]
    kept = {key: value for key, value in stored.spec.items() if key != "replicas"}
    return bool(
        kept == body["spec"]
        and metadata["labels"].items() <= dict(stored.meta.labels).items()
        and metadata["annotations"].items() <= dict(stored.meta.annotations).items()
        and stored.meta.owner_uid == metadata["ownerReferences"][0]["uid"]
    )


def _degrees(plan: PoolPlan) -> dict[str, int]:
    degrees = plan.template.parallelism
    return {name: getattr(degrees, name) for name in ("tensor", "pipeline", "data", "expert")}
