"""Figures as people read them."""

from __future__ import annotations

from penstock.simulator.study import Metric, Spread

__all__ = ["amount", "interval_words", "metric_words", "share", "spread_words", "time_words"]

_SHARES = {"attainment", "completed", "prefix hits", "utilisation"}


def time_words(seconds: float | None) -> str:
    """Milliseconds below a second, else seconds."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f} ms" if abs(seconds) < 1 else f"{seconds:.2f} s"


def share(value: float | None) -> str:
    """Percent."""
    return "-" if value is None else f"{100 * value:.1f} %"


def amount(value: float | None, unit: str = "", like: float | None = None) -> str:
    """Three digits that count, and the unit; energy in the unit that fits, or that fits what is `like` it."""
    if value is None:
        return "-"
    if unit == "J" and abs(value if like is None else like) >= 3.6e5:
        value, unit = value / 3.6e6, "kWh"
    elif unit == "J" and abs(value if like is None else like) >= 1e4:
        value, unit = value / 1e3, "kJ"
    said = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{said} {unit}".rstrip()


def metric_words(metric: Metric, value: float | None, like: float | None = None) -> str:
    """A metric's value in its own unit; energy in that of the value it is `like`, so that a row has one unit."""
    if metric.name in _SHARES:
        return share(value)
    return time_words(value) if metric.unit == "s" else amount(value, metric.unit, like)


def spread_words(metric: Metric, spread: Spread, like: float | None = None) -> str:
    """The mean, and half the width of its interval where there is one; in the unit of the mean, if `like` is None."""
    like = spread.mean if like is None else like
    said = metric_words(metric, spread.mean, like)
    return said if spread.high is None else _joined(said, " ± ", metric_words(metric, spread.high - spread.mean, like))


def interval_words(metric: Metric, spread: Spread, like: float | None = None) -> str:
    """From .. to .., or a dash where one seed says nothing; in the unit of the mean, if `like` is None."""
    if spread.low is None or spread.high is None:
        return "-"
    like = spread.mean if like is None else like
    return _joined(metric_words(metric, spread.low, like), " to ", metric_words(metric, spread.high, like))


def _joined(one: str, between: str, other: str) -> str:
    """Two figures with one unit say it once."""
    figure, _, unit = one.partition(" ")
    return f"{figure}{between}{other}" if unit == other.partition(" ")[2] else f"{one}{between}{other}"
