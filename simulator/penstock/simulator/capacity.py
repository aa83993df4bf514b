"""How much load a set-up bears: the highest rate at which its objectives hold, and how sure that figure is.

`capacity` halves the range of rates, in ratios, until what holds and what does not are within the tolerance. It asks a
`run`, which plays one rate with one seed and gives a `Verdict`; what is played and what must hold is the run's affair.
`capacities` does so once for each seed, on as many cores as there are, and `interval` says what the seeds agree on.

Near the limit chance decides, so whether an objective holds is not monotone in the rate. The search then ends at one of
the crossings; the spread over seeds shows how wide that zone is.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

__all__ = ["BeyondBounds", "Run", "Verdict", "capacities", "capacity", "interval", "verdict"]

LEAST_FINISHED = 0.99

# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom (any table of it); beyond, its series around the normal.
_T95 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
_Z95 = 1.959964


class BeyondBounds(ValueError):
    """The objectives still hold at the highest rate of the search, so it has no answer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the objectives held in one run."""

    holds: bool
    why: str = ""
    """The first objective that did not hold, with what was found; empty when all did."""


Run = Callable[[float, int], Verdict]
"""(requests per second, seed) -> verdict; the same arguments must give the same verdict."""


def verdict(finished_share: float, limits: Sequence[tuple[str, float, float]]) -> Verdict:
    """Whether enough requests finished (99 %) and each `(name, found, limit)` is within its limit. A figure that is
    not a number (nothing was measured) is within none."""
    if not finished_share >= LEAST_FINISHED:
        return Verdict(False, f"finished {finished_share:.1%} of the requests, fewer than {LEAST_FINISHED:.0%}")
    for name, found, limit in limits:
        if not found <= limit:
            return Verdict(False, f"{name} is {found:.4g}, above {limit:.4g}")
    return Verdict(True)


def capacity(run: Run, low: float, high: float, tolerance: float = 0.05, *, seed: int = 0) -> float:
    """The highest rate found that holds, in requests per second; what fails is at most `1 + tolerance` times it.

    0.0 when not even `low` holds. Raises `BeyondBounds` when `high` holds, ValueError for bounds that are none.
    """
    if not 0 < low < high < math.inf or not tolerance > 0:
        raise ValueError(f"cannot search rates from {low} to {high} with tolerance {tolerance}; give 0 < low < high")
    if not run(low, seed).holds:
        return 0.0
    if run(high, seed).holds:
        raise BeyondBounds(f"seed {seed}: {high} requests per second hold still; search with a higher bound")
    while high > low * (1 + tolerance):
        middle = math.sqrt(low * high)
        if run(middle, seed).holds:
            low = middle
        else:
            high = middle
    return low


def capacities(
    run: Run, seeds: Sequence[int], low: float, high: float, tolerance: float = 0.05, *, processes: int | None = None
) -> tuple[float, ...]:
    """`capacity` for each seed, in the order of `seeds`, in so many processes (by default one for each core).

    With more than one process `run` must be picklable: a module's function, or a `functools.partial` of one.
    """
    search = partial(_search, run, low, high, tolerance)
    count = min(len(seeds), processes or len(os.sched_getaffinity(0)))
    if count <= 1:
        return tuple(map(search, seeds))
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("fork")) as pool:
        return tuple(pool.map(search, seeds))


def _search(run: Run, low: float, high: float, tolerance: float, seed: int) -> float:
    return capacity(run, low, high, tolerance, seed=seed)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the 95 % confidence interval of the mean by Student's t. One value says nothing of its
    spread: its interval is endless. Raises ValueError for none."""
    if not values:
        raise ValueError("no values, so no mean; give at least one seed")
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, -math.inf, math.inf
    half = _t95(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _t95(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with so many degrees of freedom."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = _Z95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
