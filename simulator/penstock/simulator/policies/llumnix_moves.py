"""Llumnix's rescheduling (OSDI 2024): requests that run move whole, with their KV, from a full worker to a free one.

A worker's freeness is how many steps its free blocks last, one block a running request each, once the first of its
waiting requests has its own. Where that is below a threshold the shortest running request goes to the freest worker;
the fullest worker is paired with the freest one, the next with the next. From its code (AlibabaPAI/llumnix @24220fb8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Holder", "Move", "Running", "plan_moves"]


@dataclass(frozen=True, slots=True)
class Running:
    """A request that gives output."""

    id: str
    blocks: int


@dataclass(frozen=True, slots=True)
class Holder:
    """One worker as the rescheduler sees it."""

    free: int
    """Blocks that nobody uses, nor will those on their way to it."""
    batch: int
    waits: int
    """Blocks that its first waiting request needs; 0: nobody waits."""
    shortest: Running | None
    """That may move."""


@dataclass(frozen=True, slots=True)
class Move:
    """One request, and the workers it goes from and to by their place."""

    id: str
    source: int
    target: int


def freeness(one: Holder) -> float:
    """Steps that its free blocks last."""
    return (one.free - one.waits) / max(1, one.batch + (one.waits > 0))


def plan_moves(holders: Sequence[Holder], least_steps: float) -> tuple[Move, ...]:
    """At most one request from each worker with fewer steps than these, each to a worker of its own that has more,
    where nobody waits, and where it has room without leaving fewer."""
    order = sorted(range(len(holders)), key=lambda number: (freeness(holders[number]), number))
    full = [number for number in order if freeness(holders[number]) < least_steps]
    spare = [n for n in reversed(order) if freeness(holders[n]) >= least_steps and not holders[n].waits]
    moves = []
    for source, target in zip(full, spare, strict=False):
        going, to = holders[source].shortest, holders[target]
        if going is not None and to.free - going.blocks >= least_steps * (to.batch + 1):
            moves.append(Move(going.id, source, target))
    return tuple(moves)
