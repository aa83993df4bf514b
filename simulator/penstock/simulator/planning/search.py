"""The search for the best plan: enumerate, drop by bound, try the rest in the twin, tell the best two exactly.

A plan is dropped unseen only when its bound (`bounds`) says that it cannot be among the best two. To find goodput each
plan left is first tried at the rate just above the second best so far; most fail and are done with, most of them before
the run is over (`watch`). Plans are looked at in the order of what they promise and of how near they are to the best so
far (`order`), so that the first ones set a high mark.

Where there are too many plans, only the best kinds of workers of each class and role are combined (`phases`), and only
so many plans are tried; `Found` says how many were not. That part is a heuristic as DistServe's (OSDI 2024), no bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from penstock.simulator.planning.attempts import NOT, Score, Standing, Task, Tried, attempt, least_score
from penstock.simulator.planning.candidates import BUDGETS, Cell, Plan, cells_of, enumerate_plans, sized_plans
from penstock.simulator.planning.goal import Goal, Rank, Space, lasting
from penstock.simulator.planning.order import PATIENCE, Line
from penstock.simulator.planning.phases import BATCH, Mapper, helpers, phase_rates, quick
from penstock.simulator.planning.promises import promises
from penstock.simulator.planning.trial import Trial, try_plan

__all__ = ["Counts", "Found", "Standing", "Tell", "candidates", "find_plans", "rank_plans"]

Tell = Callable[[str, int, int], None]
"""Told what is done, how far it is, and of how many; of 0 where nobody knows."""

_KEPT = 2  # The best plan and the one it is compared with.
_KINDS, _KINDS_OF_ONE = 2, 4  # Kinds of workers per class and role that are combined; more where one class is all.
_SIZED = (Rank.COST, Rank.ENERGY)  # What fewer accelerators are better for.
_LIKELY = 0.7  # Of a rate, what a plan must promise to be tried at it.


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the plans."""

    enumerated: int = 0
    dropped: int = 0
    """By bound, without a run."""
    tried: int = 0
    unseen: int = 0
    """Promised less than those tried, or stood far from the best; there was no time for them."""
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
        return self.held[_KEPT - 1].score if len(self.held) >= _KEPT else NOT

    def note(self, one: Tried) -> None:
        if one.trial is None:
            self.dropped += 1
            return
        self.tried += 1
        self.runs += one.runs
        if one.standing is not None:
            self.held = sorted([*self.held, one.standing], key=lambda held: (held.score, held.plan))
        elif self.nearest is None or one.trial.attainment > self.nearest[1].attainment:
            self.nearest = (one.plan, one.trial)

    def found(self, space: Space, enumerated: int) -> Found:
        seen = self.dropped + self.tried
        counts = Counts(enumerated, self.dropped, self.tried, enumerated - seen, self.runs)
        nearest = None if self.held else self.nearest
        if nearest is not None and not nearest[1].whole:
            nearest = (nearest[0], try_plan(space, nearest[0], nearest[1].rate))
        return Found(tuple(self.held), counts, nearest, len(space.sample))


def find_plans(
    space: Space, goal: Goal, *, most: int = 64, budgets: Sequence[int] = BUDGETS, requests: int | None = None,
    mapper: Mapper = map, tell: Tell = lambda *_: None, kinds: int | None = None, patience: int = PATIENCE,
) -> Found:  # fmt: skip
    """The best plans of the space. At most so many as `most` are tried; `budgets` are the token budgets that workers
    may have which compute prompts; the best `kinds` of workers per class and role are combined; a search for goodput
    ends after so many plans in vain as its `patience` (`order`). Runs have so many `requests` of the sample, by default
    as many as make them last."""
    cells = [cell for group in space.groups for cell in cells_of(space.model, group, space.context, budgets)]
    tell(f"trying {len(cells)} kinds of workers alone", 0, 0)
    mixed = len(space.groups) > 1 and goal.rank not in _SIZED
    rates = phase_rates(space, cells, kinds or (_KINDS if mixed else _KINDS_OF_ONE), mapper)
    beside = helpers(space, cells, mapper) if mixed else []
    if mixed and goal.rank is Rank.LATENCY:
        beside += quick(space, cells)
    plans = sorted(candidates(space, goal, rates, beside), key=lambda plan: (plan.cost_per_hour(space.prices), plan))
    tell(f"estimating {len(plans)} plans", 0, 0)
    about = promises(space, plans, rates, mapper)
    length = min(requests or lasting(space, goal.rate or max(about, default=0.0)), len(space.sample))
    played = replace(space, sample=space.sample.first(length))
    if goal.rank is Rank.GOODPUT:
        return _explore(played, goal, plans, Line(plans, about, patience), about, most, mapper, tell)
    likely = [plan for plan, rate in zip(plans, about, strict=True) if rate >= (goal.rate or 0.0) * _LIKELY]
    found = rank_plans(played, goal, likely or plans, most=most, mapper=mapper, tell=tell)
    left = len(plans) - found.counts.enumerated
    return replace(found, counts=replace(found.counts, enumerated=len(plans), unseen=found.counts.unseen + left))


def candidates(space: Space, goal: Goal, rates: dict[Cell, float], beside: Sequence[Cell] = ()) -> list[Plan]:
    """The plans worth a look: sized for the rate where fewer accelerators are better, else filling the nodes. Without
    one of the right size all nodes are filled: then it is at least said how near they come. Kinds `beside` those of
    which rates are known are combined with them."""
    cells = sorted(rates)
    if goal.rank in _SIZED and goal.rate is not None:
        sized = list(dict.fromkeys(sized_plans(space.groups, cells, rates, goal.rate)))
        if sized:
            return sized
    return list(enumerate_plans(space.groups, sorted({*cells, *beside})))


def rank_plans(
    space: Space, goal: Goal, plans: Sequence[Plan], *, most: int | None = None, mapper: Mapper = map,
    tell: Tell = lambda *_: None, prune: bool = True,
) -> Found:  # fmt: skip
    """The best of these plans, looked at in the order of their bounds, at most so many as `most`. Without `prune` every
    plan is tried in full, which tests compare with."""
    tell("bounding", 0, len(plans))
    floors = list(mapper(partial(least_score, space, goal), plans))
    line = sorted(range(len(plans)), key=lambda number: (floors[number], number))
    state = _State()
    most = len(plans) if most is None else most
    while line and state.tried < most:
        # The first two set the mark for all others.
        count = min(BATCH if state.tried + state.dropped else _KEPT, most - state.tried)
        some, line = line[:count], line[count:]
        mark = state.mark() if prune else NOT
        _try(space, goal, [Task(plans[number], floors[number], mark) for number in some], state, mapper)
        tell("trying plans", state.tried + state.dropped, len(plans))
    return state.found(space, len(plans))


def _explore(
    space: Space, goal: Goal, plans: Sequence[Plan], line: Line, about: Sequence[float], most: int, mapper: Mapper,
    tell: Tell,
) -> Found:  # fmt: skip
    """The best of too many plans to try them all."""
    state = _State()
    numbers = {plan: number for number, plan in enumerate(plans)}
    while state.tried < most:
        best = [numbers[one.plan] for one in state.held[:_KEPT]]
        some = line.next(best, most - state.tried)
        if not some:
            break
        tasks = [Task(plans[number], None, state.mark(), about[number]) for number in some]
        _try(space, goal, tasks, state, mapper)
        tell("trying plans", state.tried, min(most, len(plans) - state.dropped))
    return state.found(space, len(plans))


def _try(space: Space, goal: Goal, tasks: Sequence[Task], state: _State, mapper: Mapper) -> None:
    for one in mapper(partial(attempt, space, goal), tasks):
        state.note(one)
