"""A folder of results: `data/NAME.json` for each record, its picture beside, and the page over all of them."""

from __future__ import annotations

from pathlib import Path

from penstock.simulator.results.page import render_page
from penstock.simulator.results.pictures import draw_chart
from penstock.simulator.results.record import Record
from penstock.simulator.results.statements import Statements, read_statements
from pydantic import ValidationError

__all__ = ["PAGE", "files_of", "read_records", "write_record", "write_results"]

PAGE = "index.md"


def read_records(folder: Path, statements: Statements) -> dict[str, Record]:
    """The records there are, by name. Raises ValueError for a file that is none."""
    found = {}
    for one in statements.results:
        path = folder / "data" / f"{one.name}.json"
        if path.is_file():
            try:
                found[one.name] = Record.model_validate_json(path.read_text(encoding="utf-8"))
            except ValidationError as error:
                raise ValueError(f"{path}: is no record of a result: {error.errors()[0]['msg']}") from None
    return found


def write_record(folder: Path, record: Record) -> None:
    """Put a record into a folder of results; raises ValueError for a name that no statement has."""
    read_statements().find(record.name)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data" / f"{record.name}.json").write_text(record.to_json(), encoding="utf-8")


def files_of(folder: Path) -> dict[str, bytes]:
    """Page and pictures as they follow from the records in a folder: name -> content."""
    statements = read_statements()
    records = read_records(folder, statements)
    root = "../../" if (folder / "../.." / statements.results[0].scenario).is_file() else None
    files = {f"{name}.svg": draw_chart(record.chart) for name, record in records.items()}
    return {PAGE: render_page(statements, records, root).encode(), **files}


def write_results(folder: Path) -> tuple[str, ...]:
    """Write page and pictures anew; the names of what changed."""
    changed = []
    for name, content in files_of(folder).items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)
            changed.append(name)
    return tuple(changed)
