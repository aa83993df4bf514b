"""A fleet at one moment as plain values, from which a view can be made that a policy cannot tell from the first one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from penstock.core.fleet.columns import Fleet
from penstock.core.fleet.layout import LAYOUT
from penstock.core.fleet.picks import Reservation
from penstock.core.fleet.requests import Request
from penstock.core.fleet.view import FleetView
from penstock.core.fleet.workers import Worker

__all__ = ["FleetPicture", "restore", "take"]


@dataclass(frozen=True, slots=True)
class FleetPicture:
    """Everything about a fleet that a policy may read when it is asked to place one request."""

    capacity: int
    max_in_flight: int
    profiled: bool
    sampled: bool
    picks: int
    tokens_ever: int
    slots: tuple[int, ...]
    """Of the workers, in rising order; what follows goes by them."""
    workers: tuple[Worker, ...]
    columns: Mapping[str, tuple[Any, ...]]
    models: Mapping[str, int]
    accelerators: Mapping[str, int]
    domains: Mapping[str, int]
    excluded: tuple[int, ...] = ()
    cached_blocks: tuple[int, ...] | None = None
    """Blocks of the request's prompt that each worker holds; None where nobody can say."""
    block_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Answered:
    """An index that knows one prompt: how much of it each worker holds, and so of any beginning of it."""

    blocks: NDArray[np.int64]

    def longest_prefix(self, hashes: Sequence[bytes], slots: int) -> NDArray[np.int64]:
        """What the first index said, or would have said of fewer blocks."""
        return np.minimum(self.blocks[:slots], len(hashes))


def take(view: FleetView, request: Request) -> FleetPicture:
    """The fleet behind a view, with what its index says of this request's prompt."""
    fleet = view._fleet
    slots = tuple(int(slot) for slot in np.flatnonzero(fleet.used))
    cached = None
    found = fleet._indexes.get(request.model)
    if found is not None and request.block_hashes:
        blocks = found[0].longest_prefix(request.block_hashes, fleet.capacity)
        cached = tuple(int(blocks[slot]) for slot in slots)
    return FleetPicture(
        fleet.capacity,
        fleet.max_in_flight,
        fleet.profiled,
        fleet.sampled,
        fleet._picks,
        fleet._tokens_ever,
        slots,
        tuple(fleet.worker(slot) for slot in slots),
        {name: tuple(column[list(slots)].tolist()) for name, column in fleet._columns.items()},
        dict(fleet._models),
        dict(fleet._accelerators),
        dict(fleet._domains),
        tuple(sorted(view._excluded)),
        cached,
        0 if found is None else found[1],
    )


def restore(picture: FleetPicture, model: str) -> FleetView:
    """A view of a fleet that was pictured for a request for `model`. Raises ValueError for a picture of another
    layout."""
    if set(picture.columns) != set(LAYOUT):
        odd = sorted(set(picture.columns) ^ set(LAYOUT))
        raise ValueError(f"the picture's columns differ from a fleet's in {', '.join(odd)}; it is of another version")
    fleet = Fleet(picture.capacity, picture.max_in_flight)
    fleet.profiled, fleet.sampled = picture.profiled, picture.sampled
    fleet._picks, fleet._tokens_ever = picture.picks, picture.tokens_ever
    fleet._models, fleet._accelerators = dict(picture.models), dict(picture.accelerators)
    fleet._domains = dict(picture.domains)
    for at, (slot, worker) in enumerate(zip(picture.slots, picture.workers, strict=True)):
        fleet._workers[slot] = worker
        fleet._slots[worker.name] = slot
        for name, column in fleet._columns.items():
            column[slot] = picture.columns[name][at]
    fleet._free = [slot for slot in fleet._free if slot not in set(picture.slots)]
    _fill_ledger(fleet)
    fleet._next_retrial = math.inf
    if picture.block_tokens:
        blocks = np.zeros(fleet.capacity, dtype=np.int64)
        if picture.cached_blocks is not None:
            blocks[list(picture.slots)] = picture.cached_blocks
        fleet.index_by(model, _Answered(blocks), picture.block_tokens)
    view = fleet.view()
    return view.without(frozenset(picture.excluded)) if picture.excluded else view


def _fill_ledger(fleet: Fleet) -> None:
    """As many reservations as are in flight; of more than their number no policy knows."""
    for slot in np.flatnonzero(fleet.used).tolist():
        for _ in range(int(fleet.in_flight[slot])):
            number = len(fleet._ledger) + 1
            fleet._ledger[number] = Reservation(number, slot, int(fleet.generation[slot]), 0, 0)
