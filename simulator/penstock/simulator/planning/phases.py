"""What one worker holds of one phase by itself: DistServe's way of finding good kinds of workers before good plans.

There are far more plans than kinds of workers. So each kind is looked at alone: a prefill worker as a queue of prompts,
first come, first served, judged by TTFT; a decode worker as a batch in balance, judged by TPOT; one that does both is
tried in the twin, to a few per cent and as long as it may still be among the best. What a kind holds per accelerator
says which are worth combining, and times the replicas it says about what a plan will hold (`promises`).

A kind that is too slow for the longest requests holds nothing alone, but beside a faster class it takes the others. So
where classes may be mixed, kinds are also looked at with those requests only that they can serve in time (`helpers`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby, islice
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
from penstock.core.fleet import Role
from penstock.simulator.planning.bounds import Bounds, kv_tokens, profile_of
from penstock.simulator.planning.candidates import Cell, Plan, PlanPool
from penstock.simulator.planning.goal import Space, lasting, rate_at, step_below
from penstock.simulator.planning.queues import prefill_rate
from penstock.simulator.planning.trial import climb, judge_plan

__all__ = ["BATCH", "Mapper", "batches", "helpers", "phase_rates", "quick"]

T = TypeVar("T")
Kind = tuple[str, Role]

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""`map`, or one that does so in several processes: same results in the same order."""
BATCH = 4
"""Tries made at once; the same on every machine, so that the result does not depend on the cores."""

_POLICY = "LeastLoaded"  # Of one worker; there is nothing to choose.
_CAUTION = 0.7  # The first rate tried, as a share of the bound.
_WITHIN = 4  # Steps of 1 % to which a kind is told: enough to tell kinds apart.
_FEW = 0.3  # Prompts that a kind must be able to compute in time, to be of any help.
_REQUESTS = 400  # To tell kinds from one another without a run.
_SUREST = 0.999
_LIKELY = 0.6  # Of its bound, what a worker comes to: so long are its runs.


@dataclass(frozen=True, slots=True)
class _Attempt:
    space: Space
    cell: Cell
    floor: int
    ceiling: int


def phase_rates(space: Space, cells: Sequence[Cell], keep: int, mapper: Mapper = map) -> dict[Cell, float]:
    """Requests a second that one worker holds of its phase, for the `keep` best kinds of different size per class and
    role (by what they hold per accelerator)."""
    found = _tried(space, [cell for cell in cells if cell.role is Role.PREFILL_DECODE], keep, mapper)
    alone = [cell for cell in cells if cell.role is not Role.PREFILL_DECODE]
    found |= zip(alone, mapper(partial(_alone, space), alone), strict=True)
    return _best_of_each(found, keep)


def helpers(space: Space, cells: Sequence[Cell], mapper: Mapper = map) -> list[Cell]:
    """The kind of each class that computes most of the prompts that it can compute in time, per accelerator."""
    prefill = [cell for cell in cells if cell.role is Role.PREFILL]
    return list(_best_of_each(dict(zip(prefill, mapper(partial(_helps, space), prefill), strict=True)), 1))


def quick(space: Space, cells: Sequence[Cell]) -> list[Cell]:
    """The kind of each class and role that serves a request fastest when nothing else runs."""
    bounds = Bounds(replace(space, sample=space.sample.first(_REQUESTS)))
    line = sorted(cells, key=lambda cell: (_kind(cell), bounds.latency(Plan((PlanPool(cell, 1),))), cell))
    return [next(alike) for _, alike in groupby(line, key=_kind)]


def batches(items: Sequence[T], size: int = BATCH) -> Iterator[list[T]]:
    """So many at a time, in order."""
    left = iter(items)
    while some := list(islice(left, size)):
        yield some


def _kind(cell: Cell) -> Kind:
    return cell.accelerator, cell.role


def _best_of_each(rates: dict[Cell, float], keep: int) -> dict[Cell, float]:
    groups = groupby(sorted(rates, key=_kind), key=_kind)
    return {cell: rates[cell] for _, alike in groups for cell in _best(rates, alike, keep)}


def _best(rates: dict[Cell, float], cells: Iterable[Cell], keep: int) -> list[Cell]:
    """The best so many, of each size one: which sizes go together on a node is for plans to say."""
    found: dict[int, Cell] = {}
    for cell in sorted(cells, key=lambda cell: (-rates[cell], cell)):
        if rates[cell] > 0:
            found.setdefault(cell.accelerators, cell)
    return sorted(found.values(), key=lambda cell: (-rates[cell] / cell.accelerators, cell))[:keep]


def _alone(space: Space, cell: Cell) -> float:
    return _decode_rate(space, cell) if cell.role is Role.DECODE else prefill_rate(space, ((cell, 1),))


def _helps(space: Space, cell: Cell) -> float:
    """The rate at which a prefill worker takes prompts that it can compute in time, in prompts of average work; 0 when
    those are few."""
    space = replace(space, sample=space.sample.first(_REQUESTS))
    bounds = Bounds(space)
    possible = bounds.possible(Plan((PlanPool(cell, 1),)))
    if possible.mean() < _FEW:
        return 0.0
    seconds, some = bounds.seconds(cell), replace(space, sample=space.sample.only(possible.tolist()))
    return prefill_rate(some, ((cell, 1),)) * float(seconds[possible].mean() / seconds.mean())


def _decode_rate(space: Space, cell: Cell) -> float:
    """The rate at which the batch in balance has steps within TPOT: sequences in the batch = rate x tokens x step.

    Arrivals make the batch vary as a Poisson variable does, so steps must be within TPOT in batches that are as much
    larger than the mean as the attainment asks for."""
    profile, sample = profile_of(space, cell), space.sample
    steps = max(float(np.mean(sample.outputs)) - 1.0, 1e-9)
    context = float(np.mean(sample.prompts)) + steps / 2.0
    larger = max(0.0, NormalDist().inv_cdf(min(space.objectives.attainment, _SUREST)))
    most = min(space.max_num_seqs, max(1, int(kv_tokens(space, cell) / context)))
    rates = [0.0]
    for batch in range(1, most + 1):
        full = batch + larger * math.sqrt(batch)
        if float(profile.decode_ms(full, full * context)) / 1e3 > space.objectives.tpot_s:
            break
        rates.append(batch / (steps * float(profile.decode_ms(batch, batch * context)) / 1e3))
    return max(rates)


def _tried(space: Space, cells: Sequence[Cell], keep: int, mapper: Mapper) -> dict[Cell, float]:
    """What the twin says of kinds that do both; 0 of one that is not among the `keep` best, which one run shows. All
    classes take turns, so that every try has company."""
    few = replace(space, sample=space.sample.first(_REQUESTS))
    most = dict(zip(cells, mapper(partial(_most, few), cells), strict=True))
    found: dict[Cell, float] = {}
    lines = [
        batches(sorted(alike, key=lambda cell: (-most[cell] / cell.accelerators, cell)), 2)
        for _, alike in groupby(sorted(most, key=_kind), key=_kind)
    ]
    while turn := [cell for line in lines for cell in next(line, [])]:
        floors = {cell: floor for cell in turn if most[cell] > (floor := _floor(found, cell, keep))}
        tries = [_attempt_of(space, cell, most[cell], floor) for cell, floor in floors.items()]
        found |= zip(floors, mapper(_attempt, tries), strict=True)
    return found


def _most(space: Space, cell: Cell) -> float:
    return _bounds(space).rate(Plan((PlanPool(cell, 1),)))


@lru_cache(maxsize=4)
def _bounds(space: Space) -> Bounds:
    return Bounds(space)


def _attempt_of(space: Space, cell: Cell, most: float, floor: float) -> _Attempt:
    length = min(len(space.sample), lasting(space, most * _LIKELY))
    cut = replace(space, sample=space.sample.first(length), policy=_POLICY)
    return _Attempt(cut, cell, step_below(floor), step_below(most))


def _floor(found: dict[Cell, float], cell: Cell, keep: int) -> float:
    """What a kind must beat: the best of its size, and the last of the best."""
    alike = [other for other in found if other.accelerator == cell.accelerator]
    best = _best(found, alike, keep)
    same = max((found[other] for other in alike if other.accelerators == cell.accelerators), default=0.0)
    if len(best) < keep:
        return same
    return max(same, found[best[-1]] / best[-1].accelerators * cell.accelerators)


def _attempt(one: _Attempt) -> float:
    """The rate a kind of worker holds, 0 when it is not above the floor."""
    if one.ceiling <= one.floor:
        return 0.0
    guess = step_below(rate_at(one.ceiling) * _CAUTION) if one.floor < 0 else None
    plan = Plan((PlanPool(one.cell, 1),))
    found = climb(lambda rate: judge_plan(one.space, plan, rate), one.floor, one.ceiling, guess, within=_WITHIN)
    return rate_at(found.step) if found.step > one.floor else 0.0
