"""Advise writes no replicas; Auto scales out and in, within bounds and budget; silence takes nothing away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import yaml
from penstock.box.standalone import StandaloneControlPlane, free_port

pytestmark = pytest.mark.control_plane

REPOSITORY = Path(__file__).parents[2]
NAMESPACE = "scaling"
POOL = "chat-serve-h100-80g"
READ = ["get", "list", "watch"]
NAMESPACED = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": [*READ, "patch"]},
    {"apiGroups": ["penstock.dev"], "resources": ["modeldeployments", "workerpools"], "verbs": READ},
    {
        "apiGroups": ["penstock.dev"],
        "resources": ["workerpools/scale", "modeldeployments/status"],
        "verbs": ["get", "patch"],
    },
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "get", "update"]},
]
CLUSTER = [
    {
        "apiGroups": ["penstock.dev"],
        "resources": ["engineclasses", "acceleratorclasses", "performanceprofiles"],
        "verbs": READ,
    }
]
"""What the chart grants."""


@dataclass
class Engine:
    """A worker's /metrics: requests arrive at `rate` per second of the wall clock and end at once."""

    rate: float = 0.0
    silent: bool = False
    port: int = 0
    ended: float = 0.0
    at: float = field(default_factory=time.monotonic)

    def page(self) -> bytes:
        now = time.monotonic()
        self.ended, self.at = self.ended + self.rate * (now - self.at), now
        of = '{engine="0",model_name="chat"}'
        lines = {
            "num_requests_running": 2,
            "num_requests_waiting": 0,
            "prompt_tokens_total": 1000 * self.ended,
            "request_prompt_tokens_sum": 1000 * self.ended,
            "request_prompt_tokens_count": self.ended,
            "request_generation_tokens_sum": 200 * self.ended,
            "request_generation_tokens_count": self.ended,
        }
        text = "".join(f"vllm:{name}{of} {value}\n" for name, value in lines.items())
        stop = 'vllm:request_success_total{engine="0",model_name="chat",finished_reason="stop"}'
        return f"{text}{stop} {self.ended}\n".encode()


class Cluster:
    """kubectl as administrator, and the few controllers' work that a test does by hand."""

    def __init__(self, plane: StandaloneControlPlane) -> None:
        self.plane = plane
        self.engines: dict[str, Engine] = {}

    def __call__(self, *arguments: str, stdin: object = None) -> str:
        command = [str(self.plane.kubectl), f"--kubeconfig={self.plane.kubeconfig}", "-n", NAMESPACE, *arguments]
        text = json.dumps(stdin) if stdin is not None else None
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        found = json.loads(self("get", *arguments, "-o", "json"))
        assert isinstance(found, dict)
        return found

    def replicas(self) -> int:
        return int(self.get("wpool", POOL)["spec"]["replicas"])

    def recommendation(self) -> dict[str, Any]:
        return dict(self.get("mdep", "chat").get("status", {}).get("recommendation") or {})

    def worker(self, name: str, engine: Engine) -> None:
        """A ready worker's pod, as its kubelet would report it."""
        keys = {"deployment": "chat", "pool": "serve", "role": "PrefillDecode", "accelerator": "h100-80g"}
        metadata = {
            "name": name,
            "labels": {f"penstock.dev/{key}": value for key, value in keys.items()},
            "annotations": {"penstock.dev/model": "chat"},
        }
        container = {"name": "engine", "image": "x", "ports": [{"name": "http", "containerPort": engine.port}]}
        spec = {"containers": [container], "automountServiceAccountToken": False, "nodeName": "nowhere"}
        self("apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        started = "2026-01-01T00:00:00Z"
        running = {"name": "engine", "image": "x", "imageID": "x", "ready": True, "started": True, "restartCount": 0}
        status = {
            "phase": "Running",
            "podIP": "127.0.0.1",
            "podIPs": [{"ip": "127.0.0.1"}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": started}],
            "containerStatuses": [{**running, "state": {"running": {"startedAt": started}}}],
        }
        self("patch", "pod", name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
        self.engines[name] = engine

    def mode(self, mode: str) -> None:
        self("patch", "mdep", "chat", "--type=merge", "-p", json.dumps({"spec": {"autoscaling": {"mode": mode}}}))

    def metric(self, url: str, name: str) -> list[float]:
        page = httpx.get(url, trust_env=False).text.splitlines()
        return [float(line.rsplit(" ", 1)[1]) for line in page if line.startswith(f"penstock_autoscaler_{name}{{")]


@pytest.fixture(scope="module")
def cluster(control_plane: StandaloneControlPlane) -> Cluster:
    made = Cluster(control_plane)
    crds = sorted((REPOSITORY / "crds").glob("*.yaml"))
    made("apply", "--server-side", "--force-conflicts", *(f"--filename={path}" for path in crds))
    for plural in ("workerpools", "modeldeployments", "acceleratorclasses", "engineclasses", "performanceprofiles"):
        made("wait", "--for=condition=Established", f"crd/{plural}.penstock.dev", "--timeout=30s")
    made("create", "namespace", NAMESPACE)
    made("create", "serviceaccount", "default")
    shared: list[dict[str, Any]] = [
        {
            "apiVersion": "penstock.dev/v1alpha1",
            "kind": "AcceleratorClass",
            "metadata": {"name": "h100-80g"},
            "spec": {
                "resourceName": "nvidia.com/gpu",
                "memory": "80Gi",
                "memoryBandwidth": "3350G",
                "pricePerHour": "2.50",
            },
        },
        {
            "apiVersion": "penstock.dev/v1alpha1",
            "kind": "EngineClass",
            "metadata": {"name": "plain"},
            "spec": {"adapter": "vLLM", "image": "x", "default": True},
        },
        {
            "apiVersion": "penstock.dev/v1alpha1",
            "kind": "PerformanceProfile",
            "metadata": {"name": "chat-h100"},
            "spec": {
                "modelName": "chat",
                "acceleratorClassName": "h100-80g",
                "source": "Benchmark",
                "provenance": "made up for this test",
                "prefill": {"base": "5", "perToken": "0.08"},
                "decode": {"base": "8", "perSequence": "0.05", "perContextToken": "0.00001"},
                "kvCapacityTokens": 400000,
            },
        },
        {
            "apiVersion": "penstock.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": "chat"},
            "spec": {
                "model": {"name": "chat"},
                "objectives": {"ttft": "1s", "tpot": "50ms"},
                "pools": [{"name": "serve", "acceleratorClasses": ["h100-80g"], "replicas": {"min": 1, "max": 20}}],
                "autoscaling": {"mode": "Advise", "budget": {"maxAccelerators": 6}},
            },
        },
        {
            "apiVersion": "penstock.dev/v1alpha1",
            "kind": "WorkerPool",
            "metadata": {"name": POOL},
            "spec": {
                "deploymentName": "chat",
                "poolName": "serve",
                "role": "PrefillDecode",
                "acceleratorClassName": "h100-80g",
                "modelName": "chat",
                "replicas": 2,
                "minReplicas": 1,
                "maxReplicas": 20,
                "template": {"spec": {"containers": [{"name": "engine", "image": "x"}]}},
            },
        },
    ]
    for each in shared:
        # As the operator writes: another manager's replicas would rightly stop the autoscaler.
        made("apply", "--server-side", "--field-manager=penstock-operator", "-f", "-", stdin=each)
    return made


@pytest.fixture(scope="module")
def rights(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig with the chart's rights."""
    cluster("create", "serviceaccount", "autoscaler")
    for kind, rules in (("Role", NAMESPACED), ("ClusterRole", CLUSTER)):
        body = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": kind,
            "metadata": {"name": "scaling"},
            "rules": rules,
        }
        cluster("apply", "-f", "-", stdin=body)
    account = f"--serviceaccount={NAMESPACE}:autoscaler"
    cluster("create", "rolebinding", "scaling", "--role=scaling", account)
    cluster("create", "clusterrolebinding", "scaling", "--clusterrole=scaling", account)
    config = yaml.safe_load(cluster.plane.kubeconfig.read_text())
    token = cluster("create", "token", "autoscaler").strip()
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    path = tmp_path_factory.mktemp("rights") / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def engines(number: int) -> Iterator[list[Engine]]:
    made = [Engine() for _ in range(number)]
    servers = []
    for engine in made:

        class Handler(BaseHTTPRequestHandler):
            of = engine

            def do_GET(self) -> None:
                body = self.of.page()
                self.send_response(503 if self.of.silent else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Be quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        engine.port = server.server_address[1]
        thread = Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
    yield made
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def autoscaler(rights: Path, log: Path) -> Iterator[str]:
    """A running autoscaler whose windows are a hundred times shorter; its metrics URL."""
    health, metrics = free_port(), free_port()
    arguments = [
        f"--watch-namespaces={NAMESPACE}",
        "--scrape-interval=300ms",
        "--signal-window=3s",
        "--cycle-interval=300ms",
        "--time-scale=0.01",
        f"--namespace={NAMESPACE}",
        "--host=127.0.0.1",
        f"--health-port={health}",
        f"--metrics-port={metrics}",
    ]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock.autoscaler", *arguments],
            env={**os.environ, "KUBECONFIG": str(rights)},
            stderr=output,
        )
        try:
            yield f"http://127.0.0.1:{metrics}/metrics"
        finally:
            process.terminate()
            assert process.wait(timeout=20) == 0, log.read_text()


def wait_for(what: str, true: Callable[[], object], log: Path, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not in time\n{log.read_text()[-6000:]}"
        time.sleep(0.2)


def test_a_pool_follows_the_load(cluster: Cluster, rights: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with engines(2) as workers, autoscaler(rights, log) as url:
        for at, engine in enumerate(workers):
            cluster.worker(f"w{at}", engine)
            engine.rate = 30.0
        # Advise: the plan stands in status and metrics, and nobody moves.
        wait_for("advice", lambda: cluster.recommendation().get("why") == "Load", log)
        said = cluster.recommendation()
        assert said["pools"][0]["replicas"] > 2
        assert "requests/s" in said["reason"]
        assert cluster.metric(url, "desired_replicas")[0] > 2
        assert cluster.replicas() == 2
        # Auto: out, and never beyond the budget of six accelerators.
        for engine in workers:
            engine.rate = 100.0
        cluster.mode("Auto")
        wait_for("scale-out", lambda: cluster.replicas() == 6, log)
        wait_for("the budget is named", lambda: cluster.recommendation().get("heldBy") == "OverBudget", log)
        events = cluster.get("events.events.k8s.io")["items"]
        assert any(e["reason"] == "Scaled" and POOL in e["note"] for e in events)
        # Nobody answers and nobody asks: nothing is taken away, and status says why.
        for engine in workers:
            engine.rate, engine.silent = 0.0, True
        wait_for("degraded", lambda: cluster.recommendation().get("degraded") == "SignalsMissing", log)
        assert cluster.replicas() == 6
        # The workers answer again, and there is little to do: in, step by step, down to the least.
        for engine in workers:
            engine.rate, engine.silent = 0.5, False
        wait_for("scale-in", lambda: cluster.replicas() == 1, log, 60)
        costs = [
            p["metadata"]["annotations"].get("controller.kubernetes.io/pod-deletion-cost")
            for p in cluster.get("pods")["items"]
        ]
        assert costs == ["2", "2"]
        # Another manager writes: ours steps back.
        cluster("scale", "wpool", POOL, "--replicas=4")
        wait_for("stepping back", lambda: cluster.recommendation().get("degraded") == "OtherWriter", log)
        assert cluster.replicas() == 4
    assert "Forbidden" not in log.read_text() and '"code":403' not in log.read_text()
