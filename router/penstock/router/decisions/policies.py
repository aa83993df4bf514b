"""Policies: which worker serves a request.

A policy is a pure function of the request, a view of the fleet, the time and a seed. It keeps no state of
its own: what it needs to remember (whose turn it is) is a column of the fleet, so a restart, an excluded
worker or a newcomer cannot put it out of step. Policies are chosen by name.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import numpy as np
from penstock.core.fleet import (
    FleetView,
    Pick,
    PickReason,
    Rejection,
    RejectReason,
    Request,
    Role,
    Scores,
    Slots,
)
from penstock.router.decisions.loads import outstanding_tokens, predicted_ttft_ms

# Reading a member through its enum class is slow enough to see in a pick.
_TURN, _LEAST, _ONLY = PickReason.LEAST_RECENTLY_PICKED, PickReason.LEAST_OUTSTANDING, PickReason.ONLY_CANDIDATE
_ROLE = Role.PREFILL_DECODE
_FEW = 32


class Policy(Protocol):
    """What every policy is."""

    @property
    def name(self) -> str:
        """The name users write in `spec.routing.policy`."""
        ...

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Choose a worker, or say why there is none. Changes nothing."""
        ...


class RoundRobin:
    """Each worker in turn: the one picked longest ago goes first."""

    name = "RoundRobin"

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Pick the worker whose last pick lies furthest back; `seed` orders those never picked."""
        slots = view.with_room(request.model, _ROLE)
        if not slots.size:
            return no_candidate(request, view)
        turns = view.last_pick[slots]
        best = _lowest(turns, seed)
        return _picked(self.name, _TURN, request, view, slots, turns, best, unit="turn")


class LeastLoaded:
    """The worker that owes the fewest tokens; equals take turns."""

    name = "LeastLoaded"

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Pick the worker with the fewest outstanding tokens (see `loads`)."""
        slots = view.with_room(request.model, _ROLE)
        if not slots.size:
            return no_candidate(request, view)
        loads = outstanding_tokens(view, slots, now)
        equal = _smallest(loads)
        if len(equal) == 1:
            best, reason = int(equal[0]), _LEAST
        else:
            best, reason = int(equal[_lowest(view.last_pick[slots[equal]], seed)]), _TURN
        return _picked(self.name, reason, request, view, slots, loads, best, unit="tokens")


POLICIES: Mapping[str, Policy] = MappingProxyType({p.name: p for p in (RoundRobin(), LeastLoaded())})
"""Every policy by its name."""

DEFAULT_POLICY = LeastLoaded.name


class UnknownPolicy(ValueError):
    """A policy name nobody knows."""


def find_policy(name: str) -> Policy:
    """The policy of that name; `UnknownPolicy` says which there are."""
    policy = POLICIES.get(name)
    if policy is None:
        raise UnknownPolicy(f"unknown routing policy {name!r}; known policies are {', '.join(POLICIES)}")
    return policy


def no_candidate(request: Request, view: FleetView) -> Rejection:
    """Say why nobody can be picked: no ready worker, or all of them full."""
    ready = view.ready(request.model).size
    if view.candidates(request.model, Role.PREFILL_DECODE).size:
        message = f"all {ready} ready workers of model {request.model!r} are busy; try again shortly"
        return Rejection(RejectReason.WORKERS_BUSY, message, retry_after=1.0)
    known = int(view.mask(model=request.model).sum())
    message = f"model {request.model!r} has no worker that could take this request ({ready} ready of {known})"
    return Rejection(RejectReason.NO_WORKERS, message, retry_after=5.0)


def _smallest(values: Scores) -> list[int] | Slots:
    """Indices of the smallest value. Below some dozens of values a plain list is faster than an array."""
    if values.size <= _FEW:
        plain = values.tolist()
        least = min(plain)
        if plain.count(least) == 1:
            return [plain.index(least)]
        return [i for i, value in enumerate(plain) if value == least]
    return np.flatnonzero(values == values.min())


def _lowest(values: Scores, seed: int) -> int:
    """Index of the smallest value; the seed chooses among equals."""
    equal = _smallest(values)
    return int(equal[seed % len(equal)])


def _picked(
    policy: str,
    reason: PickReason,
    request: Request,
    view: FleetView,
    slots: Slots,
    scores: Scores,
    best: int,
    unit: str,
) -> Pick:
    slot = int(slots[best])
    return Pick(
        decode=slot,
        reason=reason if slots.size > 1 else _ONLY,
        policy=policy,
        candidates=slots,
        scores=scores,
        unit=unit,
        predicted_ttft_ms=predicted_ttft_ms(view, slot, request.prompt_tokens),
    )
