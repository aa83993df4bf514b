"""`desired(observed)`: one look at a deployment and everything it owns, one ordered list of writes.

A spec that makes no sense stops nothing that runs: the WorkerPools carry their own templates and numbers, and are
kept at those until the spec is mended. Nothing is written for a deployment on its way out; the garbage collector
follows the ownerReferences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.api import Reason
from penstock.operator.decisions.bodies import drain_config_map, replica_set_probe
from penstock.operator.decisions.events import transitions
from penstock.operator.decisions.health import PoolHealth, health_of
from penstock.operator.decisions.observed import Observed, Pool
from penstock.operator.decisions.pairs import check_pairs, keepers
from penstock.operator.decisions.peers import service_writes
from penstock.operator.decisions.plan import Plan, PoolPlan, make_plan
from penstock.operator.decisions.pools import Said, events, pool_writes, removals
from penstock.operator.decisions.refusal import Refusal
from penstock.operator.decisions.status import Summary, deployment_status, pool_status
from penstock.operator.decisions.taken import check_names
from penstock.operator.decisions.workers import Target, WorkerState, stored_target, worker_state
from penstock.operator.decisions.writes import Apply, Desired, Write

BLOCKED_RETRY_S = 2.0
"""Seconds until another look at an object whose predecessor is still being removed."""
REFUSED_RETRY_S = 60.0
"""Seconds until a pod that the API server refused is offered again: what refuses it may have changed."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The pieces of one reconcile before they are put together."""

    plan: Plan | None
    refusal: Refusal | None
    writes: tuple[Write, ...] = ()
    said: tuple[Said, ...] = ()


def desired(seen: Observed, failure: str = "") -> Desired:
    """What must be written now. `failure`: the write that was last refused, for the status to tell."""
    if seen.deployment.meta.deleting:
        return Desired()
    found = _resolve(seen)
    foreign = _foreign(seen, found.plan)
    states = _states(seen, found.plan)
    health = [_health(seen, state, found.plan) for state in states]
    leaving = _leaving(seen, found.plan, health)
    summary = Summary(
        seen=seen,
        plan=found.plan,
        refusal=(str(found.refusal.reason), found.refusal.message) if found.refusal else None,
        pools=tuple(health),
        leaving=tuple(pool.meta.name for pool in _unwanted(seen, found.plan)),
        failure=failure or foreign,
    )
    writes = (*found.writes, *(write for state in states for write in state.writes))
    said = (*found.said, *(said for state in states for said in state.said), *leaving.said)
    statuses = _statuses(seen, states, health, found.plan, summary)
    return Desired(
        # Removals last: what is gone has no status to write. No worker waits for a Service, so it follows the status.
        writes=(*writes, *statuses, *service_writes(seen), *leaving.writes),
        events=(*events(seen.deployment, said), *transitions(seen.deployment, statuses)),
        requeue_after=_requeue(seen, states, health, bool(foreign)),
    )


def _resolve(seen: Observed) -> _Found:
    """The plan and the writes of its WorkerPools, or why there is none."""
    try:
        plan = make_plan(seen)
        check_pairs(plan.pools)
        _check_refused(seen, plan)
        check_names(seen, plan.pools)
    except Refusal as refusal:
        return _Found(None, refusal)
    stored = {pool.meta.name: pool for pool in _own(seen)}
    foreign = {pool.meta.name for pool in seen.pools} - set(stored)
    writes: list[Write] = [] if seen.drain_current else [Apply(drain_config_map(seen.deployment))]
    said: list[Said] = []
    for pool in plan.pools:
        if pool.name in foreign:
            continue
        if _is_new(pool, stored.get(pool.name)):
            probe = replica_set_probe(seen.deployment, pool)
            writes.insert(0, Apply(probe, dry_run=True, probe=pool.template.revision))
        step = pool_writes(seen.deployment, pool, stored.get(pool.name))
        writes += step.writes
        said += step.said
    return _Found(plan, None, tuple(writes), tuple(said))


def _check_refused(seen: Observed, plan: Plan) -> None:
    for pool in plan.pools:
        said = seen.refusals.get(pool.template.revision)
        if said is not None:
            raise Refusal(
                Reason.INVALID_POD_TEMPLATE,
                f"the API server refuses the pod of pool {pool.pool}: {said}; mend podTemplate or engine",
            )


def _is_new(pool: PoolPlan, stored: Pool | None) -> bool:
    return stored is None or stored.revision != pool.template.revision


def _own(seen: Observed) -> list[Pool]:
    """WorkerPools of this very deployment, not of one of the same name before it."""
    uid = seen.deployment.meta.uid
    pools = [pool for pool in seen.pools if pool.meta.owner_uid == uid and not pool.meta.deleting]
    return sorted(pools, key=lambda pool: pool.meta.name)


def _foreign(seen: Observed, plan: Plan | None) -> str:
    """WorkerPools in the way: left by an earlier deployment of this name, or on their way out."""
    own = {pool.meta.name for pool in _own(seen)}
    wanted = {pool.name for pool in plan.pools} if plan else set()
    names = sorted(wanted & {pool.meta.name for pool in seen.pools} - own)
    return f"waits until the old WorkerPool {names[0]} is gone" if names else ""


def _unwanted(seen: Observed, plan: Plan | None) -> list[Pool]:
    wanted = {pool.name for pool in plan.pools} if plan else {pool.meta.name for pool in seen.pools}
    return [pool for pool in _own(seen) if pool.meta.name not in wanted]


def _states(seen: Observed, plan: Plan | None) -> list[WorkerState]:
    """Every pool's workers and next step. Pools are looked at alone first, then with what their partners still need."""
    alone = [_workers(seen, pool, plan) for pool in _own(seen)]
    keeping = keepers(alone)
    return [_workers(seen, s.pool, plan, keep=1) if s.pool.meta.name in keeping else s for s in alone]


def _workers(seen: Observed, pool: Pool, plan: Plan | None, keep: int = 0) -> WorkerState:
    planned = _planned(pool, plan)
    target = stored_target(pool)
    if planned is not None:
        template = planned.template
        target = Target(pool, template.body, template.revision, planned.share.replicas, planned.rollout)
    refused = target.revision in seen.refusals
    return worker_state(target, seen.replica_sets, seen.pods, refused=refused, keep=keep)


def _planned(pool: Pool, plan: Plan | None) -> PoolPlan | None:
    return next((p for p in plan.pools if p.name == pool.meta.name), None) if plan else None


def _health(seen: Observed, state: WorkerState, plan: Plan | None) -> PoolHealth:
    pool = state.pool
    spec = seen.deployment.spec
    listed = next((p for p in spec.pools if p.name == pool.pool_name), None) if spec else None
    least = listed.replicas.min if listed else int(pool.spec.get("minReplicas", 0))
    return health_of(state, least, seen.cluster.nodes, seen.now)


def _leaving(seen: Observed, plan: Plan | None, health: Sequence[PoolHealth]) -> _Found:
    unwanted = _unwanted(seen, plan)
    if plan is None or not unwanted or seen.deployment.spec is None:
        return _Found(plan, None)
    names = {pool.name for pool in plan.pools}
    staying = [h for h in health if h.name in names]
    spare = seen.deployment.spec.rollout.surge(sum(h.wanted for h in health))
    carry = len(staying) == len(names) and all(h.ready >= h.wanted for h in staying)
    step = removals(unwanted, at_once=spare == 0, others_carry=carry)
    return _Found(plan, None, step.writes, step.said)


def _statuses(
    seen: Observed,
    states: Sequence[WorkerState],
    health: Sequence[PoolHealth],
    plan: Plan | None,
    summary: Summary,
) -> tuple[Apply, ...]:
    writes = []
    for state, pool_health in zip(states, health, strict=True):
        planned = _planned(state.pool, plan)
        why = planned.why if planned else ""
        writes.append(pool_status(state.pool, pool_health, seen.deployment, why, seen.now))
    writes.append(deployment_status(summary))
    return tuple(write for write in writes if write is not None)


def _requeue(
    seen: Observed, states: Sequence[WorkerState], health: Sequence[PoolHealth], foreign: bool
) -> float | None:
    waits = [h.next_deadline - seen.now for h in health if h.next_deadline is not None]
    if foreign or any(state.blocked for state in states):
        waits.append(BLOCKED_RETRY_S)
    if seen.refusals:
        waits.append(REFUSED_RETRY_S)
    return min(waits, default=None)


__all__ = ["desired"]
