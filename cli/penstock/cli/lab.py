"""`penstock lab eval POLICY.py`: a policy file against the policies that ship, as a leaderboard.

Exit code 0 means that everything was played, 1 that the file's policies made mistakes on the way, 2 that nothing was
played. The file is code, and runs with the rights of whoever calls this.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from penstock.cli.lab_view import print_boards
from penstock.cli.simulate_input import Errors, check_writable, open_traces, read_scenario, write
from penstock.cli.simulate_view import ProgressView
from penstock.core.policy_files import PolicyFileError
from penstock.simulator.files import ScenarioError, ScenarioForm
from penstock.simulator.lab import Board, Contest, enter, make_boards, play, public_scenarios
from penstock.simulator.lab.contest import Scene
from penstock.simulator.lab.public import FOLDER
from penstock.simulator.study import prepare
from rich.console import Console

MISTAKES = 1
NOTHING_PLAYED = 2

app = typer.Typer(name="lab", help="Try policies of your own before a cluster does.", no_args_is_help=True)

_File = Annotated[Path, typer.Argument(metavar="POLICY.py", help="A file that brings policies or planners.")]
_Scenarios = Annotated[
    Path | None,
    typer.Option("--scenarios", metavar="DIR", help="Scenario files (*.yaml) instead of the public ones: a hold-out."),
]
_Traces = Annotated[
    Path | None, typer.Option("--traces", metavar="DIR", help="Where traces lie (default: beside the scenarios).")
]
_Only = Annotated[str | None, typer.Option("--only", metavar="S1,S2", help="Only these scenarios.")]
_Seeds = Annotated[int, typer.Option(min=1, max=1000, help="How many seeds, one run each, on all cores.")]
_Json = Annotated[Path | None, typer.Option("--json", help="Write the leaderboard here.")]


@app.callback()
def lab() -> None:
    """Try policies of your own before a cluster does."""


@app.command("eval")
def eval_command(
    file: _File,
    scenarios: _Scenarios = None,
    traces: _Traces = None,
    only: _Only = None,
    seeds: _Seeds = 3,
    json_file: _Json = None,
) -> None:
    """Score a policy file on the public scenarios, or on yours. The file is code: it runs with your rights."""
    console = Console(stderr=True)
    try:
        check_writable(json_file)
        source = _source(file)
        scenes = _scenes(scenarios, traces, only, console)
        contest = Contest(source, str(file), enter(source, str(file)), scenes, tuple(range(seeds)))
        boards = _played(contest, console)
        print_boards(Console(), boards, seeds)
        if json_file is not None:
            write(json_file, json.dumps(_plain(contest, boards), indent=2) + "\n")
    except Errors as error:
        console.print(f"penstock lab eval: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(NOTHING_PLAYED) from None
    raise typer.Exit(MISTAKES if any(row.mistakes or row.fickle for board in boards for row in board.rows) else 0)


def _played(contest: Contest, console: Console) -> tuple[Board, ...]:
    """All boards; what could not be played is refused before the first run."""
    for kind in {entry.kind for entry in contest.entries}:
        if not any(scene.suits(kind) for scene in contest.scenes):
            raise ScenarioError(
                f"{contest.file} brings a {kind}, and no scenario can score it: one needs an autoscaler"
            )
    for scene in contest.scenes:
        prepare(scene.form, scene.traces, scene.form.seed)
    with ProgressView(console, contest.runs, "runs") as view:
        played, fickle = play(contest, view.show)
    return make_boards(played, fickle)


def _scenes(folder: Path | None, traces: Path | None, only: str | None, console: Console) -> tuple[Scene, ...]:
    """The scenarios that can be played; those whose trace is not there are left out, and said."""
    forms = public_scenarios() if folder is None else _held_out(folder)
    wanted = list(forms) if only is None else [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in forms]
    if unknown:
        raise ScenarioError(f"--only {unknown[0]}: there is no such scenario; there is {', '.join(forms)}")
    beside = traces or folder or FOLDER
    found = []
    for name in wanted:
        missing = _missing(forms[name], beside)
        if missing is None:
            found.append(Scene(name, forms[name], open_traces(beside, lambda note: _say(console, note))))
        else:
            _say(console, f"{name} is left out: {missing} is not in {beside}; --traces says where traces lie")
    if not found:
        raise ScenarioError("no scenario is left to play")
    return tuple(found)


def _held_out(folder: Path) -> dict[str, ScenarioForm]:
    if not folder.is_dir():
        raise ScenarioError(f"--scenarios {folder}: is no folder")
    forms = {file.stem: read_scenario(file) for file in sorted(folder.glob("*.yaml"))}
    if not forms:
        raise ScenarioError(f"--scenarios {folder}: holds no scenario file (*.yaml)")
    return forms


def _missing(form: ScenarioForm, folder: Path) -> str | None:
    """The first trace that a scenario names and that is not there."""
    work = form.workload
    named = (work.trace and work.trace.file, work.arrivals and work.arrivals.fit, work.lengths and work.lengths.like)
    return next((file for file in named if file and not (folder / file).is_file()), None)


def _source(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise PolicyFileError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PolicyFileError(f"{file}: is not text") from None


def _plain(contest: Contest, boards: tuple[Board, ...]) -> dict[str, object]:
    return {"file": contest.file, "seeds": list(contest.seeds), "boards": [board.to_dict() for board in boards]}


def _say(console: Console, note: str) -> None:
    console.print(f"lab: {note}", highlight=False, markup=False, soft_wrap=True)
