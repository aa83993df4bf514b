"""One plan of a search: the least it can score by its bound, and what it scores when it is tried.

Scores are compared, smaller is better: what is ranked by, then what decides between equals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from penstock.simulator.planning.bounds import Bounds
from penstock.simulator.planning.candidates import Plan
from penstock.simulator.planning.goal import Goal, Rank, Space, rate_at, step_below
from penstock.simulator.planning.trial import Climb, Trial, climb, judge_plan

__all__ = ["NOT", "Score", "Standing", "Task", "Tried", "attempt", "least_score"]

Score = tuple[float, float]
NOT: Score = (math.inf, math.inf)
"""Of a plan that does not hold what is asked."""

_CAUTION = 0.7


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
class Task:
    """A plan to try."""

    plan: Plan
    floor: Score | None = None
    """Its bound, where that is known."""
    mark: Score = NOT
    """What it must beat."""
    guess: float | None = None
    """About what it holds, in requests a second."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of a plan."""

    plan: Plan
    standing: Standing | None = None
    """If it holds and, for goodput, beats the mark."""
    trial: Trial | None = None
    """A run of it; none where its bound was enough."""
    runs: int = 0


def least_score(space: Space, goal: Goal, plan: Plan) -> Score:
    """No run of the plan scores less; endless when it cannot hold what is asked."""
    bounds = _bounds(space)
    rate, cost = bounds.rate(plan), plan.cost_per_hour(space.prices)
    if rate <= 0 or (goal.rank is not Rank.GOODPUT and (goal.rate is None or rate < goal.rate)):
        return NOT
    match goal.rank:
        case Rank.GOODPUT:
            return (-rate, cost)
        case Rank.LATENCY:
            return (bounds.latency(plan), cost)
        case Rank.COST:
            return (cost, bounds.latency(plan))
        case Rank.ENERGY:
            return (bounds.joules(plan, goal.rate or math.inf), bounds.latency(plan))


def attempt(space: Space, goal: Goal, task: Task) -> Tried:
    """Try one plan, unless its bound says that it cannot beat the mark."""
    plan = task.plan
    floor = least_score(space, goal, plan) if task.floor is None else task.floor
    if floor == NOT or floor >= task.mark:
        return Tried(plan)
    if goal.rank is Rank.GOODPUT:
        mark = -task.mark[0] if math.isfinite(task.mark[0]) else 0.0
        climbed = _climb(space, plan, -floor[0], mark, task.guess)
        rate, trial, runs = rate_at(climbed.step), climbed.at, climbed.runs
    else:
        rate = goal.rate or 0.0
        trial, runs = judge_plan(space, plan, rate), 1
    if not trial.holds:
        return Tried(plan, None, trial, runs)
    cost = plan.cost_per_hour(space.prices)
    return Tried(plan, Standing(plan, _score(space, goal, rate, trial, cost), rate, trial, cost), trial, runs)


def _climb(space: Space, plan: Plan, bound: float, mark: float, about: float | None) -> Climb:
    """The highest rate above `mark` that the plan holds. Whether it beats the mark at all is found out in haste."""
    floor, ceiling = step_below(mark), step_below(bound)
    guess = step_below(about or bound * _CAUTION) if floor < 0 else None

    def play(rate: float) -> Trial:
        return judge_plan(space, plan, rate, hasty=guess is None and step_below(rate) == floor + 1)

    return climb(play, floor, max(ceiling, floor + 1), guess)


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
