"""The verbs about boxes: exit codes, one sentence for each error, plain lines without a terminal."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from penstock.box.lifecycle import Box
from penstock.box.paths import BoxPaths
from penstock.box.settings import Settings
from penstock.cli import box as verbs
from penstock.cli.main import app
from penstock.cli.progress import TerminalReporter
from rich.console import Console
from typer.testing import CliRunner

RUN = CliRunner()


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own."""
    monkeypatch.setenv("PENSTOCK_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_every_verb_explains_itself() -> None:
    listed = RUN.invoke(app, ["--help"]).output
    for verb in ("up", "down", "status", "logs", "kubeconfig", "binaries", "replay"):
        assert verb in listed
        assert RUN.invoke(app, [verb, "--help"]).exit_code == 0


@pytest.mark.parametrize("verb", [["status"], ["logs"], ["logs", "etcd"], ["kubeconfig"]])
def test_without_a_box_the_user_hears_how_to_start_one(verb: list[str]) -> None:
    result = RUN.invoke(app, verb)
    assert result.exit_code == 1
    assert "no box 'default' is running: start one with `penstock up`" in result.output


def test_down_without_a_box_is_no_error(state: Path) -> None:
    result = RUN.invoke(app, ["down"])
    assert (result.exit_code, result.output) == (0, "There is no box 'default'.\n")
    assert not state.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes", "nonsense"], "is not CLASS=NODESxGPUS"),
        (["--name", "No Good"], "is not usable"),
        (["--model-example", "missing"], "no example 'missing'"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(arguments: list[str], said: str, state: Path) -> None:
    result = RUN.invoke(app, ["up", *arguments])
    assert result.exit_code == 1
    assert said in result.output
    assert not state.exists()


def test_a_running_box_is_not_changed_behind_its_users_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings("default", "v", "cpu=1x0", ["cpu-0"], [], [], {}, 6443, 8000)
    box = Box(BoxPaths(tmp_path), settings)
    monkeypatch.setattr(verbs, "find_box", lambda _name: box)
    result = RUN.invoke(app, ["up", "--no-install", "--nodes", "cpu=2x0"])
    assert result.exit_code == 1
    assert "runs with --nodes cpu=1x0" in result.output
    result = RUN.invoke(app, ["up", "--no-install", "--gateway-port", "9000"])
    assert "runs with --gateway-port 8000" in result.output


def test_progress_without_a_terminal_is_plain_lines_with_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, *(20.0 * step for step in range(1, 50))])
    monkeypatch.setattr("penstock.cli.progress.time.monotonic", lambda: next(clock))
    out = io.StringIO()
    reporter = TerminalReporter(Console(file=out, width=200), stages=3)
    reporter.begin("programs")
    reporter.detail("compiling", 100, 400)
    reporter.end("programs", 12.34)
    lines = out.getvalue().splitlines()
    assert lines[0] == "programs ... (1 of 3)"
    assert re.fullmatch(r"programs: compiling 100/400 \(25 %, about \d+ s left\)", lines[1])
    assert lines[2] == "ok programs 12.3 s"


@pytest.mark.parametrize(
    ("program", "found", "said"),
    [
        ("/usr/bin/penstock", "/usr/bin/penstock", "penstock"),
        (".venv/bin/penstock", None, ".venv/bin/penstock"),
        ("/a/penstock", "/b/penstock", "/a/penstock"),
        ("/a/cli/main.py", None, f"{sys.executable} -m penstock.cli.main"),
    ],
)
def test_what_to_type_next_is_what_was_typed(
    monkeypatch: pytest.MonkeyPatch, program: str, found: str | None, said: str
) -> None:
    monkeypatch.setattr("sys.argv", [program])
    monkeypatch.setattr("shutil.which", lambda _name: found)
    assert verbs.called() == said
