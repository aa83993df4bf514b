"""`penstock plan` from the command line: what it prints can be applied, what it refuses it refuses in a sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from penstock.api import ModelDeployment
from penstock.cli.main import app
from penstock.cli.plan_manifest import deployment, manifest
from penstock.core.fleet import Role
from penstock.core.models import Parallelism, find_model
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator import parse_nodes
from penstock.simulator.planning import Cell, Objectives, Plan, PlanPool, Space, draw_sample
from typer.testing import CliRunner


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    rows += [f"2023-11-16 18:15:{n:02d}.0000000,{200 + 37 * (n % 11)},{20 + 7 * (n % 5)}" for n in range(60)]
    file = tmp_path / "trace.csv"
    file.write_text("\n".join(rows) + "\n")
    return file


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["plan", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_best_plan_can_be_applied(trace: Path, tmp_path: Path) -> None:
    report = tmp_path / "plan.json"
    code, out, err = run(
        "--model", "opt-13b", "--nodes", "a100-80g=1x2", "--trace", str(trace), "--ttft", "400ms", "--tpot", "80ms",
        "--requests", "40", "--name", "chat", "--json", str(report),
    )  # fmt: skip
    assert code == 0, err
    made = ModelDeployment.model_validate(yaml.safe_load(out))
    assert made.metadata.name == "chat" and made.spec.objectives.ttft_seconds == 0.4
    assert "runner-up" in err and "requests a second" in err
    told = json.loads(report.read_text())
    best = told["ranking"][0]
    assert [pool.role for pool in made.spec.pools or []] == [pool["role"] for pool in best["pools"]]
    assert best["rate"] >= told["ranking"][1]["rate"] and best["attainment"] >= 0.9


def test_the_cheapest_plan_takes_no_more_than_the_rate_asks_for(trace: Path, tmp_path: Path) -> None:
    report = tmp_path / "plan.json"
    code, _, err = run(
        "--model", "opt-13b", "--nodes", "a100-80g=2x4", "--trace", str(trace), "--ttft", "1s", "--tpot", "100ms",
        "--rank", "cost", "--rate", "1", "--requests", "40", "--json", str(report),
    )  # fmt: skip
    assert code == 0, err
    ranking = json.loads(report.read_text())["ranking"]
    assert ranking[0]["accelerators"] == 1 and ranking[0]["cost_per_hour"] <= ranking[1]["cost_per_hour"]


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        ({"--model": "opt-31b"}, 2, "did you mean facebook/opt-13b"),
        ({"--nodes": "l4-24g=1x1"}, 2, "What fits:"),
        ({"--nodes": "a100"}, 2, "is no node group"),
        ({"--name": "No Name"}, 2, "is no name of a ModelDeployment"),
        ({"--name": "-planned-"}, 2, "neither first nor last"),
        (
            {"--max-context": "900000"},
            2,
            "a context of 900000 tokens is not possible: facebook/opt-13b takes 2 to 2048",
        ),
        ({"--attainment": "0.00001%"}, 2, "is finer than the API takes it"),
        ({"--tpot": "12.5ms"}, 2, "write whole milliseconds"),
        ({"--ttft": "200000h"}, 2, "is no objective that the API takes"),
        ({"--attainment": "high"}, 2, "is no percentage"),
        ({"--ttft": "2ms"}, 1, "not even idle workers are fast enough"),
        ({"--rank": "cost", "--rate": "5000"}, 1, "5000 requests a second"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(trace: Path, change: dict[str, str], code: int, sentence: str) -> None:
    given = {"--model": "opt-13b", "--nodes": "a100-80g=1x1", "--trace": str(trace), "--requests": "20"} | change
    found, out, err = run(*(word for pair in given.items() for word in pair))
    assert found == code and sentence in " ".join(err.replace("│", " ").split()), err
    assert not out


@pytest.mark.parametrize(("rate", "near"), [("5000", False), ("7", True)])
def test_a_search_without_an_answer_is_written_too(trace: Path, tmp_path: Path, rate: str, near: bool) -> None:
    report = tmp_path / "plan.json"
    code, out, err = run(
        "--model", "opt-13b", "--nodes", "a100-80g=1x1", "--trace", str(trace), "--requests", "40", "--rank", "cost",
        "--ttft", "300ms", "--rate", rate, "--json", str(report),
    )  # fmt: skip
    assert code == 1 and not out
    told = json.loads(report.read_text())
    assert told["holds"] is False and told["ranking"] == [] and told["run"]["model"] == "facebook/opt-13b"
    assert told["why_nothing"] and told["why_nothing"] in err.replace("\n", " ")
    assert (told["nearest"] is not None) == near
    assert not near or (told["nearest"]["attainment"] < 0.9 and told["nearest"]["pools"] and told["counts"]["tried"])


def test_an_attainment_is_told_as_it_was_asked_for(trace: Path) -> None:
    asked = ("--model", "opt-13b", "--nodes", "a100-80g=1x2", "--trace", str(trace), "--requests", "40", "--most", "2")
    code, out, err = run(*asked, "--attainment", "99.95%")
    assert code == 0 and "99.95%" in out
    assert "99.95% are asked for" in err and "100%" not in err


def test_runs_that_are_too_short_are_said_to_be(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("--model", "opt-13b", "--nodes", "a100-80g=1x1", "--trace", str(trace), "--most", "1", "--tpot", "200ms")
    whole, cut = run(*asked), run(*asked, "--requests", "20")
    assert whole[0] == cut[0] == 0
    assert "too short" not in whole[2]
    said = re.search(r"runs of 20 requests last [01][.0-9]* answers at .* give --requests (\d+)", cut[2])
    assert said and int(said[1]) >= 300
    monkeypatch.setattr("penstock.cli.plan._LONGEST", 20)
    assert "there may be no longer runs" in run(*asked)[2]


def test_every_shape_of_plan_is_a_deployment_that_the_api_takes() -> None:
    model = find_model("mixtral-8x7b")
    assert model is not None
    sample = draw_sample(Trace((TraceRequest(0.0, 100, 10),), 16), 20)
    space = Space(model, parse_nodes("h100-80g=1x8,mi300x-192g=1x8"), sample, Objectives(0.5, 0.04, 0.925), 4096)
    degrees = Parallelism(tensor=2, pipeline=2, expert=2)
    plan = Plan(
        (
            PlanPool(Cell("h100-80g", Role.PREFILL, degrees, 2048), 1),
            PlanPool(Cell("h100-80g", Role.DECODE, Parallelism(4), 2048), 1),
            PlanPool(Cell("mi300x-192g", Role.PREFILL, Parallelism(1), 8192), 3),
            PlanPool(Cell("mi300x-192g", Role.DECODE, Parallelism(1), 2048), 5),
        )
    )
    made = deployment(space, plan, "mixed")
    assert [pool.name for pool in made.spec.pools or []] == [
        "prefill-h100-80g", "decode-h100-80g", "prefill-mi300x-192g", "decode-mi300x-192g",
    ]  # fmt: skip
    text = manifest(space, plan, "mixed")
    assert "--max-num-batched-tokens=2048" in text and "Variants of its EngineClass" in text
    read = ModelDeployment.model_validate(yaml.safe_load(text))
    assert read.spec == made.spec and read.spec.objectives.attainment == "92.5%"
    assert read.spec.pools is not None and read.spec.pools[0].parallelism.expert == 2
