"""`penstock compare` and `penstock sweep`: two scenarios over the same seeds, and a grid of scenarios.

Exit code 0 means that all was simulated, 2 that nothing was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from penstock.cli import simulate_options as options
from penstock.cli.simulate_input import (
    Errors,
    changed,
    check_writable,
    open_traces,
    read_report,
    read_scenario,
    write,
)
from penstock.cli.simulate_view import ProgressView, print_compared, print_swept
from penstock.simulator.compare import compare
from penstock.simulator.files import ScenarioForm, Traces
from penstock.simulator.pages import Side, compare_page, sweep_page
from penstock.simulator.pages.swept import Row
from penstock.simulator.study import figures_of, play_all, prepare, spreads
from penstock.simulator.sweep import Axis, Cell, grid, parse_axis
from rich.console import Console

NOTHING_SIMULATED = 2

_First = Annotated[Path, typer.Argument(metavar="A", help="A scenario file, or a report that --json wrote.")]
_Second = Annotated[Path, typer.Argument(metavar="B", help="Another one; the same seeds are played for both.")]
_Base = Annotated[Path, typer.Argument(metavar="SCENARIO.yaml", help="The scenario to vary.")]
_Axes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=V1,V2", help="Values of a field, such as engine.maxNumSeqs=64,256."),
]
_Rates = Annotated[str | None, typer.Option("--rate", metavar="R1,R2", help="Requests a second, of workload.arrivals.")]
_Scales = Annotated[str | None, typer.Option("--rate-scale", metavar="X1,X2", help="Times the trace's arrival rate.")]
_Policies = Annotated[str | None, typer.Option("--policy", metavar="P1,P2", help="Policies of the router.")]
_Nodes = Annotated[list[str] | None, typer.Option("--nodes", help="Nodes of the cluster; once for each choice.")]


def compare_command(
    first: _First,
    second: _Second,
    seed: options.Seed = None,
    seeds: options.Seeds = 5,
    settings: options.Set = None,
    json_file: options.Json = None,
    html_file: options.Html = None,
) -> None:
    """Lay two scenarios, or the reports of two runs, side by side; the same seeds for both."""
    console = Console(stderr=True)
    try:
        check_writable(json_file, html_file)
        sides = _sides(first, second, seed, seeds, settings or [], console)
        found = compare(sides[0].values, sides[1].values)
        print_compared(Console(), found, (sides[0].name, sides[1].name))
        if json_file is not None:
            metrics = {one.metric.name: _compared(one) for one in found}
            write(json_file, _json({"first": sides[0].name, "second": sides[1].name, "metrics": metrics}))
        if html_file is not None:
            write(html_file, compare_page(*sides))
    except Errors as error:
        _refuse(console, "compare", error)


def sweep_command(
    scenario: _Base,
    settings: _Axes = None,
    rates: _Rates = None,
    scales: _Scales = None,
    policies: _Policies = None,
    nodes: _Nodes = None,
    seed: options.Seed = None,
    seeds: options.Seeds = 1,
    json_file: options.Json = None,
    html_file: options.Html = None,
) -> None:
    """Play every combination of some fields' values, each over the same seeds."""
    console = Console(stderr=True)
    try:
        check_writable(json_file, html_file)
        axes = _axes(settings or [], rates, scales, policies, nodes or [])
        if not axes:
            raise ValueError("nothing varies; give --set FIELD=V1,V2, --rate, --rate-scale, --policy or --nodes")
        form = _seeded(read_scenario(scenario), seed)
        cells = grid(form, axes, str(scenario))
        rows = _rows(cells, form.seed, seeds, open_traces(scenario.parent, _sayer(console, "sweep")), console)
        print_swept(Console(), [axis.path for axis in axes], rows)
        if json_file is not None:
            write(json_file, _json(_swept(axes, rows)))
        if html_file is not None:
            write(html_file, sweep_page(scenario.stem, axes, rows))
    except Errors as error:
        _refuse(console, "sweep", error)


def _sides(
    first: Path, second: Path, seed: int | None, seeds: int, settings: list[str], console: Console
) -> tuple[Side, Side]:
    """Both sides: read where they are reports, else simulated; scenarios with the seeds of `seed`, or of the first."""
    made: list[Side | None] = [None, None]
    played_with: list[tuple[int, ...]] = []
    runs: list[int] = []
    jobs: list[tuple[int, ScenarioForm, Traces]] = []
    for at, path in enumerate((first, second)):
        if path.suffix == ".json":
            earlier = read_report(path)
            made[at] = Side(path.stem, (earlier.report,), earlier.values)
            played_with.append(earlier.seeds)
            runs.append(max(map(len, earlier.values.values()), default=0))
        else:
            form = _seeded(changed(read_scenario(path), settings, str(path)), seed)
            seed = form.seed
            played_with.append(tuple(range(seed, seed + seeds)))
            runs.append(seeds)
            jobs.append((at, form, open_traces(path.parent, _sayer(console, "compare"))))
    _check_pairs((first, second), played_with, runs)
    for _, form, traces in jobs:
        prepare(form, traces, form.seed)
    for at, form, traces in jobs:
        name = (first, second)[at].stem
        with ProgressView(console, seeds, f"runs of {name}") as view:
            played = play_all([(form, form.seed + number) for number in range(seeds)], traces, view.show)
        made[at] = Side(name, played, figures_of(played))
    one, other = made
    if one is None or other is None:
        raise ValueError("give two scenarios or reports")
    return one, other


def _check_pairs(paths: tuple[Path, Path], played_with: list[tuple[int, ...]], runs: list[int]) -> None:
    """Raises ValueError, before anything is played, where run cannot be paired with run: they are not equally many, or
    their seeds are known to differ."""
    ours, theirs = played_with
    if runs[0] != runs[1]:
        said = " and ".join(
            f"{path.name} {'is' if path.suffix == '.json' else 'would be'} of {count} run{'s' if count != 1 else ''}"
            for path, count in zip(paths, runs, strict=True)
        )
        raise ValueError(f"cannot pair unequal numbers of runs: {said}; {_advice(paths, runs)}")
    if ours and theirs and ours != theirs:
        said = " and ".join(
            f"{path.name} has seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
            for path, seeds in zip(paths, played_with, strict=True)
        )
        raise ValueError(f"cannot pair runs of other seeds: {said}; give both the same, as by --seed")


def _advice(paths: tuple[Path, Path], runs: list[int]) -> str:
    fixed = [count for path, count in zip(paths, runs, strict=True) if path.suffix == ".json"]
    if len(fixed) == 1 and fixed[0] > 0:
        return f"give --seeds {fixed[0]}"
    return "make both reports anew with the same --seeds"


def _rows(cells: tuple[Cell, ...], seed: int, seeds: int, traces: Traces, console: Console) -> list[Row]:
    """Every scenario's metrics; each is checked before the first is simulated."""
    for cell in cells:
        prepare(cell.form, traces, seed)
    jobs = [(cell.form, seed + number) for cell in cells for number in range(seeds)]
    with ProgressView(console, len(jobs), "runs") as view:
        reports = play_all(jobs, traces, view.show)
    return [(cell.values, spreads(reports[at * seeds : (at + 1) * seeds])) for at, cell in enumerate(cells)]


def _axes(
    settings: list[str], rates: str | None, scales: str | None, policies: str | None, nodes: list[str]
) -> list[Axis]:
    given = (("workload.arrivals.rate", rates), ("workload.trace.rateScale", scales), ("policy", policies))
    axes = [parse_axis(f"{path}={values}") for path, values in given if values is not None]
    if nodes:
        axes.append(Axis("nodes", tuple(nodes)))
    return axes + [parse_axis(setting) for setting in settings]


def _seeded(form: ScenarioForm, seed: int | None) -> ScenarioForm:
    return form if seed is None else form.model_copy(update={"seed": seed})


def _compared(one: Any) -> dict[str, Any]:
    return {
        "unit": one.metric.unit,
        "first": asdict(one.first),
        "second": asdict(one.second),
        "difference": asdict(one.difference),
        "ratio": one.ratio,
        "second_is": one.verdict,
    }


def _swept(axes: list[Axis], rows: list[Row]) -> dict[str, Any]:
    return {
        "fields": [axis.path for axis in axes],
        "scenarios": [
            {"values": list(values), "metrics": {name: asdict(spread) for name, spread in found.items()}}
            for values, found in rows
        ],
    }


def _json(data: dict[str, Any]) -> str:
    return json.dumps({"version": 1, **data}, indent=2) + "\n"


def _sayer(console: Console, verb: str) -> Callable[[str], None]:
    return lambda note: console.print(f"{verb}: {note}", highlight=False, markup=False, soft_wrap=True)


def _refuse(console: Console, verb: str, error: Exception) -> None:
    console.print(f"penstock {verb}: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(NOTHING_SIMULATED) from None
