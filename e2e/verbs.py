"""The words scenarios are written in: a running box, load through its gateway, and things breaking on purpose."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.box.control import ask
from penstock.cli.replay_client import Target
from penstock.cli.replay_run import Plan, Progress, replay
from penstock.core.reports import Outcome, Verdict
from penstock.core.traces import Trace

Object = dict[str, Any]

SLACK_S = 0.5
"""The load's clock starts when its first body is written, the scenario's a moment before."""
ANSWERS_WITHIN_S = 120.0
"""How long after a trace's end its last answers may take."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running box with the chart installed."""

    kubectl_program: Path
    kubeconfig: Path
    control_socket: Path
    gateway_url: str

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        """What kubectl prints; raises AssertionError with what it said when it fails."""
        done = self.try_kubectl(*arguments, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr.strip()}"
        return done.stdout

    def try_kubectl(
        self, *arguments: str, stdin: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl, whatever comes of it."""
        return subprocess.run(
            [str(self.kubectl_program), f"--kubeconfig={self.kubeconfig}", *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def get(self, *arguments: str) -> Object:
        """One object, or a list object, as JSON."""
        answer = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        assert isinstance(answer, dict)
        return answer

    def items(self, *arguments: str) -> list[Object]:
        """The objects of a list."""
        return list(self.get(*arguments)["items"])

    def condition(self, name: str, kind: str, namespace: str = "default") -> Object:
        """A ModelDeployment's condition; empty where it has none of that type."""
        found = self.get("mdep", name, "-n", namespace).get("status", {}).get("conditions", [])
        return next((c for c in found if c["type"] == kind), {})

    def workers(self, deployment: str, namespace: str = "default") -> list[Object]:
        """The pods of a deployment that are not on their way out."""
        pods = self.items("pods", "-n", namespace, "-l", f"penstock.dev/deployment={deployment}")
        return [p for p in pods if "deletionTimestamp" not in p["metadata"]]

    def ready_workers(self, deployment: str, namespace: str = "default") -> list[Object]:
        """The pods of a deployment that are ready and stay."""
        return [p for p in self.workers(deployment, namespace) if is_ready(p)]

    def kill_component(self, name: str) -> None:
        """SIGKILL a process of the control plane; the supervisor starts it again."""
        ask(self.control_socket, {"verb": "kill", "component": name})

    def kill_node(self, name: str) -> None:
        """Lose a node: kubelet, container runtime and pods die together."""
        ask(self.control_socket, {"verb": "kill", "node": name})

    def start_node(self, name: str) -> None:
        """Bring a lost node back."""
        ask(self.control_socket, {"verb": "start", "node": name})

    def kill_pod_process(self, pod: Object, words: str) -> int:
        """SIGKILL the processes of a pod whose command line holds `words`; returns how many were found."""
        name = pod["metadata"]["name"]
        pids = [pid for pid in _pids() if words in _cmdline(pid) and _hostname(pid) == name]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return len(pids)

    def read_file(self, pod: Object, words: str, path: str) -> bytes:
        """A file as the process of a pod whose command line holds `words` sees it; empty where there is none."""
        name = pod["metadata"]["name"]
        for pid in [pid for pid in _pids() if words in _cmdline(pid) and _hostname(pid) == name]:
            file = Path(f"/proc/{pid}/root{path}")
            if file.exists():
                return file.read_bytes()
        return b""


def is_ready(pod: Object) -> bool:
    """Whether a pod's condition Ready is True."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def wait_for(what: str, holds: Callable[[], bool], seconds: float, every: float = 0.5) -> float:
    """Wait until `holds()`; returns the seconds it took, raises AssertionError naming `what` when it never did."""
    start = time.monotonic()
    failure: BaseException | None = None
    while True:
        try:
            if holds():
                return time.monotonic() - start
            failure = None
        except (AssertionError, OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
            failure = error  # The API server may be away for a moment: that is what some scenarios are about.
        if time.monotonic() - start > seconds:
            raise AssertionError(f"{what}: not within {seconds:g} s" + (f" ({failure})" if failure else ""))
        time.sleep(every)


@dataclass(slots=True)
class Load:
    """Traffic that runs beside a scenario."""

    progress: Progress
    started: float
    stop: Callable[[], None]
    marks: list[tuple[str, float, float]] = field(default_factory=list)

    def now(self) -> float:
        """Seconds since the first request was due."""
        return time.monotonic() - self.started

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """Name what happens inside, so that outcomes can be laid beside it."""
        start = self.now()
        try:
            yield
        finally:
            self.marks.append((name, start, self.now()))

    def outcomes(self) -> list[Outcome]:
        """What became of the requests so far."""
        return list(self.progress.outcomes)

    def during(self, name: str) -> list[Outcome]:
        """Requests whose life overlapped the fault of that name."""
        spans = [(start, end) for mark, start, end in self.marks if mark == name]
        assert spans, f"no fault {name}"
        return [
            o
            for o in self.outcomes()
            if any(o.sent_s <= end and o.sent_s + (o.e2e_s or 0.0) >= start - SLACK_S for start, end in spans)
        ]


@contextmanager
def load(cluster: Cluster, trace: Trace, model: str, seed: int = 1) -> Iterator[Load]:
    """Send a trace through the gateway while the body runs, then wait for the answers that are still due."""
    progress = Progress(len(trace.requests))
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    failure: list[BaseException] = []
    ready = threading.Event()

    async def play() -> None:
        target = await Target.of(cluster.gateway_url, None).located(5.0)
        running.started = time.monotonic()
        ready.set()
        await replay(Plan(trace, model, seed), target, stop, progress)

    def run() -> None:
        try:
            loop.run_until_complete(play())
        except BaseException as error:
            failure.append(error)
        finally:
            ready.set()
            loop.close()

    running = Load(progress, time.monotonic(), lambda: loop.call_soon_threadsafe(stop.set))
    thread = threading.Thread(target=run, name="load", daemon=True)
    thread.start()
    ready.wait(15)
    try:
        yield running
    except BaseException:
        if thread.is_alive():
            running.stop()
        raise
    finally:
        thread.join(trace.duration_s + ANSWERS_WITHIN_S)
    if failure:
        raise failure[0]
    assert not thread.is_alive(), "the load did not end"


def describe(outcomes: list[Outcome]) -> str:
    """A few failed outcomes in words, for a test's message."""
    bad = [o for o in outcomes if o.verdict is not Verdict.COMPLETED]
    shown = "; ".join(
        f"#{o.index} at {o.sent_s:.1f}s {o.verdict} {o.error} first byte {o.ttft_s} after {o.e2e_s}: {o.detail}"
        for o in bad[:8]
    )
    return f"{len(bad)} of {len(outcomes)} not completed: {shown}"


def _pids() -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]


def _cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _hostname(pid: int) -> str:
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((p.partition(b"=")[2].decode() for p in pairs if p.startswith(b"HOSTNAME=")), "")
