"""Conditions of a deployment or a pool: each a status, a reason and a sentence; `Ready` sums them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from penstock.api import ConditionType, Reason
from penstock.operator.decisions.health import PoolHealth
from penstock.operator.decisions.times import rfc3339

Status = Literal["True", "False", "Unknown"]
MESSAGE_LIMIT = 1024
"""Characters of a message; a scheduler's sentence over many nodes is longer than anyone reads."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One condition before it gets its times."""

    type: ConditionType
    status: Status
    reason: str
    message: str


def accepted() -> Verdict:
    """The spec resolves."""
    return Verdict(ConditionType.ACCEPTED, "True", Reason.ACCEPTED, "the spec resolves: names exist and the model fits")


def refused(reason: str, message: str) -> Verdict:
    """The spec makes no sense; what already runs is left running."""
    return Verdict(ConditionType.ACCEPTED, "False", reason, message)


def capacity(pools: Sequence[PoolHealth]) -> Verdict:
    """Whether every wanted worker found its accelerators."""
    of = ConditionType.CAPACITY_AVAILABLE
    for pool in pools:
        if pool.refused:
            return Verdict(of, "False", Reason.QUOTA_EXCEEDED, _refused(pool))
    short = [pool for pool in pools if pool.no_room]
    if short:
        return Verdict(of, "False", Reason.INSUFFICIENT_CAPACITY, "; ".join(_no_room(pool) for pool in short))
    pending = sum(max(0, pool.wanted - pool.live) + pool.unscheduled for pool in pools)
    if pending or not pools:
        said = f"{pending} workers are not scheduled yet" if pools else "no workers were asked for yet"
        return Verdict(of, "Unknown", Reason.CAPACITY_PENDING, said)
    total = sum(pool.live for pool in pools)
    return Verdict(of, "True", Reason.CAPACITY_AVAILABLE, f"all {total} workers are on nodes")


def available(pools: Sequence[PoolHealth]) -> Verdict:
    """Whether enough workers are ready to serve."""
    of, wanted, ready = ConditionType.AVAILABLE, sum(p.wanted for p in pools), sum(p.ready for p in pools)
    if not pools:
        return Verdict(of, "Unknown", Reason.WORKERS_STARTING, "the worker pools are being made")
    if wanted == 0:
        return Verdict(of, "False", Reason.SCALED_TO_ZERO, "no worker is wanted; scale a WorkerPool up to serve")
    if all(ready_of >= needed for ready_of, needed in _by_pool(pools)):
        reason = Reason.WORKERS_READY if ready >= wanted else Reason.MINIMUM_READY
        return Verdict(of, "True", reason, f"{ready} of {wanted} workers are ready")
    starting = any(pool.live and not (pool.image or pool.crashing) for pool in pools)
    reason = Reason.WORKERS_STARTING if ready or starting else Reason.NO_WORKER_READY
    return Verdict(of, "False", reason, f"{ready} of {wanted} workers are ready")


def progressing(pools: Sequence[PoolHealth]) -> Verdict:
    """Whether workers are being added, replaced or removed."""
    of = ConditionType.PROGRESSING
    rolling = [f"{p.name}: {p.updated} of {p.wanted} workers are of the new revision" for p in pools if p.rolling]
    if rolling:
        return Verdict(of, "True", Reason.ROLLING_OUT, "; ".join(rolling))
    moving = [_moving(p) for p in pools if p.live != p.wanted or p.terminating or p.missing]
    if moving:
        return Verdict(of, "True", Reason.SCALING, "; ".join(moving))
    return Verdict(of, "False", Reason.STABLE, "nothing is moving")


def degraded(pools: Sequence[PoolHealth], failure: str = "", scaling: Mapping[str, Any] | None = None) -> Verdict:
    """Whether something runs worse than asked for.

    `failure`: a write that the API server keeps refusing. `scaling`: what the autoscaler recommends and cannot do.
    """
    of = ConditionType.DEGRADED
    if failure:
        return Verdict(of, "True", Reason.RECONCILE_FAILED, failure)
    kinds = (
        (Reason.IMAGE_UNAVAILABLE, [text for p in pools for text in p.image]),
        (Reason.WORKERS_CRASHING, [text for p in pools for text in p.crashing]),
        (Reason.WORKERS_UNREADY, [text for p in pools for text in p.unready]),
        (Reason.TERMINATING_OVERLAP, [text for p in pools for text in p.overdue]),
    )
    for reason, sentences in kinds:
        if sentences:
            return Verdict(of, "True", reason, _first(sentences))
    if said := (scaling or {}).get("degraded"):
        return Verdict(of, "True", str(said), str((scaling or {}).get("message") or f"autoscaling: {said}"))
    return Verdict(of, "False", Reason.AS_EXPECTED, "nothing runs worse than asked for")


def ready(verdicts: Sequence[Verdict], router: Mapping[str, Any] | None) -> Verdict:
    """The sum: accepted, available, routed, and nothing half rolled. `router` is the condition the router wrote."""
    of, by_type = ConditionType.READY, {verdict.type: verdict for verdict in verdicts}
    for kind in (ConditionType.ACCEPTED, ConditionType.AVAILABLE):
        verdict = by_type[kind]
        if verdict.status != "True":
            cause = _cause(verdict, by_type)
            return Verdict(of, "False", cause.reason, f"{cause.type} is {cause.status}: {cause.message}")
    if router is None:
        return Verdict(of, "False", Reason.ROUTER_UNKNOWN, "no router has reported on this deployment yet")
    if router.get("status") != "True":
        reason = str(router.get("reason") or Reason.NO_ROUTABLE_WORKER)
        return Verdict(of, "False", reason, f"RouterReady is {router.get('status')}: {router.get('message', '')}")
    moving = by_type[ConditionType.PROGRESSING]
    if moving.reason == Reason.ROLLING_OUT:
        return Verdict(of, "False", Reason.RECONCILING, moving.message)
    return Verdict(of, "True", Reason.READY, by_type[ConditionType.AVAILABLE].message)


def dated(
    verdicts: Sequence[Verdict], stored: Sequence[Mapping[str, Any]], generation: int, now: float
) -> list[dict[str, Any]]:
    """Conditions as stored: the transition time moves only when the status does."""
    before = {condition.get("type"): condition for condition in stored}
    return [_dated(verdict, before.get(str(verdict.type)), generation, now) for verdict in verdicts]


def _dated(verdict: Verdict, before: Mapping[str, Any] | None, generation: int, now: float) -> dict[str, Any]:
    same = before is not None and before.get("status") == verdict.status and before.get("lastTransitionTime")
    return {
        "type": str(verdict.type),
        "status": verdict.status,
        "reason": str(verdict.reason),
        "message": _cut(verdict.message),
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if before and same else rfc3339(now),
    }


def _cause(verdict: Verdict, by_type: Mapping[ConditionType, Verdict]) -> Verdict:
    """What explains missing workers better than their number: no capacity, or workers that fail."""
    if verdict.type != ConditionType.AVAILABLE or verdict.reason == Reason.SCALED_TO_ZERO:
        return verdict
    if by_type[ConditionType.DEGRADED].status == "True":
        return by_type[ConditionType.DEGRADED]
    if by_type[ConditionType.CAPACITY_AVAILABLE].status == "False":
        return by_type[ConditionType.CAPACITY_AVAILABLE]
    return verdict


def _by_pool(pools: Sequence[PoolHealth]) -> list[tuple[int, int]]:
    """(ready, required) of each pool of the spec: its classes stand in for each other."""
    groups: dict[str, list[PoolHealth]] = {}
    for pool in pools:
        groups.setdefault(pool.pool, []).append(pool)
    return [_group(group) for group in groups.values()]


def _group(pools: Sequence[PoolHealth]) -> tuple[int, int]:
    wanted = sum(p.wanted for p in pools)
    if wanted == 0:
        return 0, 0
    least, spare = max(p.least for p in pools), min(p.unavailable for p in pools)
    return sum(p.ready for p in pools), max(1, min(wanted, least) - spare)


def _refused(pool: PoolHealth) -> str:
    return f"{pool.name}: the cluster makes no pods: {pool.refused}"


def _no_room(pool: PoolHealth) -> str:
    leaving = f"; {pool.terminating} workers on their way out still hold theirs" if pool.terminating else ""
    return (
        f"{pool.name}: {pool.unscheduled} of {pool.wanted} workers find no {pool.accelerator}: {pool.no_room}{leaving}"
    )


def _moving(pool: PoolHealth) -> str:
    ending = f", {pool.terminating} ending" if pool.terminating else ""
    return f"{pool.name}: {pool.ready} of {pool.wanted} workers ready{ending}"


def _first(sentences: Sequence[str]) -> str:
    more = len(sentences) - 1
    return sentences[0] + (f" (and {more} more)" if more else "")


def _cut(message: str) -> str:
    return message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 3] + "..."
