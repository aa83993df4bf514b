"""How fast prompts may come so that they have their first token in time: a queue before all prefill workers of a plan.

Prompts are served one after the other, first come, first served, each by the worker that will be done with it first.
Several workers behind one queue hold more than each with a queue of its own, and the more so the more there are; so it
is the pool that is asked, and not one worker times their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapreplace

import numpy as np
from penstock.core.models.pipeline import fill_ms
from penstock.simulator.planning.bounds import profile_of, whole_of
from penstock.simulator.planning.candidates import Cell
from penstock.simulator.planning.goal import Space, rate_at, step_below

__all__ = ["Workers", "prefill_rate"]

Workers = tuple[tuple[Cell, int], ...]
"""So many of each kind."""

_MOST_PROMPTS = 400  # More would tell no plan from another.
_WITHIN = 2  # Steps of 1 % to which the rate is told.


def prefill_rate(space: Space, workers: Workers) -> float:
    """The highest rate at which so many workers of each kind give first tokens in time, 0 for none; so many prompts of
    the sample as the attainment asks for must have it."""
    sample = space.sample.first(_MOST_PROMPTS)
    kinds = [(*_seconds(space, cell, sample.prompts), count) for cell, count in workers]
    need = space.objectives.needed(len(sample))
    capacity = sum(count * len(sample) / sum(work) for work, _, count in kinds)

    def holds(step: int) -> bool:
        rate = rate_at(step)
        return _kth(_ttfts([time / rate for time in sample.times], kinds), need) <= space.objectives.ttft_s

    return _highest(holds, capacity)


def _seconds(space: Space, cell: Cell, prompts: tuple[int, ...]) -> tuple[list[float], list[float]]:
    """(work, what a first token waits for later stages of a pipeline) of each prompt."""
    profile, tokens = profile_of(space, cell), np.array(prompts, dtype=np.float64)
    chunks = np.ceil(tokens / cell.budget)
    work = profile.prefill_ms(tokens) + profile.prefill[0] * (chunks - 1.0)
    stages = cell.parallelism.pipeline
    if stages == 1:
        return (work / 1e3).tolist(), [0.0] * len(prompts)
    whole = whole_of(space, cell)
    return (work / 1e3).tolist(), [fill_ms(whole, stages, prompt, cell.budget) / 1e3 for prompt in prompts]


def _ttfts(arrivals: list[float], kinds: list[tuple[list[float], list[float], int]]) -> list[float]:
    """Seconds to each first token."""
    free = [[0.0] * count for _, _, count in kinds]
    found = []
    for index, now in enumerate(arrivals):
        end, best = math.inf, 0
        for number, (work, _, _) in enumerate(kinds):
            done = max(now, free[number][0]) + work[index]
            if done < end:
                end, best = done, number
        heapreplace(free[best], end)
        found.append(end - now + kinds[best][1][index])
    return found


def _kth(values: list[float], number: int) -> float:
    return sorted(values)[number - 1]


def _highest(holds: Callable[[int], bool], most: float) -> float:
    """The highest rate up to `most` of which `holds` says so; 0 for none."""
    low, high = -1, step_below(most) + 1
    while high - low > _WITHIN or (low < 0 and high > 0):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return rate_at(low) if low >= 0 else 0.0
