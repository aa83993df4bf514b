"""`penstock top` and `penstock explain` against a small API server that proxies pods' pages."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from penstock.cli.main import app
from penstock.cli.top_data import Frame, figures, pod_state, read_deployment, read_worker
from penstock.core.wire.scrape import parse_scrape
from typer.testing import CliRunner

PAGE = """vllm:num_requests_running{{engine="0"}} {running}
vllm:num_requests_waiting{{engine="0"}} 2
vllm:kv_cache_usage_perc{{engine="0"}} 0.25
vllm:prefix_cache_queries_total{{engine="0"}} 1000
vllm:prefix_cache_hits_total{{engine="0"}} {hits}
vllm:generation_tokens_total{{engine="0"}} {tokens}
vllm:time_to_first_token_seconds_sum{{engine="0"}} {ttft_sum}
vllm:time_to_first_token_seconds_count{{engine="0"}} 10
"""
DEPLOYMENT = {
    "metadata": {"namespace": "chat", "name": "llama"},
    "spec": {
        "model": {"name": "served-llama"},
        "objectives": {"ttft": "300ms", "tpot": "40ms"},
        "autoscaling": {"mode": "Auto"},
    },
    "status": {
        "conditions": [{"type": "Ready", "status": "False", "reason": "PoolsNotReady"}],
        "pools": [
            {
                "name": "serve",
                "acceleratorClass": "a100-80g",
                "role": "PrefillDecode",
                "workerPool": "llama-serve-a100-80g",
                "replicas": 2,
                "readyReplicas": 1,
            }
        ],
        "recommendation": {
            "pools": [{"workerPool": "llama-serve-a100-80g", "replicas": 3}],
            "reason": "the load needs 3 workers",
        },
    },
}
PICK = {
    "requestId": "r-1",
    "model": "served-llama",
    "attempt": 1,
    "policy": "KVAware",
    "reason": "LeastCost",
    "worker": "chat/llama-0",
    "prefillWorker": None,
    "runnerUp": "chat/llama-1",
    "promptTokens": 640,
    "maxTokens": 16,
    "expectedHitTokens": 512,
    "measuredHitTokens": 496,
    "predictedTtftMs": 41.5,
    "predictedTpotMs": None,
    "objectives": {"ttftMs": 300.0, "tpotMs": None},
    "unit": "ms",
    "candidates": [
        {"worker": "chat/llama-0", "picked": True, "score": 41.5, "terms": {"queue_ms": 0.0, "prefill_ms": 41.5}},
        {"worker": "chat/llama-1", "picked": False, "score": 120.25, "terms": {"queue_ms": 5.0, "prefill_ms": None}},
    ],
    "prefillCandidates": [],
}


def pod(name: str, ready: bool = True, **status: Any) -> dict[str, Any]:
    labels = {
        "penstock.dev/deployment": "llama",
        "penstock.dev/pool": "serve",
        "penstock.dev/role": "PrefillDecode",
        "penstock.dev/accelerator": "a100-80g",
    }
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        "metadata": {"namespace": "chat", "name": name, "uid": f"uid-{name}", "labels": labels},
        "spec": {"containers": [{"name": "engine", "ports": [{"name": "http", "containerPort": 8123}]}]},
        "status": {"phase": "Running", "conditions": conditions} | status,
    }


class Api(BaseHTTPRequestHandler):
    """Answers what `answers` of the server holds, by path; anything else is 404."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        answer = self.server.answers.get(path)  # type: ignore[attr-defined]
        body = json.dumps({"message": f"nothing at {path}"}) if answer is None else answer
        self.send_response(404 if answer is None else 200)
        self.end_headers()
        self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Answers by path, to be filled, and the options that lead to them."""
    answers: dict[str, Any] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    server.answers = answers  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    kubeconfig = tmp_path / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    users = [{"name": "u", "user": {"token": "t"}}]
    config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context], "users": users}
    kubeconfig.write_text(yaml.safe_dump(config | {"current-context": "x"}))
    yield answers, ["--kubeconfig", str(kubeconfig)]
    server.shutdown()
    thread.join(10)
    server.server_close()


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.output


def test_one_frame_shows_deployments_pools_workers_and_the_plan(api: tuple[dict[str, Any], list[str]]) -> None:
    answers, options = api
    answers["/apis/penstock.dev/v1alpha1/modeldeployments"] = {"items": [DEPLOYMENT]}
    answers["/api/v1/pods"] = {"items": [pod("llama-0"), pod("llama-1", ready=False)]}
    answers["/api/v1/namespaces/chat/pods/llama-0:8123/proxy/metrics"] = PAGE.format(
        running=3, hits=450, tokens=900, ttft_sum=4
    )
    code, shown = run("top", "--once", *options)
    assert code == 0, shown
    lines = shown.splitlines()
    assert lines[0].startswith("chat/llama  served-llama  PoolsNotReady  autoscaling Auto")
    assert "TTFT 400 ms of 300ms" in lines[0]
    assert "TPOT - of 40ms" in lines[0]
    assert "hit 45%" in lines[0]
    (pool,) = [line.split() for line in lines if line.startswith("serve")]
    assert pool == ["serve", "PrefillDecode", "a100-80g", "1/2", "->", "3", "3", "2", "-", "400", "ms", "-", "45%", "-"]
    (ready,) = [line.split() for line in lines if "llama-0" in line]
    assert ready == ["llama-0", "PrefillDecode", "a100-80g", "Ready", "3", "2", "25%", "400", "ms", "-", "45%", "-"]
    (waiting,) = [line.split() for line in lines if "llama-1" in line]
    assert waiting[3:] == ["NotReady", *"-------"], "what is not known is not zero"
    assert lines[-1] == "plan  the load needs 3 workers"


def test_a_cluster_without_deployments_or_without_penstock_says_so(api: tuple[dict[str, Any], list[str]]) -> None:
    answers, options = api
    answers["/api/v1/namespaces/chat/pods"] = {"items": []}
    code, shown = run("top", "--once", "-n", "chat", *options)
    assert code == 1
    assert "404" in shown
    answers["/apis/penstock.dev/v1alpha1/namespaces/chat/modeldeployments"] = {"items": []}
    code, shown = run("top", "--once", "-n", "chat", *options)
    assert code == 0
    assert "No ModelDeployment" in shown


def test_bad_options_are_one_sentence(tmp_path: Path) -> None:
    code, shown = run("top", "--once", "--kubeconfig", str(tmp_path / "none"))
    assert code == 1
    assert "there is no kubeconfig" in shown
    assert run("top", "--interval", "soon")[0] == 2
    assert run("top", "--interval", "10ms")[0] == 2
    assert run("explain", "x", "-o", "xml")[0] == 2


def test_averages_are_over_the_time_between_frames() -> None:
    def frame(at: float, hits: int, tokens: int, ttft_sum: float) -> Frame:
        sample = parse_scrape(PAGE.format(running=1, hits=hits, tokens=tokens, ttft_sum=ttft_sum).encode())
        worker = read_worker(pod("llama-0"), sample)
        return Frame(at, (read_deployment(DEPLOYMENT, [worker]),), {worker.uid: sample})

    before, now = frame(10.0, 100, 500, 1.0), frame(12.0, 400, 700, 3.0)
    (deployment,) = now.deployments
    assert figures(deployment.workers, now, before).tokens_per_second == 100.0
    assert figures(deployment.workers, now, before).ttft is None, "no request got its first token in between"
    assert figures(deployment.workers, now, None).ttft == pytest.approx(0.3)
    assert figures(deployment.workers, now, None).tokens_per_second is None
    restarted = frame(14.0, 5, 60, 0.5)
    (deployment,) = restarted.deployments
    assert figures(deployment.workers, restarted, now).tokens_per_second == 30.0, "a counter that fell began anew"


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "NotReady"),
        ({"phase": "Pending"}, "Pending"),
        ({"phase": "Failed", "reason": "Evicted"}, "Evicted"),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}, "CrashLoopBackOff"),
    ],
)
def test_a_pods_state_is_one_word(changes: dict[str, Any], state: str) -> None:
    assert pod_state(pod("x", ready=False, **changes)) == state
    leaving = pod("x")
    leaving["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    assert pod_state(leaving) == "Leaving"


def test_explain_asks_every_router_and_shows_the_terms(api: tuple[dict[str, Any], list[str]]) -> None:
    answers, options = api
    assert "the API server answered 404" in run("explain", "r-1", *options)[1]
    routers = [{"metadata": {"namespace": "penstock", "name": f"router-{i}"}} for i in range(2)]
    answers["/api/v1/pods"] = {"items": []}
    assert "no router" in run("explain", "r-1", *options)[1]
    answers["/api/v1/pods"] = {"items": routers}
    code, shown = run("explain", "r-1", *options)
    assert code == 1
    assert "nothing at" in shown
    answers["/api/v1/namespaces/penstock/pods/router-1:9090/proxy/penstock/v1/explain/r-1"] = {"picks": [PICK]}
    code, shown = run("explain", "r-1", *options)
    assert code == 0, shown
    assert "chat/llama-0 by KVAware: LeastCost, ahead of chat/llama-1" in shown
    assert "512 expected in cache, 496 found; TTFT 41.5 ms predicted of 300 ms; TPOT - ms predicted" in shown
    (picked,) = [line.split() for line in shown.splitlines() if line.startswith("*")]
    assert picked == ["*", "chat/llama-0", "41.5", "0", "41.5"]
    (other,) = [line.split() for line in shown.splitlines() if line.strip().startswith("chat/llama-1")]
    assert other == ["chat/llama-1", "120", "5", "-"]
    code, shown = run("explain", "r-1", "-o", "json", *options)
    assert json.loads(shown) == [PICK]
