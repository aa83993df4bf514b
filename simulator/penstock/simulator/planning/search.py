"""The search for the best plan: enumerate, drop by bound, try the rest in the twin, tell the best two exactly.

A plan is dropped unseen only when its bound (`bounds`) says that it cannot be among the best two. To find goodput each
plan left is first tried at the rate just above the second best so far; most fail and are done with. Plans are looked at
in the order of what they promise, so that the first ones set a high mark.

Where there are too many plans, only the best kinds of workers of each class and role are combined (`phases`), and only
so many of the most promising plans are tried; `Found` says how many were not. That part is DistServe's heuristic (OSDI
2024), not a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import numpy as np
from penstock.simulator.planning.bounds import Bounds
from penstock.simulator.planning.candidates import BUDGETS, Cell, Plan, cells_of, enumerate_plans, sized_plans
from penstock.simulator.planning.goal import Goal, Rank, Space, rate_at, step_below
from penstock.simulator.planning.phases import Mapper, batches, estimate, phase_rates
from penstock.simulator.planning.trial import Climb, Trial, climb, try_plan

__all__ = ["Counts", "Found", "Standing", "Tell", "candidates", "find_plans", "rank_plans"]

Score = tuple[float, float]
"""Smaller is better: what is ranked by, then what decides between equals."""
Tell = Callable[[str, int, int], None]
"""Told what is done, how far it is, and of how many; of 0 where nobody knows."""

_KEPT = 2  # The best plan and the one it is compared with.
_KINDS, _KINDS_OF_ONE = 2, 4  # Kinds of workers per class and role that are combined; more where one class is all.
_SHORTEST, _LIVES = 300, 2.5  # Requests of a run at least (DistServe's search has 300), and how long it lasts.
_CAUTION = 0.7
_NOT = (math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Standing:
    """One plan that was tried and held."""

    plan: Plan
    score: Score
    rate: float
    """The highest rate it holds, when ranked by goodput; else the rate that was asked for."""
    trial: Trial
    cost_per_hour: float


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the plans."""

    enumerated: int = 0
    dropped: int = 0
    """By bound, without a run."""
    tried: int = 0
    unseen: int = 0
    """Promised less than those tried, and there was no time for them."""
    runs: int = 0
    """Of the twin, those of single kinds of workers left out."""


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of a search."""

    ranking: tuple[Standing, ...]
    """Best first: the first two exactly, further ones as far as they were tried. Empty when nothing holds."""
    counts: Counts
    nearest: tuple[Plan, Trial] | None = None
    """When nothing holds: the plan that came nearest, and its run."""
    requests: int = 0
    """Of the sample, that each run had."""


@dataclass(slots=True)
class _State:
    """A search while it lasts."""

    held: list[Standing] = field(default_factory=list)
    nearest: tuple[Plan, Trial] | None = None
    dropped: int = 0
    tried: int = 0
    runs: int = 0

    def mark(self) -> Score:
        """What a plan must beat."""
        return self.held[_KEPT - 1].score if len(self.held) >= _KEPT else _NOT

    def note(self, standing: Standing | None, plan: Plan, trial: Trial, runs: int) -> None:
        self.tried += 1
        self.runs += runs
        if standing is not None:
            self.held = sorted([*self.held, standing], key=lambda one: (one.score, one.plan))
        elif self.nearest is None or trial.attainment > self.nearest[1].attainment:
            self.nearest = (plan, trial)


def find_plans(
    space: Space, goal: Goal, *, most: int = 64, budgets: Sequence[int] = BUDGETS, requests: int | None = None,
    mapper: Mapper = map, tell: Tell = lambda *_: None,
) -> Found:  # fmt: skip
    """The best plans of the space. `most` of them are tried, the first so many by what they promise; `budgets` are the
    token budgets that workers may have which compute prompts. Runs have so many `requests` of the sample, by default
    as many as make them last."""
    cells = [cell for group in space.groups for cell in cells_of(space.model, group, space.context, budgets)]
    tell(f"trying {len(cells)} kinds of workers alone", 0, 0)
    rates = phase_rates(space, cells, _KINDS_OF_ONE if len(space.groups) == 1 else _KINDS, mapper)
    plans = candidates(space, goal, rates)
    line = sorted(plans, key=lambda plan: (-estimate(plan, rates), plan.cost_per_hour(space.prices), plan))[:most]
    guesses = [estimate(plan, rates) for plan in line]
    length = min(requests or _lasting(space, goal.rate or max(guesses, default=0.0)), len(space.sample))
    played = replace(space, sample=space.sample.first(length))
    found = rank_plans(played, goal, line, guesses=guesses, mapper=mapper, tell=tell)
    counts = replace(found.counts, enumerated=len(plans), unseen=len(plans) - len(line))
    return replace(found, counts=counts, requests=length)


def _lasting(space: Space, rate: float) -> int:
    """Requests that a run needs at this rate, so that it outlasts several lives of a request: in a shorter one batches
    never grow to what they come to in the end, and decoding looks cheaper than it is."""
    life = space.objectives.tpot_s * float(np.mean(space.sample.outputs))
    return max(_SHORTEST, math.ceil(_LIVES * rate * life))


def candidates(space: Space, goal: Goal, rates: dict[Cell, float]) -> list[Plan]:
    """The plans worth a look: sized for the rate where fewer accelerators are better, else filling the nodes. Without
    one of the right size all nodes are filled: then it is at least said how near they come."""
    cells = sorted(rates)
    if goal.rank in (Rank.COST, Rank.ENERGY) and goal.rate is not None:
        sized = list(dict.fromkeys(sized_plans(space.groups, cells, rates, goal.rate)))
        if sized:
            return sized
    return list(enumerate_plans(space.groups, cells))


def rank_plans(
    space: Space, goal: Goal, plans: Sequence[Plan], *, guesses: Sequence[float] | None = None, mapper: Mapper = map,
    tell: Tell = lambda *_: None, prune: bool = True,
) -> Found:  # fmt: skip
    """The best of these plans. `guesses` say about what each holds, and for goodput the first are looked at first;
    without `prune` every plan is tried in full, which tests compare with."""
    tell("bounding", 0, len(plans))
    floors = list(mapper(partial(_least_score, space, goal), plans))
    line = sorted(range(len(plans)), key=lambda number: (floors[number], number))
    if goal.rank is Rank.GOODPUT and guesses is not None:
        line = list(range(len(plans)))
    state = _State()
    # The first two set the mark for all others.
    for some in [line[:_KEPT], *batches(line[_KEPT:])]:
        mark = state.mark() if prune else _NOT
        left = [number for number in some if floors[number] < mark and floors[number] != _NOT]
        state.dropped += len(some) - len(left)
        attempts = [
            (plans[number], floors[number][0], mark[0], None if guesses is None else guesses[number]) for number in left
        ]
        for (plan, *_), (standing, trial, runs) in zip(
            attempts, mapper(partial(_attempt, space, goal), attempts), strict=True
        ):
            state.note(standing, plan, trial, runs)
        tell("trying plans", state.tried + state.dropped, len(plans))
    counts = Counts(len(plans), state.dropped, state.tried, 0, state.runs)
    return Found(tuple(state.held), counts, None if state.held else state.nearest, len(space.sample))


def _least_score(space: Space, goal: Goal, plan: Plan) -> Score:
    """No run of the plan scores less; endless when it cannot hold what is asked."""
    bounds = _bounds(space)
    rate, cost = bounds.rate(plan), plan.cost_per_hour(space.prices)
    if rate <= 0 or (goal.rank is not Rank.GOODPUT and (goal.rate is None or rate < goal.rate)):
        return _NOT
    match goal.rank:
        case Rank.GOODPUT:
            return (-rate, cost)
        case Rank.LATENCY:
            return (bounds.latency(plan), cost)
        case Rank.COST:
            return (cost, bounds.latency(plan))
        case Rank.ENERGY:
            return (bounds.joules(plan, goal.rate or math.inf), bounds.latency(plan))


_Task = tuple[Plan, float, float, float | None]
"""A plan, its bound, the mark to beat, and about what it holds."""


def _attempt(space: Space, goal: Goal, task: _Task) -> tuple[Standing | None, Trial, int]:
    """Try one plan: its standing if it holds (and, for goodput, beats the mark), a run of it, the number of runs."""
    plan, floor, mark, guess = task
    if goal.rank is Rank.GOODPUT:
        climbed = _climb(space, plan, -floor, -mark if math.isfinite(mark) else 0.0, guess)
        rate, trial, runs, holds = rate_at(climbed.step), climbed.at, climbed.runs, climbed.at.holds
    else:
        rate = goal.rate or 0.0
        trial, runs = try_plan(space, plan, rate), 1
        holds = trial.holds
    if not holds:
        return None, trial, runs
    cost = plan.cost_per_hour(space.prices)
    return Standing(plan, _score(space, goal, rate, trial, cost), rate, trial, cost), trial, runs


def _climb(space: Space, plan: Plan, bound: float, mark: float, about: float | None) -> Climb:
    """The highest rate above `mark` that the plan holds."""
    floor, ceiling = step_below(mark), step_below(bound)
    guess = step_below(about or bound * _CAUTION) if floor < 0 else None
    return climb(lambda rate: try_plan(space, plan, rate), floor, max(ceiling, floor + 1), guess)


def _score(space: Space, goal: Goal, rate: float, trial: Trial, cost: float) -> Score:
    share = trial.share(space.objectives.ttft_s, space.objectives.tpot_s)
    match goal.rank:
        case Rank.GOODPUT:
            return (-rate, cost)
        case Rank.LATENCY:
            return (share, cost)
        case Rank.COST:
            return (cost, share)
        case Rank.ENERGY:
            return (trial.joules, share)


@lru_cache(maxsize=4)
def _bounds(space: Space) -> Bounds:
    return Bounds(space)
