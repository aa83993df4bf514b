"""What one worker holds of one phase by itself: DistServe's way of finding good kinds of workers before good plans.

There are far more plans than kinds of workers. So each kind is looked at alone: a prefill worker as a queue of prompts,
first come, first served, judged by TTFT; a decode worker as a batch in balance, judged by TPOT; one that does both is
tried in the twin. What a kind holds per accelerator says which are worth combining, and times the replicas it says
about what a plan will hold, which is the order in which plans are looked at. Nothing is dropped for these figures where
all plans can be tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from penstock.core.fleet import Role
from penstock.simulator.planning.bounds import Bounds, fill_of, kv_tokens, profile_of
from penstock.simulator.planning.candidates import Cell, Plan, PlanPool
from penstock.simulator.planning.goal import Space, rate_at, step_below
from penstock.simulator.planning.trial import climb, try_plan

__all__ = ["BATCH", "Mapper", "batches", "estimate", "phase_rates"]

Array = npt.NDArray[np.float64]
T = TypeVar("T")

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""`map`, or one that does so in several processes: same results in the same order."""
BATCH = 4
"""Tries made at once; the same on every machine, so that the result does not depend on the cores."""

_REQUESTS = 200  # Enough to tell kinds of workers apart.
_POLICY = "LeastLoaded"  # Of one worker; there is nothing to choose.
_CAUTION = 0.7  # The first rate tried, as a share of the bound.


@dataclass(frozen=True, slots=True)
class _Attempt:
    space: Space
    cell: Cell
    floor: int
    ceiling: int


def phase_rates(space: Space, cells: Sequence[Cell], keep: int, mapper: Mapper = map) -> dict[Cell, float]:
    """Requests a second that one worker holds of its phase, for the `keep` best kinds of different size per class and
    role (by what they hold per accelerator)."""
    found: dict[Cell, float] = {}
    kind: Callable[[Cell], tuple[str, Role]] = lambda cell: (cell.accelerator, cell.role)  # noqa: E731
    for _, alike in groupby(sorted(cells, key=kind), key=kind):
        found |= _best_of(space, list(alike), keep, mapper)
    return found


def estimate(plan: Plan, rates: dict[Cell, float]) -> float:
    """About what the plan holds, in requests a second: the weaker of its phases."""
    sums: dict[Role, float] = {}
    for pool in plan.pools:
        sums[pool.cell.role] = sums.get(pool.cell.role, 0.0) + pool.replicas * rates.get(pool.cell, 0.0)
    return min(sums.values())


def batches(items: Sequence[T], size: int = BATCH) -> Iterator[list[T]]:
    """So many at a time, in order."""
    left = iter(items)
    while some := list(islice(left, size)):
        yield some


def _best_of(space: Space, cells: list[Cell], keep: int, mapper: Mapper) -> dict[Cell, float]:
    """The best kinds of one class and role, of each size one: which sizes go together on a node is for plans to say."""
    alone = {Role.PREFILL: _prefill_rate, Role.DECODE: _decode_rate}.get(cells[0].role)
    found: dict[Cell, float] = {}
    size: Callable[[Cell], int] = lambda cell: cell.accelerators  # noqa: E731
    for _, alike in groupby(sorted(cells, key=size), key=size):
        some = list(alike)
        rates = _tried(space, some, mapper) if alone is None else {cell: alone(space, cell) for cell in some}
        best = min(rates, key=lambda cell: (-rates[cell], cell))
        found[best] = rates[best]
    line = sorted(found, key=lambda cell: (-found[cell] / cell.accelerators, cell))[:keep]
    return {cell: found[cell] for cell in line if found[cell] > 0}


def _prefill_rate(space: Space, cell: Cell) -> float:
    """The rate at which prompts, one after the other, have their first token in time."""
    profile, sample, goal = profile_of(space, cell), space.sample, space.objectives
    prompts, times = np.array(sample.prompts, dtype=np.float64), np.array(sample.times)
    chunks = np.ceil(prompts / cell.budget)
    work = profile.prefill_ms(prompts) + profile.prefill[0] * (chunks - 1.0)
    plan = Plan((PlanPool(cell, 1),))
    own = (work / 1e3) + np.array([fill_of(space, plan, prompt) for prompt in sample.prompts])
    need = math.ceil(goal.attainment * len(sample) - 1e-9)

    def holds(step: int) -> bool:
        return bool(np.sort(_waits(times / rate_at(step), work / 1e3) + own)[need - 1] <= goal.ttft_s)

    return _highest(holds, len(sample) / float(work.sum() / 1e3))


def _waits(arrivals: Array, work: Array) -> Array:
    """How long each waits in a queue of one server (Lindley's recursion, as a running maximum)."""
    ahead = np.concatenate(([0.0], np.cumsum(work)[:-1]))
    return np.maximum.accumulate(arrivals - ahead) + ahead - arrivals


def _decode_rate(space: Space, cell: Cell) -> float:
    """The rate at which the batch in balance has steps of just TPOT: sequences in the batch = rate x tokens x step."""
    profile, sample = profile_of(space, cell), space.sample
    steps = max(float(np.mean(sample.outputs)) - 1.0, 1e-9)
    context = float(np.mean(sample.prompts)) + steps / 2.0
    memory = kv_tokens(space, cell)
    rates = [0.0]
    for batch in range(1, min(space.max_num_seqs, max(1, int(memory / context))) + 1):
        step = float(profile.decode_ms(batch, batch * context)) / 1e3
        if step > space.objectives.tpot_s:
            break
        rates.append(batch / (steps * step))
    return max(rates)


def _highest(holds: Callable[[int], bool], most: float) -> float:
    """The highest rate up to `most` of which `holds` says so; 0 for none."""
    low, high = -1, step_below(most) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return rate_at(low) if low >= 0 else 0.0


def _tried(space: Space, cells: list[Cell], mapper: Mapper) -> dict[Cell, float]:
    """What the twin says of kinds that do both; 0 of one that does not beat the best so far, which one run shows."""
    some_of_all = replace(space, sample=space.sample.first(_REQUESTS), policy=_POLICY)
    bounds = Bounds(some_of_all)
    most = {cell: bounds.rate(Plan((PlanPool(cell, 1),))) for cell in cells}
    found = dict.fromkeys(cells, 0.0)
    for some in batches(sorted(cells, key=lambda cell: (-most[cell], cell))):
        best = max(found.values())
        tried = [
            _Attempt(some_of_all, cell, step_below(best), step_below(most[cell])) for cell in some if most[cell] > best
        ]
        found |= zip((one.cell for one in tried), mapper(_attempt, tried), strict=True)
    return found


def _attempt(one: _Attempt) -> float:
    """The rate a kind of worker holds, 0 when it is not above the floor."""
    if one.ceiling <= one.floor:
        return 0.0
    guess = step_below(rate_at(one.ceiling) * _CAUTION) if one.floor < 0 else None
    plan = Plan((PlanPool(one.cell, 1),))
    found = climb(lambda rate: try_plan(one.space, plan, rate), one.floor, one.ceiling, guess)
    return rate_at(found.step) if found.step > one.floor else 0.0
