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
_FAR, _EXACT = 5.0, 1e-3  # Times the median error from which a sample is left out; errors so small never are.


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
    the first answer. `kinds` numbers the kinds of equations (default: all of one kind): what is far is judged within
    each of them, since one kind may be noisier than another."""
    kinds = np.zeros(len(times), dtype=np.int_) if kinds is None else kinds
    scaled = rows / times[:, None]
    found = non_negative_least_squares(scaled, np.ones(len(times)))
    errors = np.abs(scaled @ found - 1.0)
    near = np.ones(len(times), dtype=bool)
    for kind in np.unique(kinds):
        mine = kinds == kind
        near[mine] = errors[mine] <= _FAR * np.median(errors[mine]) + _EXACT
    return found if near.all() else non_negative_least_squares(scaled[near], np.ones(int(near.sum())))


def non_negative_least_squares(rows: Array, values: Array) -> Array:
    """x >= 0 with the least |rows x - values|; for few unknowns, whose every subset can be tried.

    The best solution is an ordinary least-squares solution in those unknowns that are not 0, so the best of all subsets
    that come out positive is the answer. Columns are scaled first: squared tokens are millions, a constant is 1.
    """
    scale = np.linalg.norm(rows, axis=0)
    scale[scale == 0] = 1.0
    scaled, unknowns = rows / scale, rows.shape[1]
    best, least = np.zeros(unknowns), float(np.linalg.norm(values))
    for size in range(1, unknowns + 1):
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
