"""The fleet as columns: one slot per worker, one preallocated array per fact.

A policy that loops over worker objects costs about 120 us at 1,024 workers; over columns 6 us. So a worker
is a row number (a *slot*), and what policies compare are arrays. Slots are reused; the `generation` of a
slot grows with each new worker in it, so that a late release cannot touch the newcomer.

Two kinds of change are kept apart. *Membership* (who may be picked at all) changes seldom, moves `epoch`
on, and invalidates the cached candidate lists. *Load* (reservations, samples) changes with every request
and is written in place: a view shows it live, because a view is not a copy. One thread owns a fleet, which
is what makes pick-then-reserve atomic.
"""

import math
from dataclasses import replace
from hashlib import blake2b
from heapq import heappop, heappush
from typing import cast

import numpy as np
from numpy.typing import NDArray
from penstock.core.fleet.layout import LAYOUT, Breaker
from penstock.core.fleet.picks import Reservation
from penstock.core.fleet.prefixes import PrefixIndex
from penstock.core.fleet.requests import Request
from penstock.core.fleet.stalls import NO_STALLS, stalls_each_pass
from penstock.core.fleet.view import FleetView
from penstock.core.fleet.workers import Worker

_SPEED = ("prefill_ms", "decode_ms", "experts_ms", "transfer_ms", "price_per_hour", "kv_capacity_tokens")
"""What may be learned of a worker while it serves."""


class Fleet:
    """Workers as columns, with the reservations that rest on them."""

    def __init__(self, capacity: int = 64, max_in_flight: int = 1024) -> None:
        """Make an empty fleet with room for `capacity` workers before it first doubles.

        `max_in_flight` bounds the requests held on one worker: the engine's own queue must not become
        the place where an overload hides.
        """
        if capacity < 1:
            raise ValueError(f"a fleet needs room for at least one worker, got capacity {capacity}")
        self._columns: dict[str, NDArray[np.generic]] = {
            name: np.full((capacity, *shape), empty, dtype=dtype) for name, (dtype, empty, shape) in LAYOUT.items()
        }
        self.max_in_flight = max_in_flight
        self.profiled = False
        self.sampled = False
        self.samples = 0
        self._bind()
        self._workers: list[Worker | None] = [None] * capacity
        # Lowest slot last, so that `pop` hands out low slots first and columns stay dense.
        self._free = list(range(capacity - 1, -1, -1))
        self._slots: dict[str, int] = {}
        self._models: dict[str, int] = {}
        self._accelerators: dict[str, int] = {}
        self._domains: dict[str, int] = {}
        self._ledger: dict[int, Reservation] = {}
        # Ids of reservations whose prompt is still to be computed.
        self._prefilling: set[int] = set()
        # A heap of (time, id, reservation).
        self._prefilled_by: list[tuple[float, int, Reservation]] = []
        self._indexes: dict[str, tuple[PrefixIndex, int]] = {}
        # Slot -> reservation of the one request that tries a half-open worker.
        self._probes: dict[int, int] = {}
        self._next_reservation = 1
        self._picks = 0
        self._tokens_ever = 0
        self._epoch = 0
        self._view: FleetView | None = None
        self._next_retrial = math.inf
        # Slots with failures, or a breaker that is not closed: nearly always empty, and asked at every answer.
        self._suspects: set[int] = set()

    def _bind(self) -> None:
        """Name the columns as attributes: attribute access is what the hot path pays for."""
        for name, column in self._columns.items():
            setattr(self, name, column)
        # The same memory once more: reading and writing one element costs a third through a memoryview.
        self._generation = self.generation.data
        self._in_flight = self.in_flight.data
        self._outstanding = self.outstanding_tokens.data
        self._last_pick = self.last_pick.data
        self._pending = cast("memoryview[float]", self.pending.reshape(-1).data)
        self._context = self.context_tokens.data
        self._stalls = cast("memoryview[float]", self.stalls.reshape(-1).data)
        self._prefill_ms = cast("memoryview[float]", self.prefill_ms.reshape(-1).data)
        self._decode_ms = cast("memoryview[float]", self.decode_ms.reshape(-1).data)

    # Declared for readers and for mypy; `_bind` sets them. Shapes are (capacity,) unless said.
    used: NDArray[np.bool_]
    ready: NDArray[np.bool_]
    withdrawn: NDArray[np.bool_]
    breaker: NDArray[np.int8]
    generation: NDArray[np.int64]
    model: NDArray[np.int32]
    role: NDArray[np.int8]
    accelerator: NDArray[np.int32]
    domain: NDArray[np.int32]
    in_flight: NDArray[np.int64]
    outstanding_tokens: NDArray[np.int64]
    last_pick: NDArray[np.int64]
    foreign_requests: NDArray[np.float64]
    kv_usage: NDArray[np.float64]
    sampled_at: NDArray[np.float64]
    failures: NDArray[np.int32]
    retrial_at: NDArray[np.float64]
    prefill_ms: NDArray[np.float64]  # (capacity, 3)
    kv_capacity: NDArray[np.float64]
    decode_ms: NDArray[np.float64]  # (capacity, 3)
    experts_ms: NDArray[np.float64]  # (capacity, 2)
    transfer_ms: NDArray[np.float64]
    price: NDArray[np.float64]
    pending: NDArray[np.float64]  # (capacity, 3)
    context_tokens: NDArray[np.int64]
    stalls: NDArray[np.float64]  # (capacity, 2)
    name_hash: NDArray[np.uint64]

    # ---- membership -------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Grows with every change of membership."""
        return self._epoch

    @property
    def capacity(self) -> int:
        """Slots allocated now, used or not."""
        return len(self._workers)

    def __len__(self) -> int:
        """Workers in the fleet, withdrawn ones included."""
        return len(self._slots)

    def add(self, worker: Worker) -> int:
        """Give a worker a slot; not ready until `set_ready`. `ValueError` when its name is taken."""
        if worker.name in self._slots:
            raise ValueError(f"worker {worker.name!r} is already in the fleet; remove it before adding it again")
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._slots[worker.name] = slot
        self._workers[slot] = worker
        self._clear(slot)
        self.used[slot] = True
        self.generation[slot] += 1
        self.model[slot] = self._models.setdefault(worker.model, len(self._models))
        self.role[slot] = worker.role
        self.accelerator[slot] = self._accelerators.setdefault(worker.accelerator, len(self._accelerators))
        self.domain[slot] = self._domains.setdefault(worker.domain, len(self._domains))
        self._describe(slot, worker)
        self._moved()
        return slot

    def describe(self, slot: int, worker: Worker) -> None:
        """Learn anew how fast a worker is and what it costs; whatever it has goes on.

        `ValueError` for a worker that differs in more than that: such a one has to be removed and added.
        """
        before = self.worker(slot)
        if replace(before, **{name: getattr(worker, name) for name in _SPEED}) != worker:
            raise ValueError(f"worker {worker.name!r} differs from {before.name!r} in more than its speed and price")
        self._workers[slot] = worker
        for name in ("prefill_ms", "decode_ms", "transfer_ms", "price"):  # KV capacity is learned from samples too.
            self._columns[name][slot] = LAYOUT[name][1]
        self._describe(slot, worker)
        self._moved()

    def _describe(self, slot: int, worker: Worker) -> None:
        """Write down what is known of a worker's speed and price; the rest stays unknown."""
        self.profiled = self.profiled or worker.prefill_ms is not None
        self.experts_ms[slot] = worker.experts_ms
        self.name_hash[slot] = int.from_bytes(blake2b(worker.name.encode(), digest_size=8).digest(), "big")
        for column, known in (
            (self.prefill_ms, worker.prefill_ms),
            (self.decode_ms, worker.decode_ms),
            (self.kv_capacity, worker.kv_capacity_tokens),
            (self.transfer_ms, worker.transfer_ms),
            (self.price, worker.price_per_hour),
        ):
            if known is not None:
                column[slot] = known

    def remove(self, slot: int) -> Worker:
        """Take a worker out for good; its reservations are void and its slot may be given away."""
        worker = self.worker(slot)
        del self._slots[worker.name]
        self._workers[slot] = None
        self._probes.pop(slot, None)
        self._clear(slot)
        # A reservation of the old generation must not be found again by id either.
        self._ledger = {i: r for i, r in self._ledger.items() if r.slot != slot}
        self._prefilling = {i for i in self._prefilling if i in self._ledger}
        self._free.append(slot)
        self._moved()
        return worker

    def set_ready(self, slot: int, ready: bool) -> None:
        """Say whether the worker passes its readiness probe. Turning ready forgives past failures."""
        if bool(self.ready[slot]) == ready:
            return
        self.ready[slot] = ready
        if ready:
            self._close(slot)
        self._moved()

    def withdraw(self, slot: int) -> None:
        """No new picks for this worker, ever; what it already has goes on."""
        if not self.withdrawn[slot]:
            self.withdrawn[slot] = True
            self._moved()

    def slot_of(self, name: str) -> int | None:
        """Slot of the worker of that name, `None` when it is not here."""
        return self._slots.get(name)

    def worker(self, slot: int) -> Worker:
        """The worker in a slot; `KeyError` when the slot is empty."""
        worker = self._workers[slot] if 0 <= slot < len(self._workers) else None
        if worker is None:
            raise KeyError(f"slot {slot} holds no worker")
        return worker

    def workers(self) -> dict[str, int]:
        """Slots by worker name: a copy."""
        return dict(self._slots)

    def view(self) -> FleetView:
        """What policies read. The same object until membership changes."""
        if self._view is None:
            self._view = FleetView(self)
        return self._view

    # ---- load ------------------------------------------------------------------------------

    def reserve(self, slot: int, prompt_tokens: int, max_tokens: int, cached_tokens: int = 0) -> Reservation:
        """Hold a place and its tokens on a worker, to be released exactly once.

        `cached_tokens` of the prompt are expected in the worker's cache: they cost no prefill. A worker that gets
        the whole prompt's KV from another one is reserved with all of them cached.
        """
        if not 0 <= slot < len(self._workers) or self._workers[slot] is None:
            raise KeyError(f"slot {slot} holds no worker to reserve on")
        number, tokens = self._next_reservation, prompt_tokens + max_tokens
        generation, stalls = self._generation[slot], NO_STALLS
        if cached_tokens < prompt_tokens:
            stalls = self._stalls_each_pass(slot, prompt_tokens, cached_tokens, max_tokens)
        reservation = Reservation(number, slot, generation, prompt_tokens, max_tokens, cached_tokens, stalls)
        self._next_reservation = number + 1
        self._picks += 1
        self._ledger[number] = reservation
        if cached_tokens < prompt_tokens:
            self._prefilling.add(number)
            self._queue(reservation, 1.0)
        self._in_flight[slot] += 1
        self._context[slot] += reservation.context_tokens
        self._outstanding[slot] += tokens
        self._last_pick[slot] = self._picks
        self._tokens_ever += tokens
        if slot in self._suspects and self.breaker[slot] == Breaker.HALF_OPEN:
            self._probes[slot] = reservation.id
            self._set_breaker(slot, Breaker.PROBING)
        return reservation

    def release(self, reservation: Reservation) -> bool:
        """Give a reservation back. False when it was given back already or its worker is gone."""
        if self._ledger.pop(reservation.id, None) is None:
            return False
        slot = reservation.slot
        if reservation.id in self._prefilling:
            self.prefilled(reservation)
        if reservation.stalls is not NO_STALLS:
            stall, square = reservation.stalls
            self._stalls[2 * slot] -= stall
            # Squares of prompts that take minutes are beyond exact sums; a root is taken of what is left.
            self._stalls[2 * slot + 1] = max(0.0, self._stalls[2 * slot + 1] - square)
        self._in_flight[slot] -= 1
        self._context[slot] -= reservation.context_tokens
        self._outstanding[slot] -= reservation.prompt_tokens + reservation.max_tokens
        # A probe that ended without a verdict (the client left) leaves the question open for the next one.
        if self._probes and self._probes.get(slot) == reservation.id:
            del self._probes[slot]
            if self.breaker[slot] == Breaker.PROBING:
                self._set_breaker(slot, Breaker.HALF_OPEN)
        return True

    def prefilled(self, reservation: Reservation) -> bool:
        """The request's prompt is computed (its first token came): it waits in no prefill queue any longer."""
        if reservation.id not in self._prefilling:
            return False
        self._prefilling.remove(reservation.id)
        self._queue(reservation, -1.0)
        return True

    def prefilled_by(self, reservation: Reservation, at: float) -> None:
        """Take the prompt as computed at this time (seconds, the caller's clock) if nobody says so before."""
        heappush(self._prefilled_by, (at, reservation.id, reservation))

    def _queue(self, reservation: Reservation, sign: float) -> None:
        pending, at = self._pending, 3 * reservation.slot
        requests, tokens, work = reservation.pending
        pending[at] += sign * requests
        pending[at + 1] += sign * tokens
        pending[at + 2] += sign * work

    def _stalls_each_pass(self, slot: int, prompt: int, cached: int, output: int) -> tuple[float, float]:
        """What prompts like this one bring to each pass of this worker, added to what the others there bring."""
        at, prefill = 3 * slot, self._prefill_ms
        brought = stalls_each_pass(
            prefill[at], prefill[at + 1], prefill[at + 2], self._decode_ms[at], prompt, cached, output
        )
        self._stalls[2 * slot] += brought[0]
        self._stalls[2 * slot + 1] += brought[1]
        return brought

    def index_by(self, model: str, index: PrefixIndex, block_tokens: int) -> None:
        """Ask this index who has cached how much of a prompt for `model`; its blocks have `block_tokens` tokens."""
        self._indexes[model] = (index, block_tokens)

    def cached_tokens(self, request: Request) -> NDArray[np.float64] | None:
        """Prompt tokens each slot has cached, shape (capacity,); `None` when nobody can say.

        Whole blocks, and never the last token of the prompt: an engine computes at least that one.
        """
        found = self._indexes.get(request.model)
        if found is None or not request.block_hashes:
            return None
        index, block_tokens = found
        usable = max(0, request.prompt_tokens - 1) // block_tokens
        hashes = request.block_hashes
        if len(hashes) > usable:
            hashes = hashes[:usable]
        matched = index.longest_prefix(hashes, len(self._workers))
        return cast("NDArray[np.float64]", matched * float(block_tokens))

    def holds(self, reservation: Reservation) -> bool:
        """Whether a reservation still counts: not given back, and its worker still in the fleet."""
        return reservation.id in self._ledger

    @property
    def reservations(self) -> int:
        """Reservations held now, over all workers."""
        return len(self._ledger)

    @property
    def mean_request_tokens(self) -> float:
        """Tokens of an average reservation so far; 1 before the first."""
        return self._tokens_ever / self._picks if self._picks else 1.0

    def sample(
        self, slot: int, foreign_requests: float, kv_usage: float, at: float, kv_capacity: float | None = None
    ) -> None:
        """Record what a worker reports: requests that are not ours, share of its KV cache in use, when.

        `kv_capacity` is the tokens its cache holds; `None` or 0 leaves what was known.
        """
        self.sampled = True
        self.samples += 1
        self.foreign_requests[slot] = max(0.0, foreign_requests)
        self.kv_usage[slot] = kv_usage
        self.sampled_at[slot] = at
        if kv_capacity:
            self.kv_capacity[slot] = kv_capacity

    # ---- trust -----------------------------------------------------------------------------

    def succeeded(self, slot: int) -> None:
        """The worker answered: forget its failures, close its breaker."""
        if slot in self._suspects:
            self._close(slot)
            self._moved()

    def failed(self, slot: int) -> int:
        """Count one more failure in a row; returns how many there are now."""
        self._suspects.add(slot)
        self.failures[slot] += 1
        return int(self.failures[slot])

    def ejected(self, slot: int) -> bool:
        """Whether the worker is kept out of picks now."""
        return bool(self.breaker[slot] == Breaker.OPEN)

    def eject(self, slot: int, until: float) -> None:
        """Keep a worker out of picks until `until` (seconds, the caller's clock)."""
        self.retrial_at[slot] = until
        self._next_retrial = min(self._next_retrial, until)
        self._set_breaker(slot, Breaker.OPEN)

    def retry_due(self, now: float) -> None:
        """Let ejected workers whose time is up be tried by one request each. Cheap when none is due.

        Prompts that are to be taken as computed by now (`prefilled_by`) leave their queues too.
        """
        while self._prefilled_by and self._prefilled_by[0][0] <= now:
            self.prefilled(heappop(self._prefilled_by)[2])
        if now < self._next_retrial:
            return
        is_open = self.used & (self.breaker == Breaker.OPEN)
        for slot in np.flatnonzero(is_open & (self.retrial_at <= now)):
            self._set_breaker(int(slot), Breaker.HALF_OPEN)
        still = self.retrial_at[self.used & (self.breaker == Breaker.OPEN)]
        self._next_retrial = float(still.min()) if still.size else math.inf

    # ---- inside ----------------------------------------------------------------------------

    def _close(self, slot: int) -> None:
        self._suspects.discard(slot)
        self.failures[slot] = 0
        self.breaker[slot] = Breaker.CLOSED

    def _set_breaker(self, slot: int, breaker: Breaker) -> None:
        self._suspects.add(slot)
        self.breaker[slot] = breaker
        self._moved()

    def _clear(self, slot: int) -> None:
        self._suspects.discard(slot)
        for name, (_, empty, _) in LAYOUT.items():
            if name != "generation":
                self._columns[name][slot] = empty

    def _moved(self) -> None:
        self._epoch += 1
        self._view = None

    def _grow(self) -> None:
        """Double every column; slots keep their numbers."""
        old = self.capacity
        for name, (dtype, empty, shape) in LAYOUT.items():
            wider: NDArray[np.generic] = np.full((old * 2, *shape), empty, dtype=dtype)
            wider[:old] = self._columns[name]
            self._columns[name] = wider
        self._bind()
        self._workers.extend([None] * old)
        self._free.extend(range(old * 2 - 1, old - 1, -1))
        self._moved()

    def _ids(self, column: str) -> dict[str, int]:
        return {"model": self._models, "accelerator": self._accelerators, "domain": self._domains}[column]
