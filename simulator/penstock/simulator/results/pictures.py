"""A record's picture: bars or lines with the 95 % interval over seeds, and what was published beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.simulator.pages.canvas import Draw, colour, picture, tidy
from penstock.simulator.results.record import Chart, ChartKind, Series, digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_chart"]

_INK = "#39434b"
_OF_OTHERS: dict[str, Any] = {"lw": 1.1, "marker": "o", "ms": 4, "mfc": "white", "mew": 1}
_XMLNS = b'<?xml version="1.0" encoding="utf-8"?>\n'


def draw_chart(chart: Chart) -> bytes:
    """The picture as an SVG file; the same chart, the same bytes."""
    draw = _bars(chart) if chart.kind is ChartKind.BARS else _lines(chart)
    return _XMLNS + picture(draw, width=7.2, height=3.4) + b"\n"


def _bars(chart: Chart) -> Draw:
    def draw(_: Figure, axes: Axes) -> None:
        count = len(chart.series)
        width = 0.78 / count
        for number, series in enumerate(chart.series):
            places = [point[0] + (number - (count - 1) / 2) * width for point in series.points]
            heights = [point[1] for point in series.points]
            tint = "#b9c2c9" if series.published else colour(number)
            axes.bar(places, heights, width * 0.94, color=tint, label=series.name, zorder=2)
            if not series.published:
                axes.errorbar(places, heights, _errors(series), fmt="none", ecolor=_INK, elinewidth=1, capsize=2.5)
            for place, point in zip(places, series.points, strict=True):
                axes.annotate(
                    digits(point[1]), (place, max(point[1], point[3])), (0, 3), textcoords="offset points",
                    ha="center", fontsize=7.5, color=_INK,
                )  # fmt: skip
        axes.set_xticks(range(len(chart.labels)), chart.labels)
        axes.grid(visible=False, axis="x")
        _finish(chart, axes)
        if count > 1:
            axes.legend(loc="best")

    return draw


def _lines(chart: Chart) -> Draw:
    def draw(_: Figure, axes: Axes) -> None:
        places = sorted({point[0] for series in chart.series for point in series.points})
        measured = [series for series in chart.series if not series.published]
        aside = 0.005 * (places[-1] - places[0])  # So that intervals at one place do not hide each other.
        tints = {series.name: colour(number) for number, series in enumerate(measured)}
        for number, series in enumerate(measured):
            across = [point[0] + (number - (len(measured) - 1) / 2) * aside for point in series.points]
            axes.errorbar(
                across, [point[1] for point in series.points], _errors(series), color=tints[series.name], marker="o",
                ms=4, capsize=2.5, elinewidth=0.9, label=series.name,
            )  # fmt: skip
        for series in chart.series:
            if series.published:
                points = [point[:2] for point in series.points]
                axes.plot(*zip(*points, strict=True), "--", color=tints.get(series.name, _INK), **_OF_OTHERS)
        if len(measured) < len(chart.series):
            axes.plot([], [], "--", color="#5b6770", label="published", **_OF_OTHERS)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        _finish(chart, axes)
        axes.legend(loc="best")

    return draw


def _finish(chart: Chart, axes: Axes) -> None:
    if chart.level is not None:
        axes.axhline(chart.level, color="#5b6770", lw=0.8, ls=(0, (2, 2)), zorder=1)
    tidy(axes, chart.title, chart.across, chart.up)
    if chart.logarithmic and chart.kind is ChartKind.LINES:  # The length of a bar means nothing on such a scale.
        from matplotlib.ticker import FuncFormatter, NullFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: digits(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.04, y=0.12)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]) if chart.kind is ChartKind.BARS else 0.0)


def _errors(series: Series) -> list[list[float]]:
    below = [max(0.0, point[1] - point[2]) for point in series.points]
    above = [max(0.0, point[3] - point[1]) for point in series.points]
    return [below, above]
