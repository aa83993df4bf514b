"""`penstock simulate FILE`, `compare` and `sweep`: files in, tables, JSON and pages out, the same bytes each time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from penstock.cli.main import app
from penstock.core.reports import Report
from typer.testing import CliRunner

SCENARIO = """
model: llama-3.1-8b
nodes: a100-80g=1x2
objectives: {ttft: 300ms, tpot: 13ms}
workload:
  arrivals: {rate: 6, for: 20s}
  lengths: {inputTokens: 600, outputTokens: 40, maxTokens: 2000}
  tenants: [{name: a}, {name: b}]
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(SCENARIO)
    return path


def penstock(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "220"})


def drawings(page: str) -> list[str]:
    """The plots of a page, each checked to be whole."""
    found = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    for drawing in found:
        ElementTree.fromstring(drawing)
    return found


def test_a_scenario_file_is_played_over_seeds_into_json_and_a_page(scenario: Path, tmp_path: Path) -> None:
    json_file, html_file = tmp_path / "r.json", tmp_path / "r.html"
    done = penstock("simulate", scenario, "--seeds", "3", "--json", json_file, "--html", html_file)
    assert done.exit_code == 0, done.output
    for part in ("over 3 seeds", "95 % interval", "objectives x", "tenants", "goodput"):
        assert part in done.output
    report = Report.from_dict(json.loads(json_file.read_text()))
    over = report.run["over_seeds"]
    assert over["seeds"] == [0, 1, 2]
    attainment = over["metrics"]["attainment"]
    assert len(set(attainment["values"])) > 1
    assert attainment["low"] < attainment["mean"] < attainment["high"]
    assert attainment["values"][0] == report.attainment
    page = html_file.read_text()
    assert len(drawings(page)) == 9
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "ids of plots must not meet"
    assert not re.search(r'(src|href)="http', page), "a page needs no network"


def test_the_same_seed_writes_the_same_bytes_whatever_the_processes(scenario: Path, tmp_path: Path) -> None:
    written = []
    for number in range(2):
        files = [tmp_path / f"{number}.{kind}" for kind in ("json", "html")]
        assert penstock("simulate", scenario, "--seeds", "2", "--json", files[0], "--html", files[1]).exit_code == 0
        written.append([file.read_bytes() for file in files])
    assert written[0] == written[1]
    alone = tmp_path / "alone.json"
    assert penstock("simulate", scenario, "--seed", "1", "--json", alone).exit_code == 0
    second = json.loads(written[0][0])["run"]["over_seeds"]["metrics"]["TTFT mean"]["values"][1]
    assert json.loads(alone.read_text())["ttft_seconds"]["mean"] == second


def test_flags_are_saved_as_a_file_that_gives_the_same_report(tmp_path: Path) -> None:
    trace, saved = tmp_path / "t.csv", tmp_path / "there" / "s.yaml"
    saved.parent.mkdir()
    rows = "".join(f"2023-11-16 18:15:{n:02d}.0,{100 + n},{5 + n}\n" for n in range(30))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    flags = ["--trace", trace, "--model", "llama-3.1-8b", "--nodes", "a100-80g=1x1", "--rate-scale", "2", "--seed", "3"]
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    assert penstock("simulate", *flags, "--save", saved, "--json", first).exit_code == 0
    assert "file: ../t.csv" in saved.read_text()
    assert penstock("simulate", saved, "--json", second).exit_code == 0
    one, other = (json.loads(file.read_text()) for file in (first, second))
    for report in (one, other):
        report["run"].pop("scenario")
    assert one == other


def test_fields_are_set_on_the_command_line(scenario: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    done = penstock("simulate", scenario, "--set", "engine.maxNumSeqs=1", "--policy", "RoundRobin", "--json", file)
    assert done.exit_code == 0, done.output
    run = json.loads(file.read_text())["run"]
    assert (run["scenario"]["engine"]["maxNumSeqs"], run["policy"]) == (1, "RoundRobin")


def test_compare_says_which_is_better_and_where_that_is_not_sure(scenario: Path, tmp_path: Path) -> None:
    larger = tmp_path / "larger.yaml"
    larger.write_text(SCENARIO.replace("1x2", "1x4"))
    files = tmp_path / "c.json", tmp_path / "c.html"
    done = penstock("compare", scenario, larger, "--seeds", "3", "--json", files[0], "--html", files[1])
    assert done.exit_code == 0, done.output
    assert "A: base, B: larger" in done.output
    metrics = json.loads(files[0].read_text())["metrics"]
    assert metrics["GPU hours"]["second_is"] == "worse"
    assert metrics["GPU hours"]["ratio"] == pytest.approx(2.0, rel=0.05)
    assert metrics["TPOT mean"]["second_is"] == "better"
    gaps = metrics["TPOT mean"]["difference"]["values"]
    ours, theirs = metrics["TPOT mean"]["first"]["values"], metrics["TPOT mean"]["second"]["values"]
    assert gaps == [other - one for one, other in zip(ours, theirs, strict=True)]
    assert metrics["prefix hits"]["second_is"] == "equal"
    assert len(drawings(files[1].read_text())) == 3


def test_reports_of_earlier_runs_are_compared_too(scenario: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.json"
    assert penstock("simulate", scenario, "--seeds", "2", "--json", one).exit_code == 0
    done = penstock("compare", one, scenario, "--seeds", "2")
    assert done.exit_code == 0, done.output
    assert "better" not in done.output.replace("is better", "")
    scenario.with_suffix(".json").write_text("{}")
    broken = penstock("compare", scenario.with_suffix(".json"), scenario)
    assert broken.exit_code == 2
    assert "is no report of penstock simulate" in broken.output


def test_unequal_numbers_of_runs_are_refused_before_any_is_played(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, three = tmp_path / "two.json", tmp_path / "three.json"
    for file, seeds in ((two, "2"), (three, "3")):
        assert penstock("simulate", scenario, "--seeds", seeds, "--json", file).exit_code == 0
    monkeypatch.setattr("penstock.cli.simulate_compare.play_all", lambda *_: pytest.fail("nothing is to be played"))
    unlike = penstock("compare", two, scenario)
    assert unlike.exit_code == 2
    assert "two.json is of 2 runs and base.yaml would be of 5 runs; give --seeds 2" in unlike.output
    assert "base.yaml would be of 1 run and three.json is of 3 runs; give --seeds 3" in (
        penstock("compare", scenario, three, "--seeds", "1").output
    )
    both = penstock("compare", two, three)
    assert both.exit_code == 2 and "make both reports anew with the same --seeds" in both.output


def test_runs_of_other_seeds_are_never_paired(scenario: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    for file, seed in ((one, "7"), (other, "8")):
        assert penstock("simulate", scenario, "--seed", seed, "--seeds", "2", "--json", file).exit_code == 0
    for pair in ((one, other), (one, scenario), (scenario, one)):
        done = penstock("compare", *pair, "--seeds", "2")
        assert done.exit_code == 2
        assert "cannot pair runs of other seeds" in done.output and "one.json has seeds 7, 8" in done.output
    assert penstock("compare", one, scenario, "--seed", "7", "--seeds", "2").exit_code == 0


def test_scenarios_of_other_seeds_are_played_with_the_first_ones(scenario: Path, tmp_path: Path) -> None:
    later, found = tmp_path / "later.yaml", tmp_path / "found.json"
    later.write_text(f"seed: 5\n{SCENARIO}")
    done = penstock("compare", scenario, later, "--seeds", "2", "--json", found)
    assert done.exit_code == 0, done.output
    assert {one["second_is"] for one in json.loads(found.read_text())["metrics"].values()} == {"equal"}


def test_a_sweep_plays_every_combination(scenario: Path, tmp_path: Path) -> None:
    files = tmp_path / "s.json", tmp_path / "s.html"
    options = ["--rate", "2,12", "--policy", "LeastLoaded,RoundRobin", "--seeds", "2"]
    done = penstock("sweep", scenario, *options, "--json", files[0], "--html", files[1])
    assert done.exit_code == 0, done.output
    swept = json.loads(files[0].read_text())
    assert swept["fields"] == ["workload.arrivals.rate", "policy"]
    values = [tuple(one["values"]) for one in swept["scenarios"]]
    assert values == [(2, "LeastLoaded"), (2, "RoundRobin"), (12, "LeastLoaded"), (12, "RoundRobin")]
    by_rate = [one["metrics"]["utilisation"]["mean"] for one in swept["scenarios"]]
    assert min(by_rate[2:]) > 2 * max(by_rate[:2])
    assert all(len(one["metrics"]["goodput"]["values"]) == 2 for one in swept["scenarios"])
    assert len(drawings(files[1].read_text())) == 6


def test_nodes_are_swept_too(scenario: Path) -> None:
    done = penstock("sweep", scenario, "--nodes", "a100-80g=1x1", "--nodes", "a100-80g=1x1,h100-80g=1x1")
    assert done.exit_code == 0, done.output
    assert "a100-80g=1x1,h100-80g=1x1" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate", "BASE", "--model", "x"], "--model does not go with a scenario file; set the field with --set"),
        (["simulate", "BASE", "--set", "engine.maxNumSeqs=1,2"], "penstock sweep takes those"),
        (["simulate", "BASE", "--set", "engine.nope=1"], "engine.nope: is no field here"),
        (["simulate", "BASE", "--policy", "Nope"], "Nope"),
        (["simulate", "missing.yaml"], "missing.yaml: cannot be read: No such file"),
        (["simulate"], "--trace is missing: give a trace, or a scenario file"),
        (["simulate", "--trace", "x", "--model", "llama-3.1-8b"], "--nodes is missing"),
        (["simulate", "BASE", "--html", "/no/such/folder/r.html"], "its folder does not exist"),
        (["sweep", "BASE"], "nothing varies"),
        (["sweep", "BASE", "--set", "engine.maxNumSeqs"], "sets nothing; write field=value,value"),
        (["sweep", "BASE", "--set", "model.x.y=1"], "model.x.y is no field"),
        (["sweep", "BASE", "--rate", "0,1"], "workload.arrivals.rate: input should be greater"),
        (["sweep", "BASE", "--set", "seed=" + ",".join(map(str, range(1001)))], "more than 1000"),
        (["compare", "BASE", "missing.yaml"], "missing.yaml: cannot be read"),
        (["compare", "BASE", "missing.json"], "missing.json: cannot be read"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(scenario: Path, arguments: list[str], said: str) -> None:
    refused = penstock(*(str(scenario) if one == "BASE" else one for one in arguments))
    assert refused.exit_code == 2, refused.output
    assert said in refused.output
