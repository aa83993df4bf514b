"""Events that a change of conditions is worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from penstock.api import ConditionType, Reason
from penstock.operator.decisions.observed import Deployment
from penstock.operator.decisions.writes import Apply, Event

TOLD: dict[str, dict[str, str]] = {
    ConditionType.ACCEPTED: {"True": "Normal", "False": "Warning"},
    ConditionType.CAPACITY_AVAILABLE: {"False": "Warning"},
    ConditionType.AVAILABLE: {"True": "Normal", "False": "Normal"},
    ConditionType.DEGRADED: {"True": "Warning"},
    ConditionType.READY: {"True": "Normal"},
}
"""Condition and status that are worth an Event, and its kind."""


def transitions(deployment: Deployment, statuses: Sequence[Apply]) -> tuple[Event, ...]:
    """Events for conditions of the deployment that this reconcile changes, in status or in reason."""
    own = next((s.body["status"] for s in statuses if s.ref == deployment.meta.ref), None)
    if own is None:
        return ()
    before = {c.get("type"): c for c in deployment.status.get("conditions") or ()}
    told = []
    for condition in own["conditions"]:
        kind = TOLD.get(condition["type"], {}).get(condition["status"])
        old = before.get(condition["type"], {})
        if kind and (old.get("status"), old.get("reason")) != (condition["status"], condition["reason"]):
            told.append(_event(deployment, kind, condition["reason"], condition["message"]))
    moving = _reason(before.values(), ConditionType.PROGRESSING)
    if moving == Reason.ROLLING_OUT and _reason(own["conditions"], ConditionType.PROGRESSING) != moving:
        told.append(_event(deployment, "Normal", Reason.ROLLED_OUT, "all workers are of the current revision"))
    return tuple(told)


def _event(deployment: Deployment, kind: str, reason: str, message: str) -> Event:
    return Event(deployment.meta.ref, deployment.meta.uid, kind, str(reason), "Reconcile", message)


def _reason(conditions: Iterable[Mapping[str, Any]], of: str) -> str:
    return next((str(c.get("reason")) for c in conditions if c.get("type") == of), "")
