"""When requests come: steady processes of any burstiness, and rates that change with the hour or jump.

A rate that changes is made from a steady process of rate 1 by stretching its time: an arrival at u of the steady
process comes when the expected number of arrivals reaches u. This keeps the burstiness, and works for any rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum

import numpy as np
import numpy.typing as npt

__all__ = ["ArrivalProcess", "Rate", "arrivals", "diurnal", "spikes"]

Times = npt.NDArray[np.float64]
Rate = Callable[[Times], Times]
"""Requests a second at each of these seconds."""
_GRID = 10_000  # Intervals of the grid on which a changing rate is summed.


class ArrivalProcess(StrEnum):
    """How the gaps between arrivals are spread."""

    POISSON = "Poisson"
    """Users who know nothing of each other; coefficient of variation 1."""
    GAMMA = "Gamma"
    """Any coefficient of variation: above 1 in bursts, below 1 in step."""
    UNIFORM = "Uniform"
    """All gaps equal."""


def arrivals(
    rate: float | Rate, seconds: float, process: ArrivalProcess = ArrivalProcess.POISSON, cv: float = 1.0, seed: int = 0
) -> Times:
    """Arrival times in [0, seconds), sorted.

    `rate` is in requests a second; a function of time makes it change. `cv` is the gaps' standard deviation over their
    mean, heeded by Gamma only. Raises ValueError for a rate, a time or a `cv` that is not above 0 and finite.
    """
    for name, value in (("seconds", seconds), ("cv", cv)):
        _positive(name, value)
    if callable(rate):
        return _stretched(rate, seconds, process, cv, seed)
    _positive("rate", rate)
    return _steady(rate * seconds, process, cv, seed) / rate


def diurnal(mean: float, swing: float, period_s: float = 86_400.0, peak_s: float = 50_400.0) -> Rate:
    """A rate that swings round `mean` by the share `swing` (0 to 1), highest at `peak_s` of each period."""
    _positive("mean", mean)
    if not 0.0 <= swing <= 1.0:
        raise ValueError(f"a swing of {swing} is not possible; give 0 to 1")
    return lambda at: mean * (1.0 + swing * np.cos(2.0 * np.pi * (at - peak_s) / period_s))


def spikes(base: float, times: float, every_s: float, length_s: float) -> Rate:
    """A rate of `base` that is `times` as high for the last `length_s` of each `every_s`."""
    for name, value in (("base", base), ("times", times), ("every_s", every_s), ("length_s", length_s)):
        _positive(name, value)
    if length_s >= every_s:
        raise ValueError(f"spikes of {length_s} s do not fit into {every_s} s")
    return lambda at: base * np.where(at % every_s >= every_s - length_s, times, 1.0)


def _steady(until: float, process: ArrivalProcess, cv: float, seed: int) -> Times:
    """Arrivals of rate 1 before `until`."""
    rng = np.random.default_rng(seed)
    made: list[Times] = []
    last = 0.0
    while last < until:
        size = max(64, math.ceil((until - last) * 1.1))
        times = last + np.cumsum(_gaps(rng, process, cv, size))
        made.append(times)
        last = float(times[-1])
    everything = np.concatenate(made) if made else np.empty(0)
    return everything[everything < until]


def _gaps(rng: np.random.Generator, process: ArrivalProcess, cv: float, size: int) -> Times:
    if process is ArrivalProcess.UNIFORM:
        return np.ones(size)
    if process is ArrivalProcess.POISSON:
        return rng.exponential(1.0, size)
    shape = 1.0 / (cv * cv)
    return rng.gamma(shape, 1.0 / shape, size)


def _stretched(rate: Rate, seconds: float, process: ArrivalProcess, cv: float, seed: int) -> Times:
    grid = np.linspace(0.0, seconds, _GRID + 1)
    # A cell's middle stands for it: rates that jump are then not smeared over the cells beside the jump.
    rates = np.asarray(rate(0.5 * (grid[1:] + grid[:-1])), dtype=np.float64)
    if not np.isfinite(rates).all() or (rates < 0).any():
        raise ValueError("a rate must be finite and never below 0")
    expected = np.concatenate(([0.0], np.cumsum(rates * np.diff(grid))))
    _positive("rate", float(expected[-1]))
    return np.interp(_steady(float(expected[-1]), process, cv, seed), expected, grid)


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; give a number above 0")
