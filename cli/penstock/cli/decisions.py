"""`penstock decide-again`: decisions that a router or an autoscaler recorded (`--record`), made again here.

Exit code 0 means that all came out the same to the byte, 1 that some did not, 2 that a file could not be read or that
nothing was recorded in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from penstock.core.records import RecordError
from penstock.simulator.snapshots import Replayed, replay_records
from rich.console import Console

DIFFERENT = 1
UNREADABLE = 2
_SHOWN = 160

_Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="picks.jsonl, cycles.jsonl, or those before.")]


def decide_again(files: _Files) -> None:
    """Make recorded picks, plans and guards again by the same functions, and say whether they come out the same."""
    console, errors = Console(), Console(stderr=True)
    different = 0
    for file in files:
        try:
            with file.open("rb") as lines:
                replayed = replay_records(lines, str(file))
            if not replayed.same and not replayed.different:
                raise RecordError(f"{file}: nothing was recorded in it; run the router or autoscaler with --record")
        except (OSError, RecordError) as error:
            said = f"{file}: cannot be read: {error.strerror}" if isinstance(error, OSError) else error
            errors.print(f"penstock decide-again: {said}", style="red", highlight=False, markup=False, soft_wrap=True)
            raise typer.Exit(UNREADABLE) from None
        _show(console, file, replayed)
        different += replayed.different.total()
    raise typer.Exit(DIFFERENT if different else 0)


def _show(console: Console, file: Path, replayed: Replayed) -> None:
    counts = ", ".join(
        f"{kind}: {replayed.same[kind]} the same, {replayed.different[kind]} different"
        for kind in sorted({*replayed.same, *replayed.different})
    )
    console.print(f"{file}: {counts}", highlight=False, markup=False, soft_wrap=True)
    for difference in replayed.differences:
        console.print(f"  line {difference.line}", highlight=False)
        for place in difference.places:
            said = f"{place.path}: {place.recorded[:_SHOWN]} is now {place.again[:_SHOWN]}"
            console.print(f"    {said}", highlight=False, markup=False, soft_wrap=True)
