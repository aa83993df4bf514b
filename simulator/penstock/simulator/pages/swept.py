"""The page of a grid of scenarios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.simulator.pages.canvas import Draw
from penstock.simulator.pages.html import figures, page, section, table
from penstock.simulator.pages.plots import sweep_plot
from penstock.simulator.pages.words import metric_words, spread_words
from penstock.simulator.study import METRICS, Metric, Spread
from penstock.simulator.sweep import Axis

__all__ = ["SHOWN", "Row", "narrow_head", "sweep_page", "sweep_rows"]

SHOWN = ("attainment", "goodput", "TTFT p99", "TPOT p99", "utilisation", "cost per 1000 good")
"""Metrics of the table and the plots."""

_IN_HEAD = ("req/s", "USD")

Row = tuple[tuple[Any, ...], Mapping[str, Spread]]
"""A scenario's values, in the order of axes, and its metrics over seeds."""


def sweep_page(name: str, axes: Sequence[Axis], rows: Sequence[Row]) -> str:
    """HTML of a grid: a table of all scenarios, and each metric over the first axis that is of numbers."""
    head = (*(axis.path for axis in axes), *SHOWN)
    return page(
        f"Penstock twin: sweep of {name}",
        f"{len(rows)} scenarios; means over seeds, plus and minus half of their 95 % confidence intervals.",
        (
            section("Course", "", figures(_plots(axes, rows))),
            section("Scenarios", "", table(head, sweep_rows(rows), words=_named(axes))),
        ),
    )


def narrow_head() -> list[str]:
    """The metrics of `SHOWN` with the units that narrow cells leave out."""
    return [f"{name} {_metric(name).unit}" if _metric(name).unit in _IN_HEAD else name for name in SHOWN]


def sweep_rows(rows: Sequence[Row], *, narrow: bool = False) -> list[list[str]]:
    """The cells of every scenario: its values, then the metrics of `SHOWN`; `narrow`: means under `narrow_head`."""
    return [
        [*(str(value) for value in values), *(_cell(_metric(name), found.get(name), narrow) for name in SHOWN)]
        for values, found in rows
    ]


def _cell(metric: Metric, spread: Spread | None, narrow: bool) -> str:
    if spread is None:
        return "-"
    if not narrow:
        return spread_words(metric, spread)
    said = metric_words(metric, spread.mean)
    return said.partition(" ")[0] if metric.unit in _IN_HEAD else said


def _plots(axes: Sequence[Axis], rows: Sequence[Row]) -> list[Draw]:
    across = next((at for at, axis in enumerate(axes) if all(_number(value) for value in axis.values)), None)
    if across is None:
        return []
    drawn = []
    for name in SHOWN:
        lines: dict[str, list[tuple[float, Spread]]] = {}
        for values, found in rows:
            rest = ", ".join(str(value) for at, value in enumerate(values) if at != across)
            if name in found:
                lines.setdefault(rest, []).append((float(values[across]), found[name]))
        if lines:
            drawn.append(sweep_plot(name, _metric(name).unit, axes[across].path, lines))
    return drawn


def _named(axes: Sequence[Axis]) -> list[str]:
    """Axes of words."""
    return [axis.path for axis in axes if not all(_number(value) for value in axis.values)]


def _metric(name: str) -> Metric:
    return next(metric for metric in METRICS if metric.name == name)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
