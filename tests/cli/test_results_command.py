"""`penstock results` without the runs: the list, the page, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from penstock.cli.main import app
from penstock.simulator.results.folder import write_record
from penstock.simulator.results.record import Band, Chart, ChartKind, Figure, Record, Series
from typer.testing import CliRunner

RUN = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
RECORD = Record(
    name="burstgpt",
    seeds=(1, 2),
    figures=(Figure(name="ratio", published="3", expected=Band(low=3), values=(4.0, 4.1)),),
    chart=Chart(kind=ChartKind.BARS, title="t", up="", labels=("a",), series=(Series.of("s", [(0.0, [1.0, 2.0])]),)),
)


def test_the_list_says_how_each_result_stands(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    shown = RUN.invoke(app, ["results", "--out", str(tmp_path)])
    assert shown.exit_code == 0
    rows = {line.split("│")[1].strip(): line for line in shown.stdout.splitlines() if "│" in line}
    assert "as expected" in rows["burstgpt"]
    assert "not run" in rows["mooncake"]
    assert "python tests/twin/test_mooncake.py" in rows["mooncake"]


def test_the_page_and_pictures_are_written_from_records(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    assert RUN.invoke(app, ["results", "--render", "--out", str(tmp_path)]).exit_code == 0
    assert "4.05 (3.41 to 4.69)" in (tmp_path / "index.md").read_text()
    assert (tmp_path / "burstgpt.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "no result is called 'nonsense'; there are splitwise,"),
        (["sarathi"], "sarathi is a gate, which its test runs: python tests/twin/test_sarathi.py"),
        (["--render"], "has no folder data with records"),
        (["burstgpt", "--data", "nowhere"], "AzureLLMInferenceTrace_conv.csv"),
    ],
)
def test_what_cannot_be_done_is_said_first(arguments: list[str], said: str, tmp_path: Path) -> None:
    refused = RUN.invoke(app, ["results", *arguments, "--out", str(tmp_path / "none")])
    assert refused.exit_code == 2
    assert said in " ".join(refused.output.split())
    assert not (tmp_path / "none").exists()
