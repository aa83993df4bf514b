"""What all policies share: their interface, ties, refusals, and how a pair is put together.

A policy is a pure function of the request, a view of the fleet, the time and a seed. It keeps no state of its own:
what it needs to remember (whose turn it is) is a column of the fleet, so a restart, an excluded worker or a newcomer
cannot put it out of step.
"""

from typing import Protocol

import numpy as np
from msgspec import Struct
from penstock.core.fleet import (
    ANSWERING,
    FleetView,
    Pick,
    PickReason,
    Prefills,
    Rejection,
    RejectReason,
    Request,
    Role,
    Scores,
    Slots,
)
from penstock.router.decisions.loads import predicted_ttft_ms

# Reading a member through its enum class is slow enough to see in a pick.
ONLY, TURN = PickReason.ONLY_CANDIDATE, PickReason.LEAST_RECENTLY_PICKED
DECODE, PREFILL = Role.DECODE, Role.PREFILL
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


class Ranking(Struct, frozen=True):
    """Candidates in a policy's order: a score for each (lower is better), the index of the best, and why."""

    scores: Scores
    best: int
    reason: PickReason


class Ranked(Protocol):
    """A policy that judges each worker for itself, whatever its half of the work."""

    @property
    def name(self) -> str:
        """The policy's name."""
        ...

    @property
    def unit(self) -> str:
        """What a score counts."""
        ...

    def rank(self, request: Request, view: FleetView, slots: Slots, now: float, seed: int) -> Ranking:
        """Judge these candidates; there is at least one."""
        ...


def pick_ranked(policy: Ranked, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
    """The best answering worker; if it is one for decoding only, the best for prefill in its transfer domain too.

    Without any such mate the worker runs the prompt itself.
    """
    slots = view.with_room(request.model, ANSWERING)
    if not slots.size:
        return no_candidate(request, view)
    ranking = policy.rank(request, view, slots, now, seed)
    slot = int(slots[ranking.best])
    prefill, others = None, None
    if int(view.role[slot]) == DECODE:  # numpy's own integers take 3 us to compare with a member
        prefill, others = _mate(policy, request, view, slot, now, seed)
    return Pick(
        decode=slot,
        reason=ranking.reason if slots.size > 1 else ONLY,
        policy=policy.name,
        candidates=slots,
        scores=ranking.scores,
        unit=policy.unit,
        prefill=prefill,
        predicted_ttft_ms=predicted_ttft_ms(view, slot if prefill is None else prefill, request.prompt_tokens),
        prefills=others,
    )


def _mate(
    policy: Ranked, request: Request, view: FleetView, slot: int, now: float, seed: int
) -> tuple[int | None, Prefills | None]:
    mates = view.with_room(request.model, PREFILL)
    mates = mates[view.domain[mates] == view.domain[slot]]
    if not mates.size:
        return None, None
    ranking = policy.rank(request, view, mates, now, seed)
    return int(mates[ranking.best]), Prefills(mates, ranking.scores)


def no_candidate(request: Request, view: FleetView) -> Rejection:
    """Say why nobody can be picked: no ready worker, or all of them full."""
    ready = view.ready(request.model).size
    if view.candidates(request.model, ANSWERING).size:
        message = f"all {ready} ready workers of model {request.model!r} are busy; try again shortly"
        return Rejection(RejectReason.WORKERS_BUSY, message, retry_after=1.0)
    known = int(view.mask(model=request.model).sum())
    message = f"model {request.model!r} has no worker that could take this request ({ready} ready of {known})"
    return Rejection(RejectReason.NO_WORKERS, message, retry_after=5.0)


def smallest(values: Scores) -> list[int] | Slots:
    """Indices of the smallest value. Below some dozens of values a plain list is faster than an array."""
    if values.size <= _FEW:
        plain = values.tolist()
        least = min(plain)
        if plain.count(least) == 1:
            return [plain.index(least)]
        return [i for i, value in enumerate(plain) if value == least]
    best = int(values.argmin())
    equal = values == values[best]
    return [best] if np.count_nonzero(equal) == 1 else np.flatnonzero(equal)


def lowest(values: Scores, seed: int) -> int:
    """Index of the smallest value; the seed chooses among equals."""
    equal = smallest(values)
    count = len(equal)
    return int(equal[seed % count if count > 1 else 0])


def in_turn(values: Scores, slots: Slots, view: FleetView, seed: int) -> tuple[int, bool]:
    """Index of the smallest value, and whether it is the only one; equals take turns."""
    equal = smallest(values)
    if len(equal) == 1:
        return int(equal[0]), True
    return int(equal[lowest(view.last_pick[slots[equal]], seed)]), False
