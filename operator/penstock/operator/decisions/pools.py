"""Writes that bring the WorkerPools to the plan: made, changed, scaled into their bounds, or removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.api import Reason
from penstock.operator.decisions.bodies import initial_replicas, says_the_same, worker_pool
from penstock.operator.decisions.observed import Deployment, Pool
from penstock.operator.decisions.plan import PoolPlan
from penstock.operator.decisions.writes import INITIAL_MANAGER, Apply, Delete, Event, Scale, Write

Said = tuple[Reason, str]
"""An Event to be: reason and sentence."""


@dataclass(frozen=True, slots=True)
class PoolWrites:
    """Writes for WorkerPools and what to say about them."""

    writes: tuple[Write, ...]
    said: tuple[Said, ...]


def pool_writes(deployment: Deployment, plan: PoolPlan, stored: Pool | None) -> PoolWrites:
    """Writes for one WorkerPool that is wanted.

    The API server refuses bounds that exclude the present replicas and replicas outside the bounds, so a range that
    moves away from the replicas is first widened, then the pool is scaled, then the range is set.
    """
    share = plan.share
    final = worker_pool(deployment, plan, share.least, share.most)
    if stored is None:
        said = (Reason.WORKER_POOL_APPLIED, f"made WorkerPool {plan.name} with {share.replicas} workers: {plan.why}")
        return PoolWrites((Apply(final), _initial(deployment, plan)), (said,))
    if stored.replicas is None:
        return PoolWrites((*_changed(final, stored), _initial(deployment, plan)), ())
    if stored.replicas == share.replicas:
        return PoolWrites(_changed(final, stored), ())
    least, most = int(stored.spec.get("minReplicas", 0)), int(stored.spec.get("maxReplicas", share.replicas))
    writes: list[Write] = []
    if not least <= share.replicas <= most:
        writes.append(Apply(worker_pool(deployment, plan, min(least, share.least), max(most, share.most))))
    writes.append(Scale(stored.meta.ref, share.replicas))
    if writes or not says_the_same(final, stored):
        writes.append(Apply(final))
    moved = f"scaled WorkerPool {plan.name} from {stored.replicas} to {share.replicas}: its bounds moved"
    return PoolWrites(tuple(writes), ((Reason.SCALED_TO_BOUNDS, moved),))


def removals(unwanted: Sequence[Pool], *, at_once: bool, others_carry: bool) -> PoolWrites:
    """Deletion of WorkerPools the plan no longer has; their workers drain in their own grace.

    They go when what replaces them is ready, or at once where no accelerator is spare for both (`at_once`).
    """
    if not (at_once or others_carry):
        return PoolWrites((), ())
    going = [pool for pool in unwanted if not pool.meta.deleting]
    said = tuple(
        (Reason.WORKER_POOL_REMOVED, f"removed WorkerPool {pool.meta.name}: the spec no longer has it")
        for pool in going
    )
    return PoolWrites(tuple(Delete(pool.meta.ref, pool.meta.uid) for pool in going), said)


def events(deployment: Deployment, said: Sequence[Said], kind: str = "Normal") -> tuple[Event, ...]:
    """Events about a deployment."""
    meta = deployment.meta
    return tuple(Event(meta.ref, meta.uid, kind, str(reason), "Reconcile", text) for reason, text in said)


def _changed(final: dict[str, object], stored: Pool) -> tuple[Write, ...]:
    return () if says_the_same(final, stored) else (Apply(final),)


def _initial(deployment: Deployment, plan: PoolPlan) -> Apply:
    # Not forced: whoever scaled the pool in the meantime has the last word.
    body = initial_replicas(deployment.meta.ref.namespace, plan.name, plan.share.replicas)
    return Apply(body, manager=INITIAL_MANAGER, force=False)
