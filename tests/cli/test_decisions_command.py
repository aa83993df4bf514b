"""`penstock decide-again`: exit codes and words for records that hold, that do not, and that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

from penstock.cli.main import app
from penstock.core.fleet import Fleet, Request, Worker
from penstock.core.records import write_record
from penstock.router.decisions import find_policy
from penstock.router.decisions.records import pick_on_record
from typer.testing import CliRunner


def picked(tmp_path: Path) -> Path:
    fleet = Fleet(4)
    for number in range(3):
        fleet.set_ready(fleet.add(Worker(f"team/w{number}", "10.0.0.1", 8000 + number, "m")), True)
    _, record = pick_on_record(find_policy("RoundRobin"), Request("r", "m", 100, 10), fleet.view(), 5.0, 7)
    file = tmp_path / "picks.jsonl"
    file.write_bytes(write_record(record) * 3)
    return file


def test_what_comes_out_the_same_is_counted(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["decide-again", str(picked(tmp_path))])
    assert done.exit_code == 0, done.output
    assert "Pick: 3 the same, 0 different" in done.output


def test_what_comes_out_otherwise_is_shown(tmp_path: Path) -> None:
    file = picked(tmp_path)
    record = json.loads(file.read_bytes().splitlines()[0])
    record["answer"]["Pick"]["decode"] = 2 - record["answer"]["Pick"]["decode"] // 2
    with file.open("ab") as lines:
        lines.write(write_record(record))
    done = CliRunner().invoke(app, ["decide-again", str(file)])
    assert done.exit_code == 1
    assert "Pick: 3 the same, 1 different" in done.output
    assert "line 4\n    Pick.decode: " in done.output


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_text("{}\n")
    for name, said in (
        (str(file), "line 1"),
        (str(tmp_path / "none.jsonl"), "none.jsonl: cannot be read: No such file"),
    ):
        done = CliRunner().invoke(app, ["decide-again", name])
        assert done.exit_code == 2
        assert said in done.stderr


def test_a_file_without_a_record_proves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "picks.jsonl"
    for content in (b"", b'{"kind": "Pi'):
        file.write_bytes(content)
        done = CliRunner().invoke(app, ["decide-again", str(file)])
        assert done.exit_code == 2
        assert "picks.jsonl: nothing was recorded in it" in done.stderr
