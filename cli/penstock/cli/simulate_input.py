"""What `simulate`, `compare` and `sweep` are given: scenario files, traces beside them, reports of earlier runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.cli.replay_trace import TraceError, read_trace
from penstock.core.reports import Report
from penstock.core.traces import ParsedTrace, Trace
from penstock.simulator.files import ScenarioError, ScenarioForm, Traces, check_scenario, parse_scenario, write_scenario
from penstock.simulator.study import figures_of
from penstock.simulator.sweep import Axis, grid, parse_axis

__all__ = [
    "Earlier", "changed", "check_writable", "open_traces", "read_report", "read_scenario", "save_scenario", "write",
]  # fmt: skip

_LARGEST_SCENARIO = 1 << 20


@dataclass(frozen=True, slots=True)
class Earlier:
    """A report read from a file, and its metrics over as many seeds as it is of."""

    report: Report
    values: dict[str, tuple[float, ...]]
    seeds: tuple[int, ...]
    """Of the twin's runs, in the order of values; none for the replay of a cluster, which no seed repeats."""


def open_traces(folder: Path, say: Callable[[str], None]) -> Traces:
    """Traces by their names relative to `folder`; what is worth knowing of each is said once."""

    def read(file: str, skip_bad: bool) -> Trace:
        parsed = read_trace(folder / file, skip_bad=skip_bad)
        for note in _notes(parsed):
            say(f"{file}: {note}")
        return parsed.trace

    return Traces(read)


def _notes(parsed: ParsedTrace) -> list[str]:
    notes = [f"{len(parsed.trace.requests)} requests over {parsed.trace.duration_s:.0f} s ({parsed.format})"]
    if parsed.skipped:
        first = parsed.skipped[0]
        notes.append(f"{len(parsed.skipped)} bad lines left out, the first one line {first.number}: {first.reason}")
    if parsed.unanswered:
        notes.append(f"{parsed.unanswered} requests left out: they failed where they were recorded")
    return notes


def read_scenario(path: Path) -> ScenarioForm:
    """The scenario in a file. Raises `ScenarioError` with file, field and what to write."""
    return parse_scenario(_text(path), str(path))


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_SCENARIO:
            raise ScenarioError(f"{path}: is no scenario: it is larger than {_LARGEST_SCENARIO} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ScenarioError(f"{path}: is not text") from None


def read_report(path: Path) -> Earlier:
    """The report that `simulate --json` or `replay --json` wrote. Raises ValueError with file and reason."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        report = Report.from_dict(data)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: is no report of penstock simulate or replay: {error}") from None
    return Earlier(report, _values(report), _seeds(report))


def _values(report: Report) -> dict[str, tuple[float, ...]]:
    metrics = report.run.get("over_seeds", {}).get("metrics")
    if metrics is None:
        return figures_of([report])
    return {name: tuple(spread["values"]) for name, spread in metrics.items()}


def _seeds(report: Report) -> tuple[int, ...]:
    run = report.run
    if "scenario" not in run:
        return ()
    return tuple(run.get("over_seeds", {}).get("seeds", (run["seed"],)))


def changed(form: ScenarioForm, settings: list[str], name: str) -> ScenarioForm:
    """The scenario with some fields set (`field=value`). Raises ValueError for what cannot be set."""
    axes = [parse_axis(setting) for setting in settings]
    for axis, setting in zip(axes, settings, strict=True):
        if len(axis.values) != 1:
            raise ValueError(f"--set {setting} gives {axis.path} several values; penstock sweep takes those")
    return grid(form, axes, name)[0].form if axes else form


def save_scenario(form: ScenarioForm, path: Path, folder: Path) -> None:
    """Write a scenario whose traces go by their place relative to `folder` so that it finds them from its own."""
    data = form.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for keys in (("trace", "file"), ("arrivals", "fit"), ("lengths", "like")):
        part = data["workload"].get(keys[0]) or {}
        if part.get(keys[1]):
            part[keys[1]] = os.path.relpath(folder / part[keys[1]], path.absolute().parent)
    write(path, write_scenario(check_scenario(data, str(path))))


def check_writable(*files: Path | None) -> None:
    """What cannot be written is found out now, not after the run."""
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            raise ValueError(f"{file} cannot be written: its folder does not exist")


def write(path: Path, text: str) -> None:
    """Write a file. Raises ValueError with the reason where that is not possible."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None


Axes = list[Axis]
Errors = (TraceError, ValueError)
"""What input may raise, each with a sentence for the user."""
