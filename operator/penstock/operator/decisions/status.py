"""Status of the deployment and of its pools: the plan, what it costs, what runs where and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from penstock.api import ConditionType, Reason
from penstock.api.base import API_VERSION
from penstock.operator.decisions import conditions as say
from penstock.operator.decisions.conditions import Verdict
from penstock.operator.decisions.health import PoolHealth
from penstock.operator.decisions.naming import pool_selector
from penstock.operator.decisions.observed import Deployment, Observed, Pool
from penstock.operator.decisions.plan import Plan, PoolPlan
from penstock.operator.decisions.writes import Apply, Ref

AUTOSCALERS = "recommendation"
"""The part of the status that the autoscaler writes."""
NODES_NAMED = 4
"""Nodes a sentence names before it counts the rest."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What one reconcile found out about a deployment."""

    seen: Observed
    plan: Plan | None
    refusal: tuple[str, str] | None
    """Reason and sentence where the spec makes no sense."""
    pools: tuple[PoolHealth, ...]
    leaving: tuple[str, ...] = ()
    """WorkerPools that go once others carry their load."""
    failure: str = ""


def deployment_status(summary: Summary) -> Apply | None:
    """The write of the ModelDeployment's status; None where it already says so."""
    deployment = summary.seen.deployment
    stored = deployment.status
    status = _deployment_body(summary)
    ours = [c for c in stored.get("conditions") or () if c.get("type") != ConditionType.ROUTER_READY]
    others = {key: value for key, value in stored.items() if key != AUTOSCALERS}
    if {**others, "conditions": ours} == status:
        return None
    return _status_write(deployment.meta.ref, status)


def pool_status(pool: Pool, health: PoolHealth, deployment: Deployment, why: str, now: float) -> Apply | None:
    """The write of a WorkerPool's status; None where it already says so."""
    verdicts = (say.capacity([health]), say.available([health]), say.progressing([health]), say.degraded([health]))
    status = {
        "observedGeneration": pool.meta.generation,
        "replicas": health.live,
        "readyReplicas": health.ready,
        "updatedReplicas": health.updated,
        "selector": pool_selector(deployment.meta.name, pool.pool_name, pool.accelerator),
        "conditions": say.dated(verdicts, pool.status.get("conditions") or (), pool.meta.generation, now),
        "message": placement(health, why),
    }
    return None if dict(pool.status) == status else _status_write(pool.meta.ref, status)


def placement(health: PoolHealth, why: str) -> str:
    """What runs where, and why there."""
    shown = [f"{count} on {node}" for node, count in health.placement[:NODES_NAMED]]
    if len(health.placement) > NODES_NAMED:
        rest = health.placement[NODES_NAMED:]
        shown.append(f"{sum(count for _, count in rest)} on {len(rest)} more nodes")
    where = f" ({', '.join(shown)})" if shown else ""
    reason = f". {why}" if why else ""
    return f"{health.ready} of {health.wanted} workers ready on {health.accelerator}{where}{reason}"


def _deployment_body(summary: Summary) -> dict[str, Any]:
    seen, pools = summary.seen, summary.pools
    meta = seen.deployment.meta
    verdicts = _verdicts(summary)
    wanted, ready = sum(p.wanted for p in pools), sum(p.ready for p in pools)
    plans = {plan.name: plan for plan in summary.plan.pools} if summary.plan else {}
    return {
        "observedGeneration": meta.generation,
        "conditions": say.dated(verdicts, seen.deployment.status.get("conditions") or (), meta.generation, seen.now),
        "workers": f"{ready}/{wanted}",
        "replicas": wanted,
        "readyReplicas": ready,
        "pools": [_pool_entry(p, plans.get(p.name), seen) for p in pools],
        "plan": _plan_entry(summary, plans),
        "engineClass": summary.plan.engine_class.metadata.name if summary.plan else "",
        "profiles": _profiles(plans.values()),
        "endpoint": seen.endpoint,
        "message": _message(summary),
    }


def _verdicts(summary: Summary) -> list[Verdict]:
    pools = summary.pools
    verdicts = [
        say.refused(*summary.refusal) if summary.refusal else say.accepted(),
        _profile_verdict(summary),
        say.capacity(pools),
        say.available(pools),
        say.progressing(pools),
        say.degraded(pools, summary.failure, summary.seen.deployment.status.get(AUTOSCALERS) or {}),
    ]
    stored = summary.seen.deployment.status.get("conditions") or ()
    router = next((c for c in stored if c.get("type") == ConditionType.ROUTER_READY), None)
    return [*verdicts, say.ready(verdicts, router)]


def _profile_verdict(summary: Summary) -> Verdict:
    of = ConditionType.PROFILE_READY
    if summary.plan is None:
        return Verdict(of, "Unknown", Reason.PROFILE_MISSING, "the spec is not accepted, so no profile was looked for")
    missing = [p.accelerator for p in summary.plan.pools if p.profile.latency is None]
    if missing:
        return Verdict(
            of,
            "False",
            Reason.PROFILE_MISSING,
            f"nothing says how fast the model runs on {', '.join(missing)}; create a PerformanceProfile, or give the "
            "AcceleratorClass its flops",
        )
    reasons = {"Roofline": Reason.PROFILE_FROM_ROOFLINE, "Catalogue": Reason.PROFILE_FROM_CATALOGUE}
    latencies = [(p, p.profile.latency) for p in summary.plan.pools if p.profile.latency is not None]
    # The least trusted one names the reason.
    profile = max(latencies, key=lambda item: item[1].source.trust)[0].profile
    reason = Reason.PROFILE_FOUND if profile.name else reasons.get(profile.source, Reason.PROFILE_FOUND)
    listed = (f"{p.accelerator}: {p.profile.source}, {p.profile.name or p.profile.provenance}" for p, _ in latencies)
    return Verdict(of, "True", reason, "; ".join(listed))


def _pool_entry(health: PoolHealth, plan: PoolPlan | None, seen: Observed) -> dict[str, Any]:
    stored = next(pool for pool in seen.pools if pool.meta.name == health.name)
    cost = plan.cost_per_worker if plan else None
    return {
        "name": health.pool,
        "acceleratorClass": health.accelerator,
        "role": str(stored.spec.get("role", "")),
        "workerPool": health.name,
        "replicas": health.wanted,
        "readyReplicas": health.ready,
        "updatedReplicas": health.updated,
        "acceleratorsPerWorker": int(stored.spec.get("acceleratorsPerWorker", 0)),
        "revision": plan.template.revision if plan else stored.revision,
        "costPerHour": money(cost * health.wanted) if cost is not None else "",
        "message": placement(health, plan.why if plan else ""),
    }


def _plan_entry(summary: Summary, plans: Mapping[str, PoolPlan]) -> dict[str, Any]:
    costs: list[Decimal | None] = []
    accelerators = 0
    for health in summary.pools:
        plan = plans.get(health.name)
        costs.append(None if plan is None or plan.cost_per_worker is None else plan.cost_per_worker * health.wanted)
        accelerators += health.wanted * (plan.accelerators_per_worker if plan else 0)
    known = [cost for cost in costs if cost is not None]
    return {
        "reason": _plan_reason(summary),
        "costPerHour": money(sum(known, Decimal(0))) if known and len(known) == len(costs) else "",
        "accelerators": accelerators,
    }


def _plan_reason(summary: Summary) -> str:
    if summary.plan is None:
        return "the spec is not accepted; what runs is left as it is"
    parts = [f"{p.name}: {p.share.least}..{p.share.most} workers; {p.why}" for p in summary.plan.pools]
    parts += [f"not used: {note}" for note in summary.plan.notes]
    parts += [f"{name} goes when the others carry its load" for name in summary.leaving]
    return ". ".join(parts)[:4096]


def _profiles(plans: Iterable[PoolPlan]) -> list[dict[str, Any]]:
    by_class: dict[str, dict[str, Any]] = {}
    for plan in plans:
        if plan.profile.latency is not None and plan.accelerator not in by_class:
            by_class[plan.accelerator] = {
                "acceleratorClass": plan.accelerator,
                "source": plan.profile.source,
                "name": plan.profile.name,
                "provenance": plan.profile.provenance,
            }
    return list(by_class.values())


def _message(summary: Summary) -> str:
    if summary.refusal:
        return f"not accepted: {summary.refusal[1]}"[:4096]
    plans = {plan.name: plan for plan in summary.plan.pools} if summary.plan else {}
    lines = [f"{p.name}: {placement(p, plans[p.name].why if p.name in plans else '')}" for p in summary.pools]
    return (". ".join(lines) or "making the worker pools")[:4096]


def money(amount: Decimal) -> str:
    """An amount with two decimals."""
    return f"{amount:.2f}"


def _status_write(ref: Ref, status: Mapping[str, Any]) -> Apply:
    metadata = {"name": ref.name, "namespace": ref.namespace}
    body = {"apiVersion": API_VERSION, "kind": ref.kind, "metadata": metadata, "status": status}
    return Apply(body, subresource="status")


__all__ = ["Summary", "deployment_status", "money", "placement", "pool_status"]
