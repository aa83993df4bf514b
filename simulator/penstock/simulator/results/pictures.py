"""A record's picture: bars or lines with the 95 % interval over seeds, and what was published beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.simulator.pages.canvas import Draw, colour, picture, tidy
from penstock.simulator.results.record import Chart, ChartKind, Series, digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_chart"]

_INK = "#39434b"
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
        tints: dict[str, str] = {}
        for series in chart.series:
            tint = tints.setdefault(series.name, colour(len(tints)))
            across = [point[0] for point in series.points]
            means = [point[1] for point in series.points]
            if series.published:
                axes.plot(across, means, "--", color=tint, lw=1.1, marker="o", ms=3.5, mfc="white", mew=1)
                continue
            axes.plot(across, means, color=tint, marker="o", ms=3.5, label=series.name)
            low, high = [point[2] for point in series.points], [point[3] for point in series.points]
            axes.fill_between(across, low, high, color=tint, alpha=0.15, linewidth=0)
        if any(series.published for series in chart.series):
            axes.plot([], [], "--", color="#5b6770", lw=1.1, marker="o", ms=3.5, mfc="white", label="published")
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
