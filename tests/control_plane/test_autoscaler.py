"""The autoscaler as a process, with read-only rights, against a real API server: pods and pools in, signals out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import yaml
from penstock.box.standalone import StandaloneControlPlane, free_port

pytestmark = pytest.mark.control_plane

CRDS = Path(__file__).parents[2] / "crds"
NAMESPACE = "signals"
READ = ["get", "list", "watch"]
RULES = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": READ},
    {"apiGroups": ["penstock.dev"], "resources": ["modeldeployments", "workerpools"], "verbs": READ},
]
CLASSES = ["acceleratorclasses", "engineclasses", "performanceprofiles"]
"""What measuring needs to read; the writes of scaling have a test of their own."""


class Kubectl:
    """kubectl as administrator."""

    def __init__(self, plane: StandaloneControlPlane) -> None:
        self.plane = plane

    def __call__(self, *arguments: str, stdin: object = None) -> str:
        command = [str(self.plane.kubectl), f"--kubeconfig={self.plane.kubeconfig}", "-n", NAMESPACE, *arguments]
        text = json.dumps(stdin) if stdin is not None else None
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pod(self, name: str, port: int, pool: str = "serve") -> None:
        """A worker's pod whose engine is on a port of this machine, as its kubelet would report it."""
        labels = {"deployment": "llama", "pool": pool, "role": "PrefillDecode", "accelerator": "h100-80g"}
        metadata = {
            "name": name,
            "labels": {f"penstock.dev/{key}": value for key, value in labels.items()},
            "annotations": {"penstock.dev/model": "llama"},
        }
        engine = {"name": "engine", "image": "x", "ports": [{"name": "http", "containerPort": port}]}
        spec = {"containers": [engine], "automountServiceAccountToken": False, "nodeName": "nowhere"}
        self("apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        running = {"name": "engine", "image": "x", "imageID": "x", "ready": True, "started": True, "restartCount": 0}
        status = {
            "phase": "Running",
            "podIP": "127.0.0.1",
            "podIPs": [{"ip": "127.0.0.1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{**running, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}],
        }
        patch = json.dumps({"status": status})
        self("patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch)


@pytest.fixture(scope="module")
def kubectl(control_plane: StandaloneControlPlane) -> Kubectl:
    made = Kubectl(control_plane)
    made("apply", "--server-side", "--force-conflicts", *(f"--filename={path}" for path in sorted(CRDS.glob("*.yaml"))))
    made("wait", "--for=condition=Established", "crd/workerpools.penstock.dev", "--timeout=30s")
    made("create", "namespace", NAMESPACE)
    # No controller manager runs here, which would make it.
    made("create", "serviceaccount", "default")
    return made


@pytest.fixture(scope="module")
def rights(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig that may read what the chart lets the autoscaler read, in one namespace, and nothing else."""
    kubectl("create", "serviceaccount", "reader")
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "reader"},
        "rules": RULES,
    }
    kubectl("apply", "-f", "-", stdin=role)
    kubectl("create", "clusterrole", "reader", "--verb=get,list,watch", f"--resource={_resources()}")
    kubectl("create", "clusterrolebinding", "reader", "--clusterrole=reader", f"--serviceaccount={NAMESPACE}:reader")
    kubectl("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={NAMESPACE}:reader")
    config = yaml.safe_load(kubectl.plane.kubeconfig.read_text())
    config["users"] = [
        {"name": config["users"][0]["name"], "user": {"token": kubectl("create", "token", "reader").strip()}}
    ]
    path = tmp_path_factory.mktemp("rights") / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def _resources() -> str:
    return ",".join(f"{plural}.penstock.dev" for plural in CLASSES)


@contextmanager
def engine(running: int) -> Iterator[int]:
    """An engine's /metrics on a port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f'vllm:num_requests_running{{engine="0",model_name="llama"}} {running}\n'.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Be quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@contextmanager
def autoscaler(rights: Path, log: Path) -> Iterator[str]:
    """A running autoscaler; its metrics URL."""
    health, metrics = free_port(), free_port()
    ports = [f"--health-port={health}", f"--metrics-port={metrics}", "--host=127.0.0.1"]
    arguments = [f"--watch-namespaces={NAMESPACE}", "--scrape-interval=200ms", "--leader-election=false", *ports]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock.autoscaler", *arguments],
            env={**os.environ, "KUBECONFIG": str(rights)},
            stderr=output,
        )
        try:
            wait_for(lambda: status(f"http://127.0.0.1:{health}/readyz") == 200, log)
            yield f"http://127.0.0.1:{metrics}/metrics"
        finally:
            process.terminate()
            assert process.wait(timeout=20) == 0, log.read_text()


def status(url: str) -> int:
    try:
        return httpx.get(url, trust_env=False).status_code
    except httpx.TransportError:
        return 0


def wait_for(true: Callable[[], object], log: Path) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def metrics(url: str) -> list[str]:
    lines = httpx.get(url, trust_env=False).text.splitlines()
    return [line.removeprefix("penstock_autoscaler_") for line in lines if line.startswith("penstock_autoscaler_")]


def has(url: str, name: str, value: str, *labels: str) -> bool:
    return any(
        line.startswith(f"{name}{{") and line.endswith(f" {value}") and all(label in line for label in labels)
        for line in metrics(url)
    )


def test_pods_and_pools_become_signals(kubectl: Kubectl, rights: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    pool = {
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "WorkerPool",
        "metadata": {"name": "llama-serve-h100-80g"},
        "spec": {
            "deploymentName": "llama",
            "poolName": "serve",
            "role": "PrefillDecode",
            "acceleratorClassName": "h100-80g",
            "modelName": "llama",
            "replicas": 2,
            "minReplicas": 1,
            "maxReplicas": 4,
            "template": {"spec": {"containers": [{"name": "engine", "image": "x"}]}},
        },
    }
    with engine(3) as one, engine(4) as two, autoscaler(rights, log) as url:
        kubectl("apply", "-f", "-", stdin=pool)
        wait_for(lambda: has(url, "pool_desired_workers", "2.0", 'namespace="signals"', 'model="llama"'), log)
        kubectl.pod("a", one)
        kubectl.pod("b", two)
        wait_for(lambda: has(url, "pool_running_requests", "7.0", 'deployment="llama"', 'accelerator="h100-80g"'), log)
        assert has(url, "pool_signal_coverage_ratio", "1.0", 'signal="running_requests"')
        kubectl("scale", "wpool", "llama-serve-h100-80g", "--replicas=3")
        wait_for(lambda: has(url, "pool_desired_workers", "3.0"), log)
        kubectl("delete", "pod", "b", "--grace-period=0", "--force")
        wait_for(
            lambda: has(url, "pool_running_requests", "3.0") and has(url, "deployment_running_requests", "3.0"), log
        )
        kubectl("delete", "wpool", "llama-serve-h100-80g")
        kubectl("delete", "pod", "a", "--grace-period=0", "--force")
        wait_for(lambda: not any(line.startswith("pool_workers{") for line in metrics(url)), log)
    assert "Forbidden" not in log.read_text()
