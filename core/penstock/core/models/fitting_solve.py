"""Coefficients from equations: least squares of relative errors, none below 0, and how well the equations are met.

Times of an engine's passes span three orders of magnitude, so what is made small is the relative error of each
equation, not its milliseconds. A coefficient below 0 is no property of an engine, so none is given. A machine that
stood still for once is none either: equations far off the first answer are left out of the second, and counted in the
reported error all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from penstock.core.models.latency import LatencyProfile

__all__ = ["LEAST", "Array", "Fit", "Quality", "non_negative_least_squares", "quality", "solve_relative"]

Array = npt.NDArray[np.float64]

LEAST = 8
"""Fewest equations of each kind: three coefficients and something to judge them by."""
_FAR, _NEAR = 5.0, 0.01  # Times the median error from which a sample is left out, and how much more it may be.
_EXACT = 1e-3  # Errors below it are all alike.
_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Quality:
    """How well one kind of equation is met. Errors are relative, as shares of what was measured."""

    samples: int
    r_squared: float
    median_error: float
    """Median of the relative error's size."""
    p90_error: float
    mean_error: float = 0.0
    p95_error: float = 0.0


@dataclass(frozen=True, slots=True)
class Fit:
    """A profile and how far it is to be believed."""

    profile: LatencyProfile
    prefill: Quality
    decode: Quality


def solve_relative(rows: Array, times: Array, kinds: npt.NDArray[np.int_] | None = None) -> Array:
    """The x >= 0 with the least relative errors of rows @ x against `times`, found again without what lies far off
    the first answer. `kinds` numbers the kinds of equations (default: all of one kind): one kind may be noisier than
    another, so what is far is judged within each of them, and each counts for as much as it is exact."""
    kinds = np.zeros(len(times), dtype=np.int_) if kinds is None else kinds
    scaled = rows / times[:, None]
    found = _least_absolute(scaled)
    errors = np.abs(scaled @ found - 1.0)
    near, weights = np.ones(len(times), dtype=bool), np.ones(len(times))
    for kind in np.unique(kinds):
        mine = kinds == kind
        usual = float(np.median(errors[mine]))
        near[mine] = errors[mine] <= _FAR * usual + _NEAR
        weights[mine] = 1.0 / max(usual, _EXACT)
    # By what was predicted: to divide by the measured time is to believe most in what came out too short by chance.
    weights /= weights.max() * np.maximum(rows @ found, 1e-9)
    return non_negative_least_squares(rows[near] * weights[near, None], times[near] * weights[near])


def _least_absolute(scaled: Array) -> Array:
    """x >= 0 with the least sum of |scaled @ x - 1|, nearly: squares, weighted anew by how far off each was. What is
    far off by no fault of the engine, be it a third of all and all of it too long, moves it little."""
    ones = np.ones(len(scaled))
    found = non_negative_least_squares(scaled, ones)
    for _ in range(_ROUNDS):
        weights = 1.0 / np.sqrt(np.maximum(np.abs(scaled @ found - 1.0), _EXACT))
        found = non_negative_least_squares(scaled * weights[:, None], weights)
    return found


def non_negative_least_squares(rows: Array, values: Array) -> Array:
    """x >= 0 with the least |rows x - values|; for few unknowns, whose every subset can be tried.

    The best solution is an ordinary least-squares solution in those unknowns that are not 0, so the best of all subsets
    that come out positive is the answer. Columns are scaled first: squared tokens are millions, a constant is 1.
    """
    scale = np.linalg.norm(rows, axis=0)
    scale[scale == 0] = 1.0
    scaled, unknowns = rows / scale, rows.shape[1]
    whole: Array = np.linalg.lstsq(scaled, values, rcond=None)[0]
    if (whole >= 0).all():
        scaled_back: Array = whole / scale
        return scaled_back
    best, least = np.zeros(unknowns), float(np.linalg.norm(values))
    for size in range(1, unknowns):
        for chosen in map(list, combinations(range(unknowns), size)):
            found = np.linalg.lstsq(scaled[:, chosen], values, rcond=None)[0]
            error = float(np.linalg.norm(scaled[:, chosen] @ found - values))
            if (found >= 0).all() and error < least:
                best, least = np.zeros(unknowns), error
                best[chosen] = found
    answer: Array = best / scale
    return answer


def quality(predicted: Array, times: Array) -> Quality:
    """How far `predicted` is from the measured `times` (both in one unit, above 0)."""
    errors = np.abs(predicted / times - 1.0)
    spread = float(((times - times.mean()) ** 2).sum())
    missed = float(((times - predicted) ** 2).sum())
    return Quality(
        len(times),
        1.0 - missed / spread if spread else float(missed == 0),
        float(np.median(errors)),
        float(np.quantile(errors, 0.9)),
        float(errors.mean()),
        float(np.quantile(errors, 0.95)),
    )
