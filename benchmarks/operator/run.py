"""200 ModelDeployments at once: time until all are Available, CPU and memory of the operator.

A real API server, etcd and controller manager; pods are marked ready by status patches, as no kubelet runs. The
baseline, in the same run on the same objects: bare kopf that writes one status field per object and makes nothing.

    python benchmarks/operator/run.py [--deployments 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from penstock.box import components
from penstock.box.binaries import API_PROGRAMS, ensure_programs
from penstock.box.kubeconfig import write_kubeconfig
from penstock.box.standalone import StandaloneControlPlane, free_port, standalone_control_plane
from penstock.operator.decisions.writes import Apply
from penstock.operator.shell.kube import ApiError, Kube

HERE = Path(__file__).resolve().parent
CRDS = HERE.parents[1] / "crds"
KIND = ("penstock.dev/v1alpha1", "ModelDeployment")
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one operator process took."""

    name: str
    seconds: float
    """Wall clock from the first create until the last deployment is done."""
    cpu_seconds: float
    cpu_start_seconds: float
    """Of which before the first create: imports and first lists."""
    peak_rss_mib: float
    idle_cpu_percent: float
    """Of one core, over ten quiet seconds afterwards."""


def deployment(number: int) -> dict[str, Any]:
    name = f"load-{number:03d}"
    return {
        "apiVersion": KIND[0],
        "kind": KIND[1],
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "model": {"name": name, "architecture": {"name": "meta-llama/Llama-3.1-8B-Instruct"}},
            "objectives": {"ttft": "1s", "tpot": "50ms"},
            "pools": [{"name": "serve", "acceleratorClasses": ["a100-80g"], "replicas": {"min": 1}}],
        },
    }


CLASSES = """
apiVersion: penstock.dev/v1alpha1
kind: EngineClass
metadata: {name: simulated}
spec: {adapter: Simulated, default: true, image: penstock/simulated-engine}
---
apiVersion: penstock.dev/v1alpha1
kind: AcceleratorClass
metadata: {name: a100-80g}
spec: {resourceName: nvidia.com/gpu, memory: 80Gi, memoryBandwidth: 2039G, flops: {bf16: 312T}, pricePerHour: "3.67"}
"""


@contextmanager
def cluster(folder: Path) -> Iterator[StandaloneControlPlane]:
    """API server, etcd and controllers; the controllers' own throttle is lifted so that it is not what is measured."""
    programs = ensure_programs(API_PROGRAMS | {"kube-controller-manager"})
    with standalone_control_plane(programs.folder_of(API_PROGRAMS), folder) as running:
        port, pki = int(running.url.rsplit(":", 1)[1]), running.pki
        plane = components.ControlPlane(running.kubectl.parent, pki, running.logs, "127.0.0.1", port, 0, 0)
        config = write_kubeconfig(running.logs / "kcm", running.url, pki.ca_pem, pki.controller_manager)
        command = components.kube_controller_manager(plane, config)
        command += [f"--secure-port={free_port()}", "--kube-api-qps=500", "--kube-api-burst=1000"]
        command += ["--concurrent-replicaset-syncs=10"]
        with (running.logs / "kcm.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                kubectl(running, "apply", "--server-side", *(f"-f={path}" for path in sorted(CRDS.glob("*.yaml"))))
                kubectl(running, "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
                kubectl(running, "apply", "--server-side", "-f=-", stdin=CLASSES)
                yield running
            finally:
                process.kill()


def kubectl(running: StandaloneControlPlane, *arguments: str, stdin: str | None = None) -> None:
    command = [str(running.kubectl), f"--kubeconfig={running.kubeconfig}", *arguments]
    subprocess.run(command, input=stdin, text=True, check=True, capture_output=True)


async def measure(
    name: str, command: list[str], running: StandaloneControlPlane, count: int, done: Callable[[dict[str, Any]], bool]
) -> Cost:
    """Start an operator, wait until it is idle, create everything, wait until `done` holds for all of it."""
    environment = {**os.environ, "KUBECONFIG": str(running.kubeconfig)}
    log = (running.logs / f"{name.split()[0]}.log").open("wb")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: ASYNC220
    try:
        async with Kube(concurrency=32) as kube:
            await asyncio.sleep(8.0)
            assert process.poll() is None, f"{name} ended; see {log.name}"
            cpu_before, began = cpu_seconds(process.pid), time.perf_counter()
            kubelet = asyncio.create_task(mark_pods_ready(kube))
            await asyncio.gather(*(kube.create(deployment(number)) for number in range(count)))
            await until_all(kube, done)
            seconds = time.perf_counter() - began
            kubelet.cancel()
            await asyncio.sleep(5.0)
            cpu, peak = cpu_seconds(process.pid), peak_rss_mib(process.pid)
            await asyncio.sleep(10.0)
            idle = (cpu_seconds(process.pid) - cpu) * 10.0
            return Cost(name, seconds, cpu, cpu_before, peak, idle)
    finally:
        process.terminate()
        process.wait(30)
        log.close()


async def until_all(kube: Kube, done: Callable[[dict[str, Any]], bool]) -> None:
    while True:
        await asyncio.sleep(0.25)
        if all(done(each) for each in (await kube.list(*KIND))["items"]):
            return


async def mark_pods_ready(kube: Kube) -> None:
    """The kubelet's part: every pod becomes ready soon after it appears."""
    conditions = [{"type": kind, "status": "True"} for kind in ("PodScheduled", "Ready")]
    while True:
        pods = (await kube.list("v1", "Pod", "default"))["items"]
        fresh = [pod["metadata"] for pod in pods if pod["status"].get("phase") != "Running"]
        await asyncio.gather(*(mark(kube, metadata, conditions) for metadata in fresh))
        await asyncio.sleep(0.25)


async def mark(kube: Kube, metadata: dict[str, Any], conditions: list[dict[str, str]]) -> None:
    named = {"name": metadata["name"], "namespace": "default"}
    status = {"phase": "Running", "conditions": conditions}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": named, "status": status}
    try:
        await kube.apply(Apply(body, manager="kubelet", subresource="status"))
    except ApiError as error:
        if error.code != 404:
            raise


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def peak_rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def available(stored: dict[str, Any]) -> bool:
    conditions = stored.get("status", {}).get("conditions", [])
    return any(c["type"] == "Available" and c["status"] == "True" for c in conditions)


def touched(stored: dict[str, Any]) -> bool:
    return bool(stored.get("status", {}).get("workers"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deployments", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    flags = [f"--health-port={free_port()}", f"--metrics-port={free_port()}", "--log-level=warning"]
    subjects = (
        ("bare kopf, one status field", [sys.executable, str(HERE / "bare_kopf.py")], touched),
        ("penstock.operator", [sys.executable, "-m", "penstock.operator", *flags], available),
    )
    costs = []
    for name, command, done in subjects:
        with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as running:
            os.environ["KUBECONFIG"] = str(running.kubeconfig)
            costs.append(asyncio.run(measure(name, command, running, given.deployments, done)))
            print(f"{name}: {costs[-1]}", file=sys.stderr)
    print(table(costs, given.deployments))
    if given.json:
        given.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=2))


def table(costs: list[Cost], count: int) -> str:
    head = f"| {count} deployments at once | until all done | CPU (of which start) | peak RSS | idle CPU |"
    lines = [head, "|---|---|---|---|---|"]
    for cost in costs:
        cpu = f"{cost.cpu_seconds:.1f} s ({cost.cpu_start_seconds:.1f})"
        memory, idle = f"{cost.peak_rss_mib:.0f} MiB", f"{cost.idle_cpu_percent:.1f} %"
        lines.append(f"| {cost.name} | {cost.seconds:.1f} s | {cpu} | {memory} | {idle} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
