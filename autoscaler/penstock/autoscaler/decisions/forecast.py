"""Load at the time when a worker asked for now would serve: a level, an upper quantile, and what comes for sure.

No model is fitted: a model that needs a day of history is wrong on the first day. The level is what arrives. It is
looked at over a window and over ever shorter parts of it, since the longest look is the surest and the shortest sees a
step first: each look moves the level up by as much of the difference as stands out of its noise, from nothing at one
standard deviation to all of it at three, and brings its own doubt along. There is no moment at which a step is suddenly
believed, so that which arrivals one scrape happens to catch decides little.

The trend is the median slope between points of the recent past (Theil and Sen), which one outlier does not bend; the
spread is what the points did around their own neighbours, and never less than what independent arrivals do by chance
(the square root of their number).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

_TREND_POINTS = 24
"""Points the slope is taken from; 276 pairs."""
_NEIGHBOURS = 2


@dataclass(frozen=True, slots=True)
class Point:
    """A rate per second at a time in seconds."""

    at: float
    value: float


@dataclass(frozen=True, slots=True)
class Look:
    """A rate per second, measured over so many seconds."""

    rate: float
    span_s: float

    @property
    def chance(self) -> float:
        """Standard deviation of the rate where arrivals are independent: the square root of their number."""
        return math.sqrt(max(0.0, self.rate) / max(1.0, self.span_s))


@dataclass(frozen=True, slots=True)
class ForecastRules:
    """How careful a forecast is."""

    quantile: float = 0.95
    """The load stays below `upper` in this share of cases."""
    sure_quantile: float = 0.6
    """The load stays above `sure` in this share of cases."""
    trend_s: float = 120.0
    """How far back the trend looks."""
    trend_limit: float = 0.3
    """A trend adds at most this share of the level: a step is no ramp that goes on."""
    quiet_deviations: float = 1.0
    """A look that lies above the longer ones by so many standard deviations of chance, or fewer, is noise..."""
    step_deviations: float = 3.0
    """...and by so many, or more, a step; in between it is believed in part."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Requests per second."""

    level: float
    upper: float
    sure: float = 0.0
    """What comes even if chance was with the looks; no trend is counted."""


def forecast(
    history: Sequence[Point], at: float, looks: Sequence[Look], ahead_s: float, rules: ForecastRules = ForecastRules()
) -> Forecast:
    """The load `ahead_s` from `at`.

    `looks` are the rates over windows that end then, the longest first; `history` holds earlier values of the longest,
    oldest first. Raises ValueError without any look.
    """
    level, doubt = _level(looks, rules)
    points = [point for point in (*history, Point(at, looks[0].rate)) if point.at >= at - rules.trend_s]
    growth = min(max(0.0, slope(points) * ahead_s), rules.trend_limit * level)
    hedge, discount = (statistics.NormalDist().inv_cdf(share) for share in (rules.quantile, rules.sure_quantile))
    spread = max(roughness(points), doubt)
    return Forecast(level + growth, level + growth + hedge * spread, max(0.0, level - discount * spread))


def _level(looks: Sequence[Look], rules: ForecastRules) -> tuple[float, float]:
    """What arrives, and its standard deviation by chance."""
    if not looks:
        raise ValueError("a forecast needs at least one look at the load")
    level, doubt = looks[0].rate, looks[0].chance
    for look in looks[1:]:
        deviations = (look.rate - level) / look.chance if look.chance else 0.0
        belief = _belief(deviations, rules)
        level += belief * max(0.0, look.rate - level)
        doubt = math.hypot(belief * look.chance, (1.0 - belief) * doubt)
    return level, doubt


def _belief(deviations: float, rules: ForecastRules) -> float:
    """Share of a difference that is believed, by how far a shorter look lies above the longer ones."""
    return min(1.0, max(0.0, (deviations - rules.quiet_deviations) / (rules.step_deviations - rules.quiet_deviations)))


def slope(points: Sequence[Point]) -> float:
    """Median slope per second over all pairs of (at most 24, evenly chosen) points; 0 for fewer than three."""
    if len(points) < 3:
        return 0.0
    step = max(1, math.ceil(len(points) / _TREND_POINTS))
    chosen = points[::-1][::step]
    slopes = [(a.value - b.value) / (a.at - b.at) for a, b in combinations(chosen, 2) if a.at != b.at]
    return statistics.median(slopes) if slopes else 0.0


def roughness(points: Sequence[Point]) -> float:
    """Standard deviation of the points around the median of their neighbours, from the median absolute deviation."""
    values = [point.value for point in points]
    if len(values) < 2 * _NEIGHBOURS + 1:
        return 0.0
    around = [
        abs(value - statistics.median(values[max(0, at - _NEIGHBOURS) : at + _NEIGHBOURS + 1]))
        for at, value in enumerate(values)
    ]
    return 1.4826 * statistics.median(around)
