"""`penstock simulate`: from a trace file to a report, with a sentence for everything that cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from penstock.cli.main import app
from penstock.core.reports import Report
from penstock.router.decisions.policies import DEFAULT_POLICY
from typer.testing import CliRunner

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:{n // 2:02d}.{n % 2 * 5}00000,{100 + 37 * n},{5 + n}" for n in range(40)]
    path.write_text(HEAD + "\n".join(rows) + "\n")
    return path


def simulate(trace: Path, *options: str, nodes: str = "a100-80g=1x2") -> Any:
    arguments = ["simulate", "--trace", str(trace), "--model", "llama-3.1-8b", "--nodes", nodes, *options]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


def test_a_run_prints_tables_and_writes_the_replay_report(trace: Path, tmp_path: Path) -> None:
    done = simulate(trace, "--json", str(tmp_path / "r.json"), "--ttft", "2s", "--tpot", "100ms")
    assert done.exit_code == 0, done.output
    for part in ("TTFT", "TPOT", "attainment", "GPU hours", "a100-80g", " J ", "2 workers on a100-80g (tensor: 1)"):
        assert part in done.output
    report = Report.from_dict(json.loads((tmp_path / "r.json").read_text()))
    assert (report.requests.total, report.requests.completed) == (40, 40)
    assert report.output_tokens == sum(5 + n for n in range(40))
    assert report.objectives == {"ttft_seconds": 2.0, "tpot_seconds": 0.1}
    assert report.run["policy"] == DEFAULT_POLICY
    assert report.run["resources"]["total"]["joules"] > 0


def test_the_same_command_writes_the_same_bytes(trace: Path, tmp_path: Path) -> None:
    options = ["--arrivals", "Gamma", "--rate", "5", "--for", "30s", "--policy", "Random"]
    written = []
    for number, seed in enumerate(("7", "7", "8")):
        file = tmp_path / f"{number}.json"
        assert simulate(trace, *options, "--seed", seed, "--json", str(file)).exit_code == 0
        written.append(file.read_bytes())
    assert written[0] == written[1] != written[2]


def test_more_load_on_the_same_nodes_takes_longer(trace: Path, tmp_path: Path) -> None:
    mean = {}
    for scale in ("1", "200"):
        file = tmp_path / f"{scale}.json"
        assert simulate(trace, "--rate-scale", scale, "--json", str(file)).exit_code == 0
        mean[scale] = json.loads(file.read_text())["e2e_seconds"]["mean"]
    assert mean["200"] > mean["1"]


def test_a_bad_line_is_named_and_can_be_skipped(trace: Path) -> None:
    lines = trace.read_text().splitlines()
    lines[4] = "2023-11-16 18:15:46.68,many,4"
    trace.write_text("\n".join(lines))
    refused = simulate(trace)
    assert refused.exit_code == 2
    assert f"{trace}: line 5: ContextTokens is 'many'" in refused.output
    skipped = simulate(trace, "--skip-bad")
    assert skipped.exit_code == 0
    assert "1 bad lines left out" in skipped.output


def test_a_cold_cluster_is_not_all_completed(trace: Path) -> None:
    done = simulate(trace, "--cold")
    assert done.exit_code == 1
    assert "40 rejected" in done.output


@pytest.mark.parametrize(
    ("options", "nodes", "message"),
    [
        (["--policy", "Nope"], "a100-80g=1x2", "unknown routing policy 'Nope'"),
        ([], "a100-80g=2", "write class=nodesxaccelerators"),
        ([], "a100=1x2", "did you mean|there is a100-40g, a100-80g|'a100' is not in the catalogue"),
        ([], "a100-80g=0x8", "has no accelerator"),
        (["--tensor", "4"], "a100-80g=3x2", "a worker needs 4 a100-80g, a node has 2"),
        (["--kv-capacity", "100"], "a100-80g=1x2", "cannot hold the longest sequence"),
        (["--max-context", "999999"], "a100-80g=1x2", "takes 2 to 131072"),
        (["--rate", "5"], "a100-80g=1x2", "--arrivals and --rate go together"),
        (["--json", "/no/such/folder/r.json"], "a100-80g=1x2", "its folder does not exist"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(trace: Path, options: list[str], nodes: str, message: str) -> None:
    refused = simulate(trace, *options, nodes=nodes)
    assert refused.exit_code == 2
    assert re.search(message, refused.output)


def test_a_model_that_does_not_fit_says_what_would(trace: Path) -> None:
    arguments = ["simulate", "--trace", str(trace), "--model", "llama-3.1-405b", "--nodes", "l4-24g=4x8"]
    refused = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert refused.exit_code == 2
    assert "Llama-3.1-405B" in refused.output
    assert "What fits: " in refused.output
    assert "h200-141g" in refused.output
    unknown = CliRunner().invoke(app, [*arguments[:4], "llama-3.1-8bb", *arguments[5:]])
    assert "did you mean" in unknown.output


def test_an_endless_cache_is_never_the_limit(trace: Path, tmp_path: Path) -> None:
    done = simulate(trace, "--kv-capacity", "infinite", "--rate-scale", "1000")
    assert done.exit_code == 0
    assert "endless KV cache" in done.output
    assert simulate(trace, "--kv-capacity", "lots").exit_code == 2
