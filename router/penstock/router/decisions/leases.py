"""Leases: picks whose request is carried by somebody else, until that somebody says how it ended.

The gateway knows when a request is over because the bytes pass through it. Behind `Pick` they do not: the caller tells
us, or never does, because it crashed. So each pick is a lease with a time to live. A lease drives the same life of a
request as the gateway does; ending it sends the life what happened, losing it closes the life, and either way the
reservation is given back there.

Times are seconds on the caller's clock; lease ids are the caller's too, because this module draws no random numbers.
"""

import heapq
from dataclasses import dataclass, replace
from enum import Enum

from penstock.core.fleet import Failure, Fleet, Pick, Rejection, Request, Reservation
from penstock.router.decisions import (
    Answered,
    Attempt,
    Ended,
    Event,
    Failed,
    Life,
    Policy,
    Prefill,
    Prefilled,
    Refuse,
    RetryLimits,
    SplitLimits,
    live,
)

_ONE_ATTEMPT = RetryLimits(attempts=1)
"""The caller sends the request itself and asks for a new pick when that fails."""
_OK = 200
_SLACK = 64


class Ending(Enum):
    """How a leased request ended, apart from failures of the worker."""

    COMPLETED = "Completed"
    CANCELLED = "Cancelled"
    CUT = "Cut"
    """The response broke after its first byte."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One pick that is held for a caller."""

    id: str
    pick: Pick
    request: Request
    expires_at: float
    life: Life
    at_first_leg: bool = False
    """Whether the life waits to hear of a prefill leg."""
    reservation: Reservation | None = None
    """The place on the worker that runs the prompt, or on the one that answers once the prompt has run."""
    apart: bool = False
    """Whether a pair was picked."""
    elsewhere: bool = False
    """Whether the life went on at another worker than the caller's."""

    @property
    def prefill(self) -> int | None:
        """Slot that runs the prompt for the worker that answers; None where that one had better do both."""
        return self.pick.prefill if self.at_first_leg else None


class Leases:
    """All leases of a router process. One thread owns it, the one that owns the fleet."""

    def __init__(self, fleet: Fleet) -> None:
        """No leases yet."""
        self._fleet = fleet
        self._held: dict[str, Lease] = {}
        self._by_expiry: list[tuple[float, str]] = []

    def __len__(self) -> int:
        """Leases held now."""
        return len(self._held)

    def grant(
        self,
        lease_id: str,
        request: Request,
        policy: Policy,
        now: float,
        seed: int,
        ttl: float,
        excluded: frozenset[int] = frozenset(),
        split: SplitLimits | None = None,
    ) -> Lease | Rejection:
        """Pick a worker and hold a place on it for `ttl` seconds, or say why there is none.

        With `split` the pick may be a pair; then a place is held on both workers. Which of the legs runs when is the
        sidecar's business in front of the decode worker; the life stands at its first leg until the caller says how
        the whole ended.
        """
        life = live(request, self._fleet, policy, _ONE_ATTEMPT, now, seed, split, excluded)
        action = next(life)
        if isinstance(action, Refuse):
            life.close()
            return action.rejection
        assert isinstance(action, Attempt | Prefill), f"a life begins with a leg or a refusal, not {action}"
        apart = isinstance(action, Prefill)
        lease = Lease(lease_id, action.pick, request, now + ttl, life, apart, action.reservation, apart)
        self._held[lease_id] = lease
        heapq.heappush(self._by_expiry, (lease.expires_at, lease_id))
        return lease

    def find(self, lease_id: str) -> Lease | None:
        """The lease, `None` when it is not held."""
        return self._held.get(lease_id)

    def prefilled(self, lease_id: str, now: float) -> Lease | None:
        """The request's prompt has run: of a pair the prefill worker's place is free, and nobody waits behind it.

        The lease goes on; returns it, `None` when it is not held.
        """
        lease = self._held.get(lease_id)
        if lease is None:
            return None
        if lease.at_first_leg:
            lease = self._held[lease_id] = _past_first_leg(lease, now)
        if lease.reservation is not None:
            self._fleet.prefilled(lease.reservation)
        return lease

    def end(self, lease_id: str, ending: Ending | Failure, now: float) -> Lease | None:
        """Free what a lease holds, and judge its worker by how the request ended; `None` when it is not held."""
        lease = self._held.pop(lease_id, None)
        if lease is None:
            return None
        try:
            _tell(lease, ending, now)
        except StopIteration:
            pass
        finally:
            lease.life.close()
        self._tidy()
        return lease

    def withdraw(self, lease_id: str) -> bool:
        """Give a lease back that never reached its caller; False when it is not held."""
        lease = self._held.pop(lease_id, None)
        if lease is None:
            return False
        lease.life.close()
        self._tidy()
        return True

    def expire(self, now: float) -> list[Lease]:
        """Give up leases whose time is over; returns them. Says nothing about their workers."""
        lost = []
        while self._by_expiry and self._by_expiry[0][0] <= now:
            _, lease_id = heapq.heappop(self._by_expiry)
            lease = self._held.pop(lease_id, None)
            if lease is not None:
                lease.life.close()
                lost.append(lease)
        return lost

    def clear(self) -> None:
        """Give everything back: the process ends."""
        for lease in self._held.values():
            lease.life.close()
        self._held.clear()
        self._by_expiry.clear()

    def _tidy(self) -> None:
        """Forget the expiry of ended leases once they are the larger part."""
        if len(self._by_expiry) > 2 * len(self._held) + _SLACK:
            self._by_expiry = [(lease.expires_at, lease.id) for lease in self._held.values()]
            heapq.heapify(self._by_expiry)


def _past_first_leg(lease: Lease, now: float) -> Lease:
    """The lease with its life at the worker that answers.

    Nothing is known of the leg by itself: it blames nobody, and leaves nothing for a second one. Where the decode
    worker is on its way out the life goes on elsewhere: what happens on the caller's is no news of the one picked
    instead.
    """
    try:
        action = lease.life.send(Prefilled(now, _OK, params=None))
    except StopIteration:
        return replace(lease, at_first_leg=False, reservation=None, elsewhere=True)
    if not isinstance(action, Attempt):
        return replace(lease, at_first_leg=False, reservation=None, elsewhere=True)
    elsewhere = action.pick is not lease.pick
    return replace(lease, at_first_leg=False, reservation=action.reservation, elsewhere=elsewhere)


def _tell(lease: Lease, ending: Ending | Failure, now: float) -> None:
    """Send a life what happened; `StopIteration` when that ends it."""
    events = _events(ending, now)
    if lease.at_first_leg and events:
        lease = _past_first_leg(lease, now)
    if lease.elsewhere:
        return
    for event in events:
        lease.life.send(event)


def slots_named(fleet: Fleet, names: tuple[str, ...]) -> frozenset[int]:
    """Slots of the workers of these names; names that are not in the fleet are passed over."""
    return frozenset(slot for name in names if (slot := fleet.slot_of(name)) is not None)


def _events(ending: Ending | Failure, now: float) -> tuple[Event, ...]:
    """What happened, as the life is told it."""
    if isinstance(ending, Failure):
        return (Failed(now, ending),)
    if ending is Ending.COMPLETED:
        return (Answered(now, _OK), Ended(now))
    if ending is Ending.CUT:
        return (Answered(now, _OK), Failed(now, Failure.RESET))
    return ()
