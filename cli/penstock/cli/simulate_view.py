"""Showing a simulation: a bar while it lasts, then the tables of what users saw and of what it took."""

from __future__ import annotations

import time
from types import TracebackType

from penstock.cli.report_view import print_report
from penstock.core.reports import Report
from penstock.simulator import Resources
from penstock.simulator.report import ClassUse
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_PLAIN_EVERY_S = 10.0
_BAR_EVERY_S = 0.1


class ProgressView:
    """A bar on a terminal, a plain line now and then elsewhere; a context manager."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("simulate"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                console=console, auto_refresh=False,
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
            self._console.print(f"simulate: {done}/{total} requests", highlight=False)


def print_simulation(console: Console, report: Report, resources: Resources) -> None:
    """What users saw, as replay shows it, and what it took."""
    print_report(console, report, title="simulate")
    table = Table(title="resources", title_justify="left")
    for column in ("class", "workers", "accelerators", "busy", "GPU hours", "cost", "energy"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, use in resources.classes.items():
        table.add_row(name, *_cells(use))
    if len(resources.classes) > 1:
        table.add_row("all", *_cells(resources.total))
    console.print(table)


def _cells(use: ClassUse) -> list[str]:
    busy = "-" if use.busy_share is None else f"{use.busy_share:.1%}"
    energy = f"{use.joules / 3.6e6:.3g} kWh"
    return [str(use.workers), str(use.accelerators), busy, f"{use.gpu_hours:.2f}", f"{use.cost_usd:.2f} USD", energy]
