"""Load at the time when a worker asked for now would serve, as a level and an upper quantile.

No model is fitted: a model that needs a day of history is wrong on the first day. The level is what arrives, where a
step is believed as soon as it stands out of the noise, and then taken for what the short look says, with the doubt of a
short look; the trend is the median slope between points of the recent past
(Theil and Sen), which one outlier does not bend; the spread is what the points did around their own neighbours, and
never less than what independent arrivals do by chance (the square root of their number).
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
class ForecastRules:
    """How careful a forecast is."""

    quantile: float = 0.9
    """The load stays below `upper` in this share of cases."""
    trend_s: float = 120.0
    """How far back the trend looks."""
    trend_limit: float = 0.3
    """A trend adds at most this share of the level: a step is no ramp that goes on."""
    step_deviations: float = 3.0
    """Standard deviations of chance by which the short look must lie above the long one to be a step, and no noise."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Requests per second."""

    level: float
    upper: float


def forecast(
    history: Sequence[Point],
    slow: Point,
    recent: float,
    spans: tuple[float, float],
    ahead_s: float,
    rules: ForecastRules = ForecastRules(),
) -> Forecast:
    """The load `ahead_s` from `slow.at`.

    `slow` and `recent` are the rates over the long and the short window, `spans` those windows' seconds; `history`
    holds earlier values of `slow`, oldest first.
    """
    slow_span, recent_span = (max(1.0, span) for span in spans)
    chance = math.sqrt(max(0.0, recent) / recent_span)
    step = recent - rules.step_deviations * chance > slow.value
    # Short of a step one standard deviation is taken off the short look, so that quiet noise does not raise the level.
    level = recent if step else max(slow.value, recent - chance)
    points = [point for point in (*history, slow) if point.at >= slow.at - rules.trend_s]
    growth = min(max(0.0, slope(points) * ahead_s), rules.trend_limit * level)
    deviations = statistics.NormalDist().inv_cdf(rules.quantile)
    spread = max(roughness(points), chance if step else math.sqrt(level / slow_span))
    return Forecast(level + growth, level + growth + deviations * spread)


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
