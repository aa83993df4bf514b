"""The first leg of a pair: prompt to a prefill worker, and what it holds for the second.

A leg that fails costs nothing but time: the next prefill worker is asked, and after a few of them the decode worker
does the prefill itself. What must never happen (a second leg after the lease, with another prompt, to the worker of
the first, or twice with the same blocks) is decided here and tried in tests, since an engine answers each of these
with wrong text or with its death.
"""

from collections.abc import Generator

from penstock.core.fleet import Failure, Fleet, Pick, Request, Reservation
from penstock.router.decisions.retries import RetryLimits, blames_worker, ejection_after
from penstock.router.decisions.split import SplitLimits, least_loaded_prefill
from penstock.router.decisions.steps import Action, Event, Failed, Prefill, Prefilled, Transfer

_STALE = Failure.STALE_CONNECTION
_UNDELIVERED = frozenset({Failure.CONNECT_REFUSED, Failure.CONNECT_TIMEOUT, Failure.UNAVAILABLE})
"""Failures of a second leg after which the blocks are surely still unclaimed."""


def prefill_leg(
    request: Request,
    fleet: Fleet,
    pick: Pick,
    barred: frozenset[int],
    limits: RetryLimits,
    split: SplitLimits,
    now: float,
    seed: int,
) -> Generator[Action, Event, tuple[Transfer | None, float]]:
    """Run the first leg of a pick, elsewhere in the domain where it fails; returns what is held, and the time.

    Never at slots in `barred`.
    """
    slot, excluded = pick.prefill, barred | {pick.decode}
    for attempt in range(split.attempts):
        if slot is None or (request.deadline is not None and now >= request.deadline):
            break
        reservation = fleet.reserve(slot, request.prompt_tokens, 1, expected_hit(pick, slot))
        domain = int(fleet.domain[slot])
        worker = fleet.worker(slot)
        try:
            event = yield Prefill(worker, pick, reservation)
            if isinstance(event, Failed) and event.failure is _STALE:
                event = yield Prefill(worker, pick, reservation, fresh=True)
            now = event.now
            if isinstance(event, Prefilled):
                if fleet.holds(reservation):
                    fleet.succeeded(slot)
                if event.params is not None:
                    return Transfer(event.params, domain, now + split.usable_lease, worker.name), now
                if event.status < 500:
                    # Nothing is held (the model ended at once), or the request is wrong: the decode worker says so.
                    return None, now
            elif isinstance(event, Failed):
                count_failure(fleet, reservation, event, limits, seed + attempt)
        finally:
            fleet.release(reservation)
        excluded |= {slot}
        slot = least_loaded_prefill(request, fleet.view().without(excluded), pick.decode, now)
    return None, now


def expected_hit(pick: Pick, slot: int) -> int:
    """Prompt tokens the pick found cached in this slot; 0 for another worker than the one it meant for the prompt."""
    meant = pick.decode if pick.prefill is None else pick.prefill
    return (pick.expected_hit_tokens or 0) if slot == meant else 0


def still_good(transfer: Transfer | None, fleet: Fleet, decode: int, now: float) -> Transfer | None:
    """The transfer, if the worker in slot `decode` may pull it now."""
    if transfer is None or now >= transfer.usable_until or int(fleet.domain[decode]) != transfer.domain:
        return None
    return None if fleet.worker(decode).name == transfer.prefill else transfer


def unclaimed(transfer: Transfer | None, failure: Failure) -> Transfer | None:
    """What is left of a transfer after a second leg failed: all of it where nobody can have begun to pull."""
    return transfer if failure in _UNDELIVERED else None


def count_failure(fleet: Fleet, reservation: Reservation, event: Failed, limits: RetryLimits, seed: int) -> None:
    """Hold a failure against the worker, unless it is gone, ejected already, or not to blame.

    A crash breaks all of a worker's streams at once; counting each would make one crash look like dozens.
    """
    if not blames_worker(event.failure) or not fleet.holds(reservation) or fleet.ejected(reservation.slot):
        return
    failures = fleet.failed(reservation.slot)
    seconds = ejection_after(event.failure, failures, limits, seed)
    if seconds is not None:
        fleet.eject(reservation.slot, event.now + seconds)
