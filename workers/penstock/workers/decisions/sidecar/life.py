"""The life of a request in a decode pod: the router's own, over a fleet of this engine and the workers given to it.

Whoever sent the request has picked already. So the "policy" here picks what was given, and everything after the pick
(the order of the legs, which failure costs what, the lease, what is never sent twice) is the very generator that the
gateway drives.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.fleet import Fleet, FleetView, Pick, PickReason, Rejection, RejectReason, Request, Role, Worker
from penstock.router.decisions.leg_forms import can_split
from penstock.router.decisions.life import live
from penstock.router.decisions.retries import RetryLimits
from penstock.router.decisions.split import SplitLimits
from penstock.router.decisions.steps import Life
from penstock.workers.decisions.sidecar.prefillers import Address

SPLITTABLE = frozenset({"/v1/completions", "/v1/chat/completions"})
"""Paths whose requests can have legs."""

_LIMITS = RetryLimits(attempts=2, continuations=0, eject_after=sys.maxsize)
"""There is one engine: it is asked once more (without a leg's blocks, where those were what it choked on), never
ejected, and a broken stream is the sender's to ask again."""
_MODEL = "engine"
"""Every worker of a sidecar's fleet serves what its engine serves; the engine says so where a request wants another."""
_ENGINE_SLOT = 0
_MOST_IN_FLIGHT = sys.maxsize
"""How many requests there may be at once is the door's to bound."""


@dataclass(frozen=True, slots=True)
class Given:
    """The policy of a request that was picked elsewhere: this pod's engine, and the first prefill worker named."""

    name: str = "Given"

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """The engine, unless it has just failed this request."""
        engines = view.with_room(request.model, Role.DECODE)
        if not engines.size:
            return Rejection(RejectReason.NO_WORKERS, "the engine of this pod does not answer", retry_after=1.0)
        prefills = view.with_room(request.model, Role.PREFILL)
        return Pick(
            decode=_ENGINE_SLOT,
            reason=PickReason.ONLY_CANDIDATE,
            policy=self.name,
            candidates=engines,
            scores=view.outstanding_tokens[engines],
            unit="tokens",
            prefill=int(prefills.min()) if prefills.size else None,
        )


_GIVEN = Given()


def can_have_legs(path: str, body: bytes) -> bool:
    """Whether a request's prompt can be computed on another worker than answers it."""
    return path in SPLITTABLE and can_split(body)


def engine_worker(host: str, port: int) -> Worker:
    """This pod's engine."""
    return Worker(name="engine", host=host, port=port, model=_MODEL, role=Role.DECODE)


def prefill_workers(addresses: Sequence[Address]) -> tuple[Worker, ...]:
    """The prefill workers a request may use, by address."""
    return tuple(
        Worker(name=f"{host}:{port}", host=host, port=port, model=_MODEL, role=Role.PREFILL) for host, port in addresses
    )


def fleet_of(engine: Worker, prefills: Sequence[Worker] = ()) -> Fleet:
    """The fleet of a request: the engine, and the prefill workers it was given."""
    fleet = Fleet(capacity=1 + len(prefills), max_in_flight=_MOST_IN_FLIGHT)
    for worker in (engine, *prefills):
        fleet.set_ready(fleet.add(worker), True)
    return fleet


def given_life(request_id: str, fleet: Fleet, *, now: float, until: float, lease: float, seed: int) -> Life:
    """The life of one request: legs where its fleet has prefill workers, else the engine alone.

    `until` is when it is tried again no more; `lease` how long a prefill worker holds its blocks. Both in seconds,
    `now` and `until` on the caller's clock.
    """
    # Whether a split pays was the picker's to weigh; here it is only done.
    split = SplitLimits(min_tokens=0, busy_tokens=sys.maxsize, attempts=2, lease=lease) if len(fleet) > 1 else None
    request = Request(id=request_id, model=_MODEL, prompt_tokens=1, max_tokens=1, deadline=until)
    return live(request, fleet, _GIVEN, _LIMITS, now, seed, split)
