"""What is said about a deployment's plan: the part of status, and the sentences of Events."""

from collections.abc import Mapping
from typing import Any

from penstock.autoscaler.decisions.guard import Guarded
from penstock.autoscaler.decisions.plan import DeploymentPlan
from penstock.autoscaler.decisions.snapshot import DeploymentView, PoolView

_LIMIT = 1024


def recommendation(view: DeploymentView, plan: DeploymentPlan, guarded: Guarded) -> dict[str, Any]:
    """`status.recommendation`."""
    degraded = guarded.degraded
    # The last refusal is the hardest: the others would not have been in the way any more.
    held = degraded or next(reversed(guarded.refusals), None)
    pools = [
        {"workerPool": pool.name, "replicas": plan.moves[pool.name], "allowed": guarded.moves[pool.name]}
        for pool in view.pools
        if pool.name in plan.moves and pool.name in guarded.moves
    ]
    return {
        "pools": pools,
        "why": str(plan.why),
        "reason": plan.reason[:_LIMIT],
        "runnerUp": plan.runner_up[:_LIMIT],
        "heldBy": str(held.refused) if held else "",
        "degraded": str(degraded.refused) if degraded else "",
        "message": "; ".join(refusal.message for refusal in guarded.refusals)[:_LIMIT],
        "costPerHour": _cost(view, plan.moves),
    }


def same_news(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether two recommendations differ in sentences at most: those tell the load of the moment."""
    return all(before.get(name) == after.get(name) for name in ("pools", "why", "heldBy", "degraded", "costPerHour"))


def scaled(pool: PoolView, replicas: int, plan: DeploymentPlan, guarded: Guarded) -> str:
    """The sentence of an Event: from what to what, and why."""
    way = f"scaled {pool.name} from {pool.replicas} to {replicas}"
    wish = plan.moves.get(pool.name, replicas)
    rest = f" (of {wish} planned: {', '.join(r.refused for r in guarded.refusals)})" if wish != replicas else ""
    runner_up = f"; {plan.runner_up}" if plan.runner_up else ""
    return f"{way}{rest}: {plan.reason}{runner_up}"[:_LIMIT]


def deletion_costs(loads: Mapping[str, float]) -> dict[str, int]:
    """Costs by which the ReplicaSet picks whom to delete, least first: by requests on each worker."""
    return {name: min(1_000_000, round(load)) for name, load in loads.items()}


def _cost(view: DeploymentView, moves: Mapping[str, int]) -> str:
    costs = [None if p.cost_per_hour is None else p.cost_per_hour * moves.get(p.name, p.replicas) for p in view.pools]
    known = [cost for cost in costs if cost is not None]
    return f"{sum(known):.2f}" if known and len(known) == len(costs) else ""
