"""`penstock replay` as a person runs it: exit codes, the report file, sentences for what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from penstock.cli.replay_target import FALLBACK_URL, default_url
from penstock.core.reports import Report

MODEL = "test-model"
GOOD_LINE = '{"timestamp_ms": 0, "input_tokens": 1, "output_tokens": 1}\n'


def write_trace(folder: Path, count: int = 5, gap_ms: int = 10, tokens: int = 30) -> Path:
    path = folder / "trace.jsonl"
    rows = ({"timestamp_ms": i * gap_ms, "input_tokens": tokens + i, "output_tokens": 4} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments: object, timeout: float = 20) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock.cli.replay", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def test_a_whole_run_reports_and_ends_with_0(server, tmp_path: Path) -> None:
    report_file, outcomes_file = tmp_path / "report.json", tmp_path / "outcomes.jsonl"
    done = run(
        write_trace(tmp_path), "--model", MODEL, "--url", server.url, "--json", report_file, "--outcomes", outcomes_file
    )
    assert done.returncode == 0, done.stderr
    assert "TTFT" in done.stdout and "5 completed, 0 failed, 0 rejected" in done.stdout
    data = json.loads(report_file.read_text())
    assert data["requests"] == {"total": 5, "completed": 5, "failed": 0, "rejected": 0}
    for name in ("ttft_seconds", "tpot_seconds", "e2e_seconds"):
        assert set(data[name]) == {"mean", "p50", "p90", "p99"}
    assert data["prefix_hit_ratio"] == pytest.approx(sum((30 + i) // 4 for i in range(5)) / data["prompt_tokens"])
    assert Report.from_dict(data).output_tokens == 20
    assert [json.loads(line)["index"] for line in outcomes_file.read_text().splitlines()] == [0, 1, 2, 3, 4]


def test_a_failed_request_ends_with_1_and_is_named(server, tmp_path: Path) -> None:
    server.manner |= {1: "429", 2: "cut"}
    done = run(write_trace(tmp_path), "--model", MODEL, "--url", server.url)
    assert done.returncode == 1
    assert "3 completed, 1 failed, 1 rejected" in done.stdout
    assert "1 x Http429" in done.stdout and "1 x StreamCut" in done.stdout


def test_requests_over_the_models_context_are_dropped_and_counted(server, tmp_path: Path) -> None:
    server.max_model_len = 36
    report_file = tmp_path / "report.json"
    done = run(write_trace(tmp_path), "--model", MODEL, "--url", server.url, "--json", report_file)
    assert done.returncode == 0, done.stderr
    data = json.loads(report_file.read_text())
    assert (data["requests"]["total"], data["run"]["dropped_over_context"]) == (3, 2)
    assert "2 requests dropped" in done.stderr


def test_limit_and_rate_scale_bound_the_run(server, tmp_path: Path) -> None:
    report_file = tmp_path / "report.json"
    trace = write_trace(tmp_path, count=10, gap_ms=1000)
    arguments = ("--model", MODEL, "--url", server.url, "--json", report_file)
    assert run(trace, *arguments, "--rate-scale", "100", "--limit", "50ms").returncode == 0
    data = json.loads(report_file.read_text())
    assert data["requests"]["total"] == 5
    assert data["duration_seconds"] < 5


def test_a_model_that_is_not_served_is_said_before_anything_is_sent(server, tmp_path: Path) -> None:
    done = run(write_trace(tmp_path), "--model", "other", "--url", server.url)
    assert done.returncode == 2
    assert "does not serve 'other'; it serves: test-model" in done.stderr
    assert not server.received


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '{"timestamp_ms": 0, "input_tokens": 1, "output_tokens": 1}\n{"timestamp_ms": 1}\n',
            "line 2: input_tokens is missing",
        ),
        ("hello\n", "is no trace in a form we know"),
        ("", "is no trace in a form we know"),
    ],
)
def test_a_bad_trace_names_file_line_and_reason(server, tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    done = run(path, "--model", MODEL, "--url", server.url)
    assert done.returncode == 2
    assert f"{path}: {sentence}" in done.stderr
    assert "Traceback" not in done.stderr


def test_skip_bad_goes_on_and_counts(server, tmp_path: Path) -> None:
    path = write_trace(tmp_path)
    path.write_text(path.read_text() + "{broken\n")
    done = run(path, "--model", MODEL, "--url", server.url, "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert "1 bad lines left out, the first one line 6" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--url", "nonsense"), "is no base URL"),
        (("--url", "http://127.0.0.1:1"), "does not answer"),
        (("--json", "/nowhere/at/all/x.json"), "folder does not exist"),
        (("--limit", "5 days"), "is no duration"),
    ],
)
def test_wrong_arguments_are_one_sentence(server, tmp_path: Path, arguments: tuple[str, str], sentence: str) -> None:
    done = run(write_trace(tmp_path), "--model", MODEL, "--url", server.url, *arguments)
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.replace("│", "").split())
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    done = run(tmp_path / "nothing.csv", "--model", MODEL)
    assert (done.returncode, "cannot be read: No such file" in done.stderr) == (2, True)


def test_ctrl_c_prints_the_report_of_what_was_sent(server, tmp_path: Path) -> None:
    trace = write_trace(tmp_path, count=2, gap_ms=60_000)
    command = [sys.executable, "-m", "penstock.cli.replay", str(trace), "--model", MODEL, "--url", server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not server.received and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    assert "1 completed, 0 failed" in out
    assert "interrupted" in out


def test_the_default_url_is_the_boxs_or_the_usual_port(tmp_path: Path) -> None:
    env = {"PENSTOCK_STATE": str(tmp_path), "HOME": str(tmp_path)}
    assert default_url(env) == FALLBACK_URL
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "box.json").write_text("{not json")
    assert default_url(env) == FALLBACK_URL
