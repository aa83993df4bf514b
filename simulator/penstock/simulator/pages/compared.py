"""The page of two scenarios side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.reports import Report
from penstock.simulator.compare import Compared, Figures, compare
from penstock.simulator.pages.html import figures, page, section, table
from penstock.simulator.pages.plots import latency_plots, scale_plot
from penstock.simulator.pages.words import interval_words, metric_words, spread_words

__all__ = ["HEAD", "Side", "compare_page", "row"]

HEAD = ("metric", "A", "B", "B / A", "B - A, 95 % interval", "B is")


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two."""

    name: str
    reports: Sequence[Report]
    """Those there are, at least one; `values` may be of more runs."""
    values: Figures


def compare_page(first: Side, second: Side) -> str:
    """HTML of two scenarios played with the same seeds."""
    found = compare(first.values, second.values)
    names = first.name, second.name
    named = [(f"A: {first.name}", first.reports), (f"B: {second.name}", second.reports)]
    seeds = len(found[0].difference.values)
    # The report of a replay has no curves.
    drawn = all("quantiles" in report.run for _, reports in named for report in reports)
    lead = (
        f"A is {names[0]}, B is {names[1]}; {seeds} seed{'s' if seeds > 1 else ''}, the same for both. B is called "
        "better or worse where the whole confidence interval of the paired difference is on one side of 0."
    )
    return page(
        f"Penstock twin: {names[0]} against {names[1]}",
        lead,
        (
            section("Metrics", "", table(HEAD, [row(one) for one in found], [one.verdict for one in found])),
            section("Objectives", "", figures([scale_plot(named), *latency_plots(named)]) if drawn else ""),
        ),
    )


def row(one: Compared, *, narrow: bool = False) -> list[str]:
    """A metric's cells under `HEAD`; `narrow`: only the means of A and B."""
    ratio = "-" if one.ratio is None else f"{one.ratio:.3f}"
    larger = max(abs(one.first.mean), abs(one.second.mean))
    first, second = (
        metric_words(one.metric, side.mean, larger) if narrow else spread_words(one.metric, side, larger)
        for side in (one.first, one.second)
    )
    return [
        one.metric.name,
        first,
        second,
        ratio,
        interval_words(one.metric, one.difference, larger),
        one.verdict,
    ]
