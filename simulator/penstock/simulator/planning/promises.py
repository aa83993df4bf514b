"""About what a plan will hold, from what its kinds of workers hold alone: the order in which plans are looked at.

With workers of their own for each phase, a plan holds what the weaker phase does: its prefill workers behind one queue
(`queues`), its decode workers each by itself, as a batch has no queue. Workers that do both are added up. Nothing of
this is a bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from penstock.core.fleet import Role
from penstock.simulator.planning.candidates import Cell, Plan
from penstock.simulator.planning.goal import Space
from penstock.simulator.planning.phases import Mapper
from penstock.simulator.planning.queues import Workers, prefill_rate

__all__ = ["promises"]


def promises(space: Space, plans: Sequence[Plan], rates: Mapping[Cell, float], mapper: Mapper = map) -> list[float]:
    """About what each plan holds, in requests a second."""
    queues = list(dict.fromkeys(workers for plan in plans if (workers := _of(plan, Role.PREFILL))))
    prefill = dict(zip(queues, mapper(partial(prefill_rate, space), queues), strict=True))
    return [_promise(plan, rates, prefill) for plan in plans]


def _promise(plan: Plan, rates: Mapping[Cell, float], prefill: Mapping[Workers, float]) -> float:
    phases = [
        sum(count * rates.get(cell, 0.0) for cell, count in workers)
        for role in (Role.PREFILL_DECODE, Role.DECODE)
        if (workers := _of(plan, role))
    ]
    queue = _of(plan, Role.PREFILL)
    return min([*phases, prefill[queue]] if queue else phases)


def _of(plan: Plan, role: Role) -> Workers:
    return tuple((pool.cell, pool.replicas) for pool in plan.pools if pool.cell.role is role)
