"""Prefill and decode belong together: which pools can hand KV to each other, and what a roll must leave them.

KV moves only between workers of one KV-compatibility hash. A change of the engine that changes the hash parts the old
workers from the new ones, so while it rolls each side must keep what it needs: the last old pair stays until a new
pair is ready, and old decode workers keep an old prefill worker for as long as they serve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.api import Reason, Role
from penstock.api.base import ANNOTATION_KV_HASH, LABEL_ROLE
from penstock.operator.decisions.observed import Pod
from penstock.operator.decisions.plan import PoolPlan
from penstock.operator.decisions.refusal import Refusal
from penstock.operator.decisions.workers import WorkerState

_OTHER = {str(Role.PREFILL): str(Role.DECODE), str(Role.DECODE): str(Role.PREFILL)}


def check_pairs(pools: Sequence[PoolPlan]) -> None:
    """Refuse a Prefill or Decode pool that no pool of the other role can exchange KV with."""
    hashes = {(str(pool.role), pool.template.kv_hash) for pool in pools}
    for pool in pools:
        other = _OTHER.get(str(pool.role))
        if other is not None and (other, pool.template.kv_hash) not in hashes:
            raise Refusal(
                Reason.NO_COMPATIBLE_PAIR,
                f"pool {pool.pool} ({pool.role}) on {pool.accelerator} can exchange KV with no {other} pool: image, "
                "block size, cache type, attention backend and pipeline parallelism must be equal on both sides; make "
                "them equal in the engine class's variants and the pools, or use role PrefillDecode",
            )


def keepers(states: Sequence[WorkerState]) -> frozenset[str]:
    """WorkerPools that must keep one worker of an older revision, because its KV hash is not the new one's."""
    return frozenset(state.pool.meta.name for state in states if _must_keep(state, states))


def _must_keep(state: WorkerState, states: Sequence[WorkerState]) -> bool:
    role, new = _role(state), _hash(state.target.template)
    other = _OTHER.get(role)
    if other is None or not _crosses(state, new) or not _has_room(state):
        return False
    if not _wanted(states, other, new):
        return False  # the other side is scaled to zero: no pair can come, and none is to be waited for
    if not (_is_ready(states, role, new) and _is_ready(states, other, new)):
        return True
    old = {hash_ for hash_ in map(_pod_hash, _old_pods(state)) if hash_ != new}
    return role == Role.PREFILL and any(_serves(s, other, old) for s in states)


def _has_room(state: WorkerState) -> bool:
    """Whether an old worker can stay beside a new one; with one accelerator to its name a pool can keep nothing."""
    replicas = state.target.replicas
    return replicas > 0 and replicas + state.target.rollout.surge(replicas) > 1


def _crosses(state: WorkerState, new: str) -> bool:
    return any(_pod_hash(pod) != new for pod in _old_pods(state))


def _old_pods(state: WorkerState) -> list[Pod]:
    current = {r.meta.uid for r in state.replica_sets if r.revision == state.target.revision}
    return [pod for pod in state.pods if pod.live and pod.meta.owner_uid not in current]


def _serves(state: WorkerState, role: str, hashes: set[str]) -> bool:
    return _role(state) == role and any(pod.ready and _pod_hash(pod) in hashes for pod in _old_pods(state))


def _wanted(states: Sequence[WorkerState], role: str, new: str) -> bool:
    return any(_role(s) == role and _hash(s.target.template) == new and s.target.replicas > 0 for s in states)


def _is_ready(states: Sequence[WorkerState], role: str, new: str) -> bool:
    return any(_role(s) == role and _hash(s.target.template) == new and s.current.sure > 0 for s in states)


def _role(state: WorkerState) -> str:
    return state.pool.meta.labels.get(LABEL_ROLE, "")


def _pod_hash(pod: Pod) -> str:
    return pod.meta.annotations.get(ANNOTATION_KV_HASH, "")


def _hash(template: Mapping[str, Any]) -> str:
    return str(((template.get("metadata") or {}).get("annotations") or {}).get(ANNOTATION_KV_HASH, ""))
