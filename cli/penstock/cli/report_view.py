"""Showing a run: a bar that moves on a terminal, a plain line now and then elsewhere, and the summary table."""

from __future__ import annotations

import time
from types import TracebackType

from penstock.cli.replay_run import Progress as RunProgress
from penstock.core.reports import Report, Summary, count
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

_PLAIN_EVERY_S = 10.0
_BAR_EVERY_S = 0.2
LATE_S = 0.05
"""Requests sent later than this against the trace mean that the sender, not the server, was the slow one."""


class _Verdicts(ProgressColumn):
    """Counts behind the bar."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("verdicts", "")))


class ProgressView:
    """Shows a run while it lasts; use it as a context manager and call `tick` as often as you like."""

    def __init__(self, console: Console, progress: RunProgress, ends_at_s: float) -> None:
        self._console, self._progress, self._ends_at_s = console, progress, ends_at_s
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("replay"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                _Verdicts(), TimeElapsedColumn(), console=console, auto_refresh=False,
            )  # fmt: skip
            self._task = self._bar.add_task("replay", total=progress.planned)
        self._began = self._last = time.monotonic()

    def __enter__(self) -> ProgressView:
        if self._bar:
            self._bar.start()
        else:
            self._console.print(f"replay: {self._progress.planned} requests over {self._ends_at_s:.0f} s")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._show()
        if self._bar:
            self._bar.stop()

    def tick(self) -> None:
        """Show the state of things if the last showing is old enough."""
        if time.monotonic() - self._last >= (_BAR_EVERY_S if self._bar else _PLAIN_EVERY_S):
            self._show()

    def _show(self) -> None:
        self._last = time.monotonic()
        done = len(self._progress.outcomes)
        if self._bar:
            self._bar.update(self._task, completed=done, verdicts=self._verdicts(), refresh=True)
        else:
            elapsed = self._last - self._began
            self._console.print(f"replay: {elapsed:4.0f} s, {done}/{self._progress.planned} {self._verdicts()}")

    def _verdicts(self) -> str:
        counts = count(self._progress.outcomes)
        bad = f", {counts.failed} failed, {counts.rejected} rejected" if counts.failed or counts.rejected else ""
        return f"{self._progress.in_flight} in flight{bad}"


def print_report(console: Console, report: Report, title: str = "replay") -> None:
    """The summary table, and a sentence for everything that makes the figures mean less."""
    table = Table(title=title, title_justify="left")
    for column in ("", "mean", "p50", "p90", "p99"):
        table.add_column(column, justify="left" if not column else "right")
    for name, summary in (("TTFT", report.ttft_seconds), ("TPOT", report.tpot_seconds), ("E2E", report.e2e_seconds)):
        table.add_row(name, *_cells(summary))
    console.print(table)
    for line in summary_lines(report) + warnings(report):
        console.print(line, highlight=False, soft_wrap=True)


def summary_lines(report: Report) -> list[str]:
    """The counts and ratios, a line each."""
    counts, goals = report.requests, report.objectives
    lines = [
        f"requests    {counts.total} sent: {counts.completed} completed, {counts.failed} failed, "
        f"{counts.rejected} rejected",
        f"attainment  {_ratio(report.attainment)} within TTFT {_time(goals.get('ttft_seconds'))} "
        f"and TPOT {_time(goals.get('tpot_seconds'))}",
        f"prefix hits {_ratio(report.prefix_hit_ratio)} of {report.prompt_tokens} prompt tokens",
        f"duration    {report.duration_seconds:.1f} s, {report.output_tokens} output tokens",
    ]
    return lines + [f"error       {number} x {kind}" for kind, number in report.errors.items()]


def warnings(report: Report) -> list[str]:
    """What a reader of the figures must know, a sentence each."""
    said: list[str] = []
    lag = report.schedule_lag_seconds.p99
    if lag is not None and lag > LATE_S:
        said.append(
            f"warning: this machine, not the server, was the bottleneck: "
            f"1 request in 100 went out {_time(lag)} late or later"
        )
    if held := report.run.get("held_back"):
        said.append(f"warning: {held} requests waited for --max-in-flight: the load was lower than the trace's")
    if report.short_outputs:
        said.append(f"note: {report.short_outputs} answers are shorter than asked for: the engine ended them by itself")
    if report.run.get("interrupted"):
        said.append("note: the run was interrupted; the report is of what was sent until then")
    return said


def _cells(summary: Summary) -> list[str]:
    return [_time(value) for value in (summary.mean, summary.p50, summary.p90, summary.p99)]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _ratio(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"
