"""`penstock profile fit` from the command line: outcomes in, an object that the API takes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from penstock.api import PerformanceProfile
from penstock.cli.main import app
from penstock.core.models import LatencyProfile, ProfileSource, find_model
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator import Scenario, parse_nodes, simulate
from typer.testing import CliRunner

TRUE = LatencyProfile((15.0, 0.12, 5e-6), (25.0, 0.4, 3e-4), ProfileSource.BENCHMARK, "made up")


def benchmark() -> Trace:
    """Requests one by one, then in crowds."""
    lone = [TraceRequest(3.0 * n, 100 + 90 * n, 20 + n % 7) for n in range(30)]
    crowds = [
        TraceRequest(150.0 + 8.0 * size + 0.001 * k, 100 + 41 * k % 700, 30)
        for size in (2, 4, 8, 16)
        for k in range(size)
    ]
    return Trace((*lone, *crowds), 16)


@pytest.fixture
def outcomes(tmp_path: Path) -> Path:
    model = find_model("llama-3.1-8b")
    assert model is not None
    scenario = Scenario(model, parse_nodes("a100-80g=1x1"), policy="LeastLoaded", profile=TRUE, max_context=4096)
    names = ("verdict", "sent_s", "ttft_s", "e2e_s", "prompt_tokens", "output_tokens", "cached_tokens")
    lines = [
        json.dumps({name: getattr(outcome, name) for name in names})
        for outcome in simulate(scenario, benchmark()).outcomes
    ]
    file = tmp_path / "outcomes.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["profile", "fit", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_fitted_object_can_be_applied_and_is_close_to_the_truth(outcomes: Path) -> None:
    code, out, err = run(
        "--outcomes", str(outcomes), "--model", "meta-llama/Llama-3.1-8B", "--accelerator", "a100-80g", "--tensor", "2"
    )
    assert code == 0, err
    made = PerformanceProfile.model_validate(yaml.safe_load(out))
    assert made.spec.parallelism.tensor == 2 and "median error" in made.spec.provenance
    fitted = LatencyProfile(made.spec.prefill.values, made.spec.decode.values, ProfileSource.BENCHMARK, "")
    for tokens in (200, 1000, 2500):
        assert fitted.prefill_ms(tokens) == pytest.approx(TRUE.prefill_ms(tokens), rel=0.05)
    for batch in (1, 4, 16):
        assert fitted.decode_ms(batch, batch * 500) == pytest.approx(TRUE.decode_ms(batch, batch * 500), rel=0.05)
    assert "off by" in err and "R2" in err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "no request was completed"),
        ("{}\n", "line 1 is no outcome"),
        ("what\n", "line 1 is no outcome"),
        ("\udcff\n", "line 1 is no outcome"),
    ],
)
def test_what_is_no_benchmark_is_refused_in_a_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "outcomes.jsonl"
    file.write_text(content, errors="surrogateescape")
    code, out, err = run("--outcomes", str(file), "--model", "m", "--accelerator", "a100-80g")
    assert code == 2 and sentence in err and not out


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    code, _, err = run("--outcomes", str(tmp_path / "none.jsonl"), "--model", "m", "--accelerator", "a100-80g")
    assert code == 2 and "none.jsonl: cannot be read: No such file" in err


@pytest.mark.parametrize(
    ("model", "name", "sentence"),
    [
        ("m", "Bad Name", "'Bad Name' is no name of an object"),
        ("m", "-m", "neither first nor last"),
        ("my model", "m", "modelName 'my model': String should match"),
    ],
)
def test_no_name_is_printed_that_the_api_refuses(outcomes: Path, model: str, name: str, sentence: str) -> None:
    code, out, err = run(
        "--outcomes", str(outcomes), "--model", model, "--accelerator", "a100-80g", "--name", name
    )  # fmt: skip
    assert code == 2 and sentence in err and not out


def test_a_name_is_made_of_any_models(outcomes: Path) -> None:
    code, out, err = run("--outcomes", str(outcomes), "--model", "org/Model_1.5:tag+x", "--accelerator", "a100-80g")
    assert code == 0, err
    assert yaml.safe_load(out)["metadata"]["name"] == "model-1-5-tag-x-a100-80g-tp1"
