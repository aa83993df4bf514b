"""A search in sentences: why the second plan lost, why none held, what would fit. With numbers, always."""

from __future__ import annotations

import math

from penstock.core.models import ModelArchitecture, fit, known_accelerators, smallest_fit
from penstock.core.models.parallelism import Parallelism
from penstock.simulator.planning.goal import Goal, Rank, Space
from penstock.simulator.planning.search import Found, Standing
from penstock.simulator.planning.trial import Trial, try_plan
from penstock.simulator.scenario import NodeGroup

__all__ = ["misses", "percent", "what_fits", "why_nothing", "why_second"]

_TOLD = 0.0005  # Of a figure: a smaller difference would be told as none.


def why_second(space: Space, goal: Goal, found: Found) -> str:
    """Why the best plan is not the second; empty when there is no second."""
    if len(found.ranking) < 2:
        return ""
    best, second = found.ranking[:2]
    if goal.rank is Rank.GOODPUT:
        return _less_goodput(space, best, second)
    figures = {
        Rank.COST: (best.cost_per_hour, second.cost_per_hour, "{:.2f} USD an hour"),
        Rank.ENERGY: (best.trial.joules, second.trial.joules, "{:.0f} J a request"),
        Rank.LATENCY: (best.score[0], second.score[0], "{:.1%} of the objectives"),
    }
    first, other, form = figures[goal.rank]
    verb = "uses up" if goal.rank is Rank.LATENCY else "takes"
    told = other / first - 1 >= _TOLD
    more = f"{other / first - 1:.1%} more than" if told else "hardly more than" if other > first else "the same as"
    text = f"The runner-up, {second.plan}, {verb} {form.format(other)}, {more} the best plan's {form.format(first)}"
    if told:
        return f"{text}."
    return f"{text}; it has {_figures(second.trial)} against {_figures(best.trial)}."


def percent(share: float) -> str:
    """A share as it was asked for: no digit is rounded away, since 99.95% is not 100%."""
    return f"{round(100 * share, 6):g}%"


def misses(space: Space, trial: Trial) -> str:
    """Which objectives a run missed, in numbers."""
    goal = space.objectives
    said = [
        f"{name} at the {percent(goal.attainment)} quantile is {_milliseconds(found)} against {_milliseconds(limit)}"
        for name, found, limit in (("TTFT", trial.ttft_s, goal.ttft_s), ("TPOT", trial.tpot_s, goal.tpot_s))
        if found > limit
    ]
    both = f"{trial.attainment:.1%} of the requests meet both objectives, {percent(goal.attainment)} are asked for"
    return "; ".join([*said, both])


def why_nothing(space: Space, goal: Goal, found: Found) -> str:
    """Why no plan holds, and which came nearest."""
    asked = f"{goal.rate:g} requests a second" if goal.rate is not None else "any rate"
    text = f"no plan on these nodes holds {asked} within the objectives"
    if found.nearest is None:
        return f"{text}: not even idle workers are fast enough, or there are too few; relax an objective or add nodes"
    plan, trial = found.nearest
    return f"{text}; nearest comes {plan}: at {trial.rate:.3g} requests a second {misses(space, trial)}"


def what_fits(model: ModelArchitecture, groups: tuple[NodeGroup, ...], context: int) -> str:
    """Why no worker fits the nodes, and what one would fit."""
    said = []
    for group in groups:
        tensor = 1 << (group.accelerators.bit_length() - 1)
        said.append(fit(model, group.accelerator, Parallelism(tensor=tensor), context).reason)
    fitting = [
        f"{accelerator.name} ({degrees})"
        for accelerator in known_accelerators()
        if (degrees := smallest_fit(model, accelerator, context)) is not None
    ]
    return "; ".join(said) + (f". What fits: {', '.join(fitting)}" if fitting else "")


def _less_goodput(space: Space, best: Standing, second: Standing) -> str:
    at = try_plan(space, second.plan, best.rate)
    text = f"The runner-up, {second.plan}, holds {second.rate:.3g} requests a second"
    if second.rate >= best.rate:
        return f"{text} as well, at {second.cost_per_hour:.2f} against {best.cost_per_hour:.2f} USD an hour."
    text += f", {1 - second.rate / best.rate:.1%} less: at {best.rate:.3g} "
    return text + (misses(space, at) if not at.holds else "it holds by chance, but not just above its own limit") + "."


def _figures(trial: Trial) -> str:
    return f"TTFT {_milliseconds(trial.ttft_s)} and TPOT {_milliseconds(trial.tpot_s)}"


def _milliseconds(seconds: float) -> str:
    return "endless" if math.isinf(seconds) else f"{seconds * 1e3:.0f} ms"
