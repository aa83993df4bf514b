"""Showing leaderboards: the standing of all, then where each one's score comes from."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.simulator.lab import Board, Kind, Row
from penstock.simulator.study import Spread
from rich.console import Console
from rich.table import Table

__all__ = ["print_boards"]

_WHAT = {
    Kind.POLICY: "requests within both objectives, over {}'s on the same arrivals",
    Kind.PLANNER: "requests within both objectives for each dollar, over {}'s on the same arrivals",
}


def print_boards(console: Console, boards: Sequence[Board], seeds: int) -> None:
    """Two tables for each board, and a line for everything that is not well."""
    for board in boards:
        console.print(_standing(board, seeds))
        console.print(_by_scene(board))
        for row in board.rows:
            _print_doubts(console, row)
        for scene in board.left_out:
            console.print(f"{scene} does not count: {board.baseline} meets no objective there", highlight=False)


def _standing(board: Board, seeds: int) -> Table:
    what = _WHAT[board.kind].format(board.baseline)
    over = f"{_many(len(board.scenes), 'scenario')}, {_many(seeds, 'seed')}"
    table = Table(title=f"{board.kind} leaderboard: {what}; {over}", title_justify="left")
    table.add_column("")
    for column in ("score", "95 % interval", "within objectives", "mistakes"):
        table.add_column(column, justify="right")
    for place, row in enumerate(board.rows, 1):
        mistakes = str(row.mistakes) if row.entry.own else "-"
        cells = (f"{place} {row.entry.name}", f"{row.score.mean:.3f}", _interval(row.score), f"{row.attainment:.1%}")
        table.add_row(*cells, mistakes, style="bold cyan" if row.entry.own else "")
    return table


def _by_scene(board: Board) -> Table:
    """Scenarios as rows: there may be many, and there are few entries."""
    table = Table(title="by scenario", title_justify="left")
    table.add_column("")
    for row in board.rows:
        table.add_column(row.entry.name, justify="right", style="bold cyan" if row.entry.own else "", overflow="fold")
    for scene in board.scenes:
        table.add_row(scene, *(f"{row.scenes[scene].mean:.3f}" for row in board.rows))
    return table


def _many(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _interval(score: Spread) -> str:
    return "-" if score.low is None or score.high is None else f"{score.low:.3f}-{score.high:.3f}"


def _print_doubts(console: Console, row: Row) -> None:
    if row.mistakes:
        said = f"{row.entry.name} made {row.mistakes} mistakes; the first: {row.first_mistake}"
        console.print(said, style="red", highlight=False, markup=False, soft_wrap=True)
    if row.fickle:
        said = f"{row.entry.name} did not do the same again with the same seed: it is no pure function"
        console.print(said, style="red", highlight=False, markup=False, soft_wrap=True)
