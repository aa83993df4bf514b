"""`penstock results`: runs published results again and renders the page of them all.

Without names: what there is and how it stands. With names: runs those reports, one after the other, and writes records,
pictures and page. Gates are run by their tests, which write records of the same form. Exit code 2 means that nothing
was run or rendered.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from penstock.cli.replay_trace import TraceError
from penstock.cli.simulate_input import open_traces
from penstock.cli.simulate_view import ProgressView
from penstock.simulator.results.folder import PAGE, read_records, write_record, write_results
from penstock.simulator.results.page import verdict_of
from penstock.simulator.results.record import Record, digits
from penstock.simulator.results.run import play_report, runs_of
from penstock.simulator.results.setup import read_setup, setup_names
from penstock.simulator.results.statements import Statements, read_statements
from rich.console import Console
from rich.table import Table

NOTHING_DONE = 2

_Names = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME...]", help="Reports to run; none: list what there is.")
]
_Out = Annotated[Path, typer.Option(help="Folder of records, pictures and page.")]
_Data = Annotated[Path, typer.Option(help="Folder of the public traces that set-ups name.", envvar="PENSTOCK_DATA")]
_Render = Annotated[bool, typer.Option("--render", help="Write page and pictures anew from the records there are.")]
_Processes = Annotated[int | None, typer.Option(min=1, max=1024, help="How many at a time (default: one a core).")]


def results_command(
    names: _Names = None,
    out: _Out = Path("docs/results"),
    data: _Data = Path("data"),
    render: _Render = False,
    processes: _Processes = None,
) -> None:
    """Run published results again in the twin, and render the page that lays them beside what was published."""
    console = Console(stderr=True)
    try:
        statements = read_statements()
        for name in names or []:
            _check(name, statements)
        for name in names or []:
            record = _run(name, data, console, processes)
            write_record(out, record)
            _show(record)
        if not names and not render:
            _list(statements, out)
            return
        for file in _rendered(out):
            _say(console, f"wrote {out / file}")
    except (OSError, TraceError, ValueError) as error:
        console.print(f"penstock results: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(NOTHING_DONE) from None


def _check(name: str, statements: Statements) -> None:
    """Before anything runs. Raises ValueError for what cannot be run from here."""
    statement = statements.find(name)
    if name not in setup_names():
        raise ValueError(f"{name} is a gate, which its test runs: {statement.command}, in a clone of the repository")


def _run(name: str, data: Path, console: Console, processes: int | None) -> Record:
    setup = read_setup(name)
    with ProgressView(console, runs_of(setup), "runs") as view:
        return play_report(name, setup, open_traces(data, lambda note: _say(console, note)), view.show, processes)


def _rendered(out: Path) -> tuple[str, ...]:
    if not (out / "data").is_dir():
        raise ValueError(f"{out} has no folder data with records; name a report to run, or give --out")
    return write_results(out) or (PAGE,)


def _show(record: Record) -> None:
    table = Table(title=record.name, title_justify="left")
    for head in ("figure", "published", "expected", "ours", "95 % interval"):
        table.add_column(head)
    for figure in record.figures:
        mean, low, high = figure.spread
        expected = "-" if figure.expected is None else str(figure.expected)
        table.add_row(figure.name, figure.published or "-", expected, digits(mean), f"{digits(low)} to {digits(high)}")
    Console().print(table)


def _list(statements: Statements, out: Path) -> None:
    records = read_records(out, statements)
    table = Table(title="Published results", title_justify="left")
    for head in ("name", "kind", "stands", "run by"):
        table.add_column(head, overflow="fold")
    for one in statements.results:
        table.add_row(one.name, one.kind.value.lower(), verdict_of(one, records.get(one.name)), one.command)
    Console().print(table)


def _say(console: Console, note: str) -> None:
    console.print(f"results: {note}", highlight=False, markup=False, soft_wrap=True)
