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


def amount(value: float | None, unit: str = "") -> str:
    """Three digits that count, and the unit; energy in the unit that fits."""
    if value is None:
        return "-"
    if unit == "J" and abs(value) >= 3.6e5:
        value, unit = value / 3.6e6, "kWh"
    said = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{said} {unit}".rstrip()


def metric_words(metric: Metric, value: float | None) -> str:
    """A metric's value in its own unit."""
    if metric.name in _SHARES:
        return share(value)
    return time_words(value) if metric.unit == "s" else amount(value, metric.unit)


def spread_words(metric: Metric, spread: Spread) -> str:
    """The mean, and half the width of its interval where there is one."""
    said = metric_words(metric, spread.mean)
    return said if spread.high is None else f"{said} ± {metric_words(metric, spread.high - spread.mean)}"


def interval_words(metric: Metric, spread: Spread) -> str:
    """From .. to .., or a dash where one seed says nothing."""
    if spread.low is None or spread.high is None:
        return "-"
    return f"{metric_words(metric, spread.low)} to {metric_words(metric, spread.high)}"
