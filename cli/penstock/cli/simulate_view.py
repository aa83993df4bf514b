"""Showing a simulation: a bar while it lasts, then the tables of what users saw and of what it took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from penstock.cli.report_view import print_report
from penstock.core.reports import Report
from penstock.simulator.compare import Compared
from penstock.simulator.pages import compared, swept
from penstock.simulator.pages.scaled import change_cells, scaling_facts
from penstock.simulator.pages.words import amount, interval_words, metric_words, share, time_words
from penstock.simulator.study import METRICS, Spread
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_PLAIN_EVERY_S = 10.0
_BAR_EVERY_S = 0.1


class ProgressView:
    """A bar on a terminal, a plain line now and then elsewhere; a context manager."""

    def __init__(self, console: Console, total: int, what: str) -> None:
        """`what` is counted, such as requests."""
        self._console, self._what = console, what
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn(f"simulate {what}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TimeRemainingColumn(), console=console, auto_refresh=False,
            )  # fmt: skip
            self._task = self._bar.add_task("simulate", total=total)
        self._last = time.monotonic()

    def __enter__(self) -> ProgressView:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar:
            self._bar.refresh()
            self._bar.stop()

    def show(self, done: int, total: int) -> None:
        """Say how far it is, if the last saying is old enough or this is the end."""
        now = time.monotonic()
        if now - self._last < (_BAR_EVERY_S if self._bar else _PLAIN_EVERY_S) and done < total:
            return
        self._last = now
        if self._bar:
            self._bar.update(self._task, completed=done, refresh=True)
        elif done < total:
            self._console.print(f"simulate: {done}/{total} {self._what}", highlight=False)


def print_simulation(console: Console, report: Report, title: str = "simulate") -> None:
    """What users saw, as replay shows it, how it bends with the objectives, and what it took."""
    print_report(console, report, title=title)
    _print_scales(console, report)
    for kind in ("tenants", "models"):
        _print_groups(console, kind, report.run.get(kind, {}))
    table = _table("resources", ("class", "workers", "accelerators", "busy", "GPU hours", "cost", "energy"))
    resources = report.run["resources"]
    for name, use in resources["classes"].items():
        table.add_row(name, *_cells(use))
    if len(resources["classes"]) > 1:
        table.add_row("all", *_cells(resources["total"]))
    console.print(table)
    _print_scaling(console, report.run.get("scaling"))
    for use in report.run.get("power", ()):
        budget = "no budget" if use["budget_w"] is None else f"above {use['budget_w']:.0f} W for {use['over_s']:.0f} s"
        said = f"{use['name']}: {use['mean_w']:.0f} W, at most {use['peak_w']:.0f} W, {budget}"
        console.print(f"power       {said}", highlight=False, markup=False, soft_wrap=True)


def _print_scaling(console: Console, scaling: Mapping[str, Any] | None) -> None:
    """What the autoscaler did, change by change, and why."""
    if scaling is None:
        return
    table = _table("scaling", ("at", "pool", "workers", "why"), left=4)
    for change in scaling["changes"]:
        table.add_row(*change_cells(change))
    console.print(table)
    console.print(f"scaling     {'; '.join(scaling_facts(scaling))}", highlight=False, markup=False, soft_wrap=True)


def print_over_seeds(console: Console, found: Mapping[str, Spread], seeds: int) -> None:
    """Means and confidence intervals over seeds."""
    table = _table(f"over {seeds} seeds", ("metric", "mean", "95 % interval"))
    for metric in METRICS:
        if metric.name in found:
            spread = found[metric.name]
            table.add_row(metric.name, metric_words(metric, spread.mean), interval_words(metric, spread))
    console.print(table)
    if all(len(set(spread.values)) == 1 for spread in found.values()):
        console.print("note: all seeds came out alike: nothing in this scenario is left to chance", highlight=False)


def print_compared(console: Console, found: Sequence[Compared], names: tuple[str, str]) -> None:
    """Two scenarios, metric by metric."""
    table = _table(f"A: {names[0]}, B: {names[1]}", compared.HEAD)
    styles = {"better": "green", "worse": "red"}
    for one in found:
        table.add_row(*compared.row(one, narrow=True), style=styles.get(one.verdict, ""))
    console.print(table)


def print_swept(console: Console, fields: Sequence[str], rows: Sequence[swept.Row]) -> None:
    """Every scenario of a grid, a line each."""
    # The last word of a field's path is enough to tell columns apart on a terminal.
    words = [field.rsplit(".", 1)[-1] for field in fields]
    table = _table("sweep", (*words, *swept.narrow_head()), left=len(fields))
    for column in table.columns[: len(fields)]:
        column.no_wrap = True
    for row in swept.sweep_rows(rows, narrow=True):
        table.add_row(*row)
    console.print(table)


def _print_scales(console: Console, report: Report) -> None:
    wanted = [point for point in report.run["attainment_by_scale"] if point["scale"] in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)]
    table = _table("attainment", ("objectives x", *(f"{point['scale']:g}" for point in wanted)))
    table.add_row("both", *(share(point["attainment"]) for point in wanted))
    table.add_row("TTFT alone", *(share(point["ttft"]) for point in wanted))
    table.add_row("TPOT alone", *(share(point["tpot"]) for point in wanted))
    console.print(table)


def _print_groups(console: Console, title: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    if not found:
        return
    table = _table(title, ("", "requests", "attainment", "TTFT p50", "TTFT p99", "TPOT p50"))
    for name, one in found.items():
        ttft, tpot = one["ttft_seconds"], one["tpot_seconds"]
        table.add_row(
            name or "(none)", str(one["requests"]), share(one["attainment"]), time_words(ttft["p50"]),
            time_words(ttft["p99"]), time_words(tpot["p50"]),
        )  # fmt: skip
    console.print(table)


def _table(title: str, columns: Sequence[str], left: int = 1) -> Table:
    """A table whose first columns are of words."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="left" if number < left else "right")
    return table


def _cells(use: Mapping[str, Any]) -> list[str]:
    busy = "-" if use["busy_share"] is None else f"{use['busy_share']:.1%}"
    energy = amount(use["joules"], "J")
    return [
        str(use["workers"]), str(use["accelerators"]), busy, f"{use['gpu_hours']:.2f}", f"{use['cost_usd']:.2f} USD",
        energy,
    ]  # fmt: skip
