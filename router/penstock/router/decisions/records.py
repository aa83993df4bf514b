"""Picks on record: the request, the fleet as it was, policy, time and seed in; the pick out. And the same again."""

from __future__ import annotations

from typing import Any

from penstock.core.fleet import FleetView, Pick, Rejection, Request
from penstock.core.fleet.picture import FleetPicture, restore, take
from penstock.core.records import rebuild, to_plain
from penstock.router.decisions.policies import find_policy
from penstock.router.decisions.policies_common import Policy

__all__ = ["KIND", "again", "pick_on_record"]

KIND = "Pick"


def pick_on_record(
    policy: Policy, request: Request, view: FleetView, now: float, seed: int
) -> tuple[Pick | Rejection, dict[str, Any]]:
    """What the policy answers, and the record of it."""
    picture = take(view, request)
    answer = policy.pick(request, view, now, seed)
    given = {"request": request, "fleet": picture, "policy": policy.name, "now": now, "seed": seed}
    return answer, {"kind": KIND, **to_plain(given), "answer": _plain(answer)}


def again(record: dict[str, Any]) -> Any:
    """What the policy of a record answers to the same question now, in the form of the record's `answer`.

    Raises `RecordError` or `UnknownPolicy` where the record cannot be used here.
    """
    request = rebuild(record.get("request"), Request)
    view = restore(rebuild(record.get("fleet"), FleetPicture), request.model)
    now, seed = rebuild(record.get("now"), float), rebuild(record.get("seed"), int)
    return _plain(find_policy(rebuild(record.get("policy"), str)).pick(request, view, now, seed))


def _plain(answer: Pick | Rejection) -> Any:
    return {type(answer).__name__: to_plain(answer)}
