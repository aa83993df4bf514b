"""Writes that bring a WorkerPool's ReplicaSets to its template and its replicas, one step of a roll at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.api import Reason, RolloutSpec
from penstock.operator.decisions.bodies import replica_set
from penstock.operator.decisions.naming import LABEL_ACCELERATOR, LABEL_POOL, replica_set_name
from penstock.operator.decisions.observed import Pod, Pool, ReplicaSet
from penstock.operator.decisions.pools import Said
from penstock.operator.decisions.rollout import RevisionState, finished, roll
from penstock.operator.decisions.writes import Apply, Delete, Scale, Write

HISTORY = 3
"""Revisions without workers that are kept, so that a roll back reuses a ReplicaSet and shows its age."""
ORPHANS = ""
"""Revision under which pods without a ReplicaSet of ours count: they hold accelerators, but are not ours to scale."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a stored WorkerPool is to run: from the plan where there is one, else from the pool itself."""

    pool: Pool
    template: Mapping[str, Any]
    revision: str
    replicas: int
    rollout: RolloutSpec


@dataclass(frozen=True, slots=True)
class WorkerState:
    """The pool's workers as seen, and the writes that move them on."""

    pool: Pool
    target: Target
    current: RevisionState
    old: tuple[RevisionState, ...]
    pods: tuple[Pod, ...]
    replica_sets: tuple[ReplicaSet, ...]
    writes: tuple[Write, ...] = ()
    said: tuple[Said, ...] = ()
    blocked: str = ""
    """Why nothing can be written now; the state itself has to change first."""

    @property
    def rolling(self) -> bool:
        """Workers of an older revision are still there."""
        return not finished(self.current, self.old)


def stored_target(pool: Pool) -> Target:
    """The target that the WorkerPool itself carries: what runs goes on while the deployment makes no sense."""
    spec = pool.spec
    rollout = RolloutSpec.read(spec.get("rollout") or {})
    return Target(pool, spec.get("template") or {}, pool.revision, pool.replicas or 0, rollout)


def worker_state(
    target: Target, replica_sets: Sequence[ReplicaSet], pods: Sequence[Pod], refused: bool, keep: int = 0
) -> WorkerState:
    """Count what is there and decide the next step. `refused`: the API server took no pod of this revision.

    `keep`: old workers that stay whatever the roll could do without, because others need them.
    """
    pool = target.pool
    mine = tuple(r for r in replica_sets if r.meta.owner_uid == pool.meta.uid and not r.meta.deleting)
    own_pods = tuple(p for p in pods if _belongs(p, pool))
    states = _count(mine, own_pods)
    current = states.pop(target.revision, RevisionState(target.revision, 0, 0, 0, 0))
    old = tuple(states.values())
    state = WorkerState(pool, target, current, old, own_pods, mine)
    if not target.template or not target.revision:
        return state
    name = replica_set_name(pool.meta.name, target.revision)
    if any(r.meta.name == name and r not in mine for r in replica_sets):
        return _with(state, blocked=f"waits until the old ReplicaSet {name} is gone")
    if refused:
        return state
    return _with(state, *_step(state, keep))


def _step(state: WorkerState, keep: int) -> tuple[tuple[Write, ...], tuple[Said, ...]]:
    target, by_revision = state.target, {r.revision: r for r in state.replica_sets}
    surge, unavailable = target.rollout.surge(target.replicas), target.rollout.unavailable(target.replicas)
    counts = roll(target.replicas, state.current, state.old, surge, unavailable, keep)
    writes: list[Write] = []
    said: list[Said] = []
    if target.revision not in by_revision:
        body = replica_set(state.pool, target.template, target.revision, counts[target.revision])
        writes.append(Apply(body))
        said.append((Reason.REVISION_CREATED, f"revision {target.revision} of {state.pool.meta.name} made"))
    # Old workers leave first: what they hold may be what the new ones wait for.
    for revision in sorted(counts, key=lambda revision: revision == target.revision):
        existing = by_revision.get(revision)
        if existing is not None and existing.replicas != counts[revision]:
            writes.append(Scale(existing.meta.ref, counts[revision]))
    if not state.rolling:
        writes += [Delete(r.meta.ref, r.meta.uid) for r in _prunable(state)]
    return tuple(writes), tuple(said)


def _prunable(state: WorkerState) -> list[ReplicaSet]:
    """Old revisions beyond the history, oldest first; one whose pods still end is kept, to be counted."""
    held = {s.revision: s.held for s in state.old}
    idle = [r for r in state.replica_sets if r.revision != state.target.revision and not held.get(r.revision)]
    idle.sort(key=lambda r: (r.meta.created, r.meta.name))
    return idle[: max(0, len(idle) - HISTORY)]


def _belongs(pod: Pod, pool: Pool) -> bool:
    labels = pool.meta.labels
    return all(pod.meta.labels.get(key) == labels.get(key) for key in (LABEL_POOL, LABEL_ACCELERATOR))


def _count(replica_sets: Sequence[ReplicaSet], pods: Sequence[Pod]) -> dict[str, RevisionState]:
    by_owner: dict[str | None, list[Pod]] = {}
    for pod in pods:
        by_owner.setdefault(pod.meta.owner_uid, []).append(pod)
    states = {
        r.revision: _state(r.revision, r.replicas, by_owner.pop(r.meta.uid, []), r.meta.created) for r in replica_sets
    }
    orphans = [pod for group in by_owner.values() for pod in group]
    if orphans:
        states[ORPHANS] = _state(ORPHANS, 0, orphans, "")
    return states


def _state(revision: str, wanted: int, pods: Sequence[Pod], order: str) -> RevisionState:
    live = [pod for pod in pods if pod.live]
    return RevisionState(
        revision=revision,
        wanted=wanted,
        ready=sum(pod.ready for pod in live),
        live=len(live),
        terminating=sum(pod.meta.deleting for pod in pods),
        order=order,
    )


def _with(
    state: WorkerState, writes: tuple[Write, ...] = (), said: tuple[Said, ...] = (), blocked: str = ""
) -> WorkerState:
    return WorkerState(
        state.pool, state.target, state.current, state.old, state.pods, state.replica_sets, writes, said, blocked
    )
