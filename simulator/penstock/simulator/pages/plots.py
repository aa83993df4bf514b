"""What each plot of a report shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.core.reports import Report
from penstock.simulator.pages.canvas import Draw, colour, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["course_plots", "latency_plots", "scale_plot", "sweep_plot"]

Named = Sequence[tuple[str, Sequence[Report]]]
"""Scenarios by name, each with a report for every seed."""


def scale_plot(named: Named) -> Draw:
    """Attainment over scaled objectives: the mean over seeds, and all of them as a band."""

    def draw(_: Figure, axes: Axes) -> None:
        for number, (name, reports) in enumerate(named):
            curves = [report.run["attainment_by_scale"] for report in reports]
            if any(point["attainment"] is None for curve in curves for point in curve):
                continue
            scales = [point["scale"] for point in curves[0]]
            both = _columns(curves, "attainment")
            said = name if len(named) > 1 else "both objectives"
            axes.plot(scales, [_mean(values) for values in both], color=colour(number), marker="o", ms=3, label=said)
            if len(curves) > 1:
                low, high = [min(values) for values in both], [max(values) for values in both]
                axes.fill_between(scales, low, high, color=colour(number), alpha=0.18, linewidth=0)
            if len(named) == 1:
                for place, part in enumerate(("ttft", "tpot")):
                    means = [_mean(values) for values in _columns(curves, part)]
                    axes.plot(scales, means, "--", color=colour(place + 1), lw=1.2, label=f"{part.upper()} alone")
        axes.axvline(1.0, color="#5b6770", lw=0.8, ls=(0, (2, 2)))
        axes.set_ylim(-0.02, 1.03)
        axes.yaxis.set_major_formatter(_percent())
        tidy(axes, "Attainment over scaled objectives", "objectives times", "of all requests")
        axes.legend(loc="lower right")

    return draw


def latency_plots(named: Named) -> list[Draw]:
    """How TTFT and TPOT are spread, over all completed requests of the first seed, with the objective."""
    return [
        _spread(named, "ttft_s", "ttft_seconds", "Time to first token"),
        _spread(named, "tpot_s", "tpot_seconds", "Time per output token"),
    ]


def _spread(named: Named, which: str, objective: str, title: str) -> Draw:
    def draw(_: Figure, axes: Axes) -> None:
        shares = [percent / 100 for percent in range(101)]
        for number, (name, reports) in enumerate(named):
            quantiles = reports[0].run["quantiles"][which]
            if quantiles:
                said = name if len(named) > 1 else "requests"
                axes.plot([max(1e3 * value, 1e-3) for value in quantiles], shares, color=colour(number), label=said)
        goal = named[0][1][0].objectives.get(objective)
        if goal:
            axes.axvline(1e3 * goal, color="#5b6770", lw=0.8, ls=(0, (2, 2)), label="objective")
        axes.set_xscale("log")
        _logarithmic(axes.xaxis)
        axes.yaxis.set_major_formatter(_percent())
        tidy(axes, title, "milliseconds", "of completed requests")
        axes.legend(loc="lower right")

    return draw


def course_plots(report: Report) -> list[Draw]:
    """The run's course: load, latency, use, power, one plot each over the same time."""
    course = report.run["timeline"]
    if not course:
        return []
    goal = report.objectives.get("ttft_seconds")
    return [
        _course(course, "Requests a second", "", [("sent", "sent_per_s"), ("completed", "completed_per_s")]),
        _course(
            course, "Under way", "requests",
            [("in flight", "in_flight"), ("in batches", "running"), ("waiting", "waiting")],
        ),
        _course(
            course, "TTFT by sending", "seconds", [("p50", "ttft_p50_s"), ("p99", "ttft_p99_s")],
            log=True, goal=goal,
        ),
        _course(course, "Workers ready", "", [("ready", "workers_ready")], whole=True),
        _course(course, "Use", "", [("time in passes", "utilisation"), ("KV cache", "kv_usage")], percent=True),
        _course(course, "Power of the accelerators", "kW", [("mean draw", "watts")], factor=1e-3),
    ]  # fmt: skip


def _course(
    course: Sequence[Mapping[str, Any]],
    title: str,
    unit: str,
    series: Sequence[tuple[str, str]],
    *,
    log: bool = False,
    percent: bool = False,
    whole: bool = False,
    factor: float = 1.0,
    goal: float | None = None,
) -> Draw:
    def draw(_: Figure, axes: Axes) -> None:
        edges = [one["start_s"] for one in course] + [course[-1]["end_s"]]
        for number, (name, key) in enumerate(series):
            values = [float("nan") if one[key] is None else one[key] * factor for one in course]
            axes.stairs(values, edges, color=colour(number), label=name, baseline=None, lw=1.5)
        if goal is not None:
            axes.axhline(goal, color="#5b6770", lw=0.8, ls=(0, (2, 2)), label="objective")
        if log:
            axes.set_yscale("log")
            _logarithmic(axes.yaxis)
        else:
            axes.set_ylim(0, 1.03 if percent else 1.1 * max(axes.get_ylim()[1], 1e-9))
        if percent:
            axes.yaxis.set_major_formatter(_percent())
        if whole:
            axes.locator_params(axis="y", integer=True)
        tidy(axes, title, "seconds", unit)
        axes.set_xlim(0.0, edges[-1])
        if len(series) > 1 or goal is not None:
            axes.legend(
                loc="lower right",
                ncols=3,
                bbox_to_anchor=(1.0, 1.0),
                borderaxespad=0.1,
                columnspacing=1.0,
                handlelength=1.4,
            )

    return draw


def sweep_plot(title: str, unit: str, across: str, lines: Mapping[str, Sequence[tuple[float, Any]]]) -> Draw:
    """A metric over a parameter: for each line its points (parameter, spread), with the 95 % intervals as bars."""

    def draw(_: Figure, axes: Axes) -> None:
        for number, (name, points) in enumerate(lines.items()):
            at = [place for place, _ in points]
            means = [spread.mean for _, spread in points]
            below = [0.0 if spread.low is None else spread.mean - spread.low for _, spread in points]
            above = [0.0 if spread.high is None else spread.high - spread.mean for _, spread in points]
            axes.errorbar(
                at,
                means,
                yerr=[below, above],
                color=colour(number),
                marker="o",
                ms=3.5,
                capsize=2.5,
                lw=1.5,
                label=name,
            )
        axes.set_ylim(bottom=0)
        tidy(axes, title, across, unit)
        axes.margins(x=0.04)
        if len(lines) > 1:
            axes.legend(loc="best")

    return draw


def _columns(curves: Sequence[Sequence[Mapping[str, float]]], key: str) -> list[list[float]]:
    """Values of each point over all curves."""
    return [[curve[at][key] for curve in curves] for at in range(len(curves[0]))]


def _logarithmic(axis: Axis) -> None:
    """Marks of a logarithmic axis as plain numbers, no more of them than can be read."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = axis.get_view_interval()
    wide = high > 30 * low
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if wide else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent() -> Callable[[float, Any], str]:
    return lambda value, _: f"{100 * value:.0f} %"
