"""`penstock simulate`: plays a workload through the twin, a simulated cluster that runs the router's own decisions.

Exit code 0 means that every request was completed, 1 that not all were, 2 that nothing was simulated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from penstock.cli import simulate_options as options
from penstock.cli.simulate_input import (
    Errors,
    changed,
    check_writable,
    open_traces,
    read_scenario,
    save_scenario,
    write,
)
from penstock.cli.simulate_options import BY_FLAGS, form_of_flags
from penstock.cli.simulate_view import ProgressView, print_over_seeds, print_simulation
from penstock.core.reports import Report
from penstock.simulator.files import ScenarioError, ScenarioForm, Traces
from penstock.simulator.pages import run_page
from penstock.simulator.study import Prepared, over_seeds, play_all, prepare, spreads
from rich.console import Console

NOT_ALL_COMPLETED = 1
NOTHING_SIMULATED = 2

_Scenario = Annotated[Path | None, typer.Argument(metavar="[SCENARIO.yaml]", help="A scenario file; else give flags.")]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be simulated, all of it read and checked."""

    name: str
    form: ScenarioForm
    traces: Traces
    folder: Path
    first: Prepared
    seeds: tuple[int, ...]


def simulate_command(
    scenario: _Scenario = None,
    trace: options.TraceFile = None,
    model: options.Model = None,
    nodes: options.Nodes = None,
    policy: options.Policy = None,
    tensor: options.Tensor = None,
    limit: options.Limit = None,
    rate_scale: options.RateScale = None,
    arrivals: options.Arrivals = None,
    rate: options.Rate = None,
    duration: options.For = None,
    cv: options.Cv = None,
    kv_capacity: options.Capacity = None,
    block_size: options.BlockSize = None,
    max_context: options.MaxContext = None,
    max_num_batched_tokens: options.Batched = None,
    max_num_seqs: options.Seqs = None,
    ttft: options.Objective = None,
    tpot: options.Objective = None,
    seed: options.Seed = None,
    seeds: options.Seeds = 1,
    keep_bursts: options.KeepBursts = False,
    skip_bad: options.SkipBad = False,
    cold: options.Cold = False,
    settings: options.Set = None,
    json_file: options.Json = None,
    html_file: options.Html = None,
    save_file: options.Save = None,
) -> None:
    """Play a workload through a simulated cluster that runs the router's own decisions, and report as replay does."""
    flags = {
        "trace": trace, "model": model, "nodes": nodes, "policy": policy, "tensor": tensor, "limit": limit,
        "rate_scale": rate_scale, "arrivals": arrivals, "rate": rate, "duration": duration, "cv": cv,
        "kv_capacity": kv_capacity, "block_size": block_size, "max_context": max_context,
        "max_num_batched_tokens": max_num_batched_tokens, "max_num_seqs": max_num_seqs, "ttft": ttft, "tpot": tpot,
        "keep_bursts": keep_bursts or None, "skip_bad": skip_bad or None, "cold": cold or None,
    }  # fmt: skip
    console = Console(stderr=True)
    try:
        check_writable(json_file, html_file, save_file)
        asked = _ask(scenario, flags, seed, seeds, settings or [], console)
        if save_file is not None:
            save_scenario(asked.form, save_file, asked.folder)
        reports = _play(asked, console)
        _show(asked, reports)
        _write(asked, reports, json_file, html_file)
    except Errors as error:
        console.print(f"penstock simulate: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(NOTHING_SIMULATED) from None
    whole = all(report.requests.completed == report.requests.total for report in reports)
    raise typer.Exit(0 if whole else NOT_ALL_COMPLETED)


def _ask(
    file: Path | None, flags: dict[str, Any], seed: int | None, seeds: int, settings: list[str], console: Console
) -> _Asked:
    """Read scenario and traces, and see that there can be such a cluster; raises before anything is simulated."""
    form = form_of_flags(flags) if file is None else _of_file(file, flags)
    name = BY_FLAGS if file is None else str(file)
    form = changed(form, settings, name)
    folder = Path() if file is None else file.parent
    if seed is not None:
        form = form.model_copy(update={"seed": seed})
    traces = open_traces(folder, lambda note: _say(console, note))
    first = prepare(form, traces, form.seed)
    for note in _notes(first):
        _say(console, note)
    title = _title(form) if file is None else file.stem
    return _Asked(title, form, traces, folder, first, tuple(range(form.seed, form.seed + seeds)))


def _of_file(file: Path, flags: dict[str, Any]) -> ScenarioForm:
    given = [name for name, value in flags.items() if value is not None and name != "policy"]
    if given:
        raise ScenarioError(
            f"--{given[0].replace('_', '-')} does not go with a scenario file; set the field with --set FIELD=VALUE"
        )
    form = read_scenario(file)
    return form if flags["policy"] is None else form.model_copy(update={"policy": flags["policy"]})


def _title(form: ScenarioForm) -> str:
    played = form.workload.trace.file if form.workload.trace is not None else "arrivals"
    return f"{Path(played).name} on {form.model}"


def _notes(first: Prepared) -> list[str]:
    notes = ["; ".join(first.facts["workers"])]
    if first.facts["arrivals_spread"]:
        notes.append("arrivals stamped alike are spread over their slot of at most 3 s (--keep-bursts leaves them)")
    if dropped := first.facts["dropped_over_context"]:
        notes.append(f"{dropped} requests dropped: over the context")
    return notes


def _play(asked: _Asked, console: Console) -> tuple[Report, ...]:
    """One run with a bar over its requests, or several with a bar over runs."""
    if len(asked.seeds) == 1:
        with ProgressView(console, asked.first.workload.total, "requests") as view:
            return (asked.first.run(view.show),)
    with ProgressView(console, len(asked.seeds), "runs") as view:
        return play_all([(asked.form, seed) for seed in asked.seeds], asked.traces, view.show)


def _show(asked: _Asked, reports: tuple[Report, ...]) -> None:
    console = Console()
    print_simulation(console, reports[0], "simulate" if len(reports) == 1 else f"simulate, seed {asked.seeds[0]}")
    if len(reports) > 1:
        print_over_seeds(console, spreads(reports), len(reports))


def _write(asked: _Asked, reports: tuple[Report, ...], json_file: Path | None, html_file: Path | None) -> None:
    if json_file is not None:
        first = reports[0]
        if len(reports) > 1:
            first = replace(first, run={**first.run, "over_seeds": over_seeds(reports)})
        write(json_file, json.dumps(first.to_dict(), indent=2) + "\n")
    if html_file is not None:
        write(html_file, run_page(asked.name, reports))


def _say(console: Console, note: str) -> None:
    console.print(f"simulate: {note}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(simulate_command)
