"""What a policy may read of a fleet."""

import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from penstock.core.fleet.layout import TRUSTED
from penstock.core.fleet.picks import Slots
from penstock.core.fleet.requests import Request
from penstock.core.fleet.signals import UNKNOWN, Signal
from penstock.core.fleet.workers import Role, Worker

if TYPE_CHECKING:
    from penstock.core.fleet.columns import Fleet

T = TypeVar("T", bound=np.generic)

Roles = Role | tuple[Role, ...] | None
"""One role, any of several, or all."""
ANSWERING = (Role.PREFILL_DECODE, Role.DECODE)
"""Roles of workers that can answer a client."""


class FleetView:
    """What a policy may read: live load, and membership as of `epoch`.

    `memo` keeps what a policy computes from membership alone, for as long as that stands (and of the workers' reports,
    where it keeps `samples` beside it).
    The arrays are the fleet's own memory, marked read-only. `stale` turns true with the next change of
    membership; then ask the fleet for a new view (it costs one object).
    """

    __slots__ = (
        "_candidates",
        "_excluded",
        "_fleet",
        "context_tokens",
        "decode_ms",
        "domain",
        "epoch",
        "experts_ms",
        "foreign_requests",
        "in_flight",
        "kv_capacity",
        "kv_usage",
        "last_pick",
        "memo",
        "name_hash",
        "outstanding_tokens",
        "pending",
        "prefill_ms",
        "price",
        "role",
        "sampled_at",
        "stalls",
        "transfer_ms",
    )

    def __init__(self, fleet: "Fleet", excluded: frozenset[int] = frozenset()) -> None:
        """Look at a fleet; made by `Fleet.view` and `without`."""
        self._fleet = fleet
        self._excluded = excluded
        self._candidates: dict[tuple[str, Roles], Slots] = {}
        self.epoch = fleet.epoch
        self.in_flight = _read_only(fleet.in_flight)
        self.outstanding_tokens = _read_only(fleet.outstanding_tokens)
        self.last_pick = _read_only(fleet.last_pick)
        self.foreign_requests = _read_only(fleet.foreign_requests)
        self.kv_usage = _read_only(fleet.kv_usage)
        self.kv_capacity = _read_only(fleet.kv_capacity)
        self.sampled_at = _read_only(fleet.sampled_at)
        self.prefill_ms = _read_only(fleet.prefill_ms)
        self.domain = _read_only(fleet.domain)
        self.role = _read_only(fleet.role)
        self.decode_ms = _read_only(fleet.decode_ms)
        self.experts_ms = _read_only(fleet.experts_ms)
        self.transfer_ms = _read_only(fleet.transfer_ms)
        self.price = _read_only(fleet.price)
        self.pending = _read_only(fleet.pending)
        self.context_tokens = _read_only(fleet.context_tokens)
        self.stalls = _read_only(fleet.stalls)
        self.name_hash = _read_only(fleet.name_hash)
        self.memo: dict[Hashable, Any] = {}

    @property
    def stale(self) -> bool:
        """Whether membership has changed since this view was made."""
        return self.epoch != self._fleet.epoch

    @property
    def mean_request_tokens(self) -> float:
        """Tokens of an average reservation so far."""
        return self._fleet.mean_request_tokens

    @property
    def sampled(self) -> bool:
        """Whether any worker ever reported its own load."""
        return self._fleet.sampled

    @property
    def samples(self) -> int:
        """Grows with every report of a worker's own load."""
        return self._fleet.samples

    @property
    def profiled(self) -> bool:
        """Whether any worker ever came with a latency profile."""
        return self._fleet.profiled

    @property
    def max_in_flight(self) -> int:
        """Requests of ours one worker may have."""
        return self._fleet.max_in_flight

    @property
    def reservations(self) -> int:
        """Reservations held now, over all workers."""
        return self._fleet.reservations

    def cached_tokens(self, request: Request) -> NDArray[np.float64] | None:
        """Prompt tokens each slot has cached (see `Fleet.cached_tokens`)."""
        return self._fleet.cached_tokens(request)

    def without(self, excluded: frozenset[int]) -> "FleetView":
        """The same fleet with some slots never candidates: those that already failed this request."""
        return FleetView(self._fleet, self._excluded | excluded)

    def mask(
        self,
        *,
        model: str | None = None,
        role: Role | None = None,
        accelerator: str | None = None,
        domain: str | None = None,
    ) -> NDArray[np.bool_]:
        """Which slots hold a worker that matches everything given, whether or not it may be picked."""
        fleet = self._fleet
        chosen = fleet.used.copy()
        for column, wanted in (("model", model), ("accelerator", accelerator), ("domain", domain)):
            if wanted is not None:
                chosen &= getattr(fleet, column) == fleet._ids(column).get(wanted, -1)
        if role is not None:
            chosen &= fleet.role == role
        return chosen

    def ready(self, model: str) -> Slots:
        """Slots of the model's ready, unwithdrawn workers, trusted or not."""
        fleet = self._fleet
        return np.flatnonzero(self.mask(model=model) & fleet.ready & ~fleet.withdrawn)

    def candidates(self, model: str, role: Roles = None) -> Slots:
        """Slots that may be picked for a model: ready, not withdrawn, not ejected, not excluded; read-only.

        When every ready worker is ejected they all come back: a router that is wrong about all of them
        (its own network, say) must not turn a doubt into an outage.
        """
        key = (model, role)
        found = self._candidates.get(key)
        if found is None:
            found = self._candidates[key] = self._find(model, role)
        return found

    def with_room(self, model: str, role: Roles = None) -> Slots:
        """Candidates that have fewer requests in flight than a worker may have."""
        candidates = self.candidates(model, role)
        if self._fleet.reservations < self._fleet.max_in_flight:
            return candidates  # fewer in the whole fleet than one worker may have
        room = self.in_flight[candidates] < self._fleet.max_in_flight
        return candidates if room.all() else candidates[room]

    def _find(self, model: str, role: Roles) -> Slots:
        fleet = self._fleet
        willing = self.mask(model=model) & fleet.ready & ~fleet.withdrawn
        if role is not None:
            willing &= np.isin(fleet.role, role)
        if self._excluded:
            willing[list(self._excluded)] = False
        trusted = willing & np.isin(fleet.breaker, TRUSTED)
        return _read_only(np.flatnonzero(trusted if trusted.any() else willing))

    def worker(self, slot: int) -> Worker:
        """The worker in a slot."""
        return self._fleet.worker(slot)

    def foreign(self, slot: int, now: float) -> Signal:
        """Requests at this worker that are not ours, as it last reported."""
        at = float(self.sampled_at[slot])
        if math.isnan(at):
            return UNKNOWN
        return Signal(value=float(self.foreign_requests[slot]), age=max(0.0, now - at), coverage=1.0)


def _read_only(array: NDArray[T]) -> NDArray[T]:
    shown = array.view()
    shown.flags.writeable = False
    return shown
