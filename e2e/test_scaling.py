"""Load of 1x, 4x and 1x again over ten minutes: the workers follow it, and bounds and budget hold at every look.

The engines take 30 s to start. The guard's windows are shortened, so that a scale-in is seen within minutes. Requests
are made here, with a seed, so that 4x is 4x: long prompts and short outputs load the engines, not the cores below.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from penstock.core.reports import Verdict
from penstock.core.traces import Trace, TraceRequest
from verbs import Cluster, Object, describe, is_ready, load, wait_for

NAME = "scaling"
MODEL = "e2e/scaling-8b"
POOL = f"{NAME}-serve-a100-80g"
SYSTEM = "penstock-system"
LEAST, MOST, BUDGET = 1, 8, 8
TTFT_S, TPOT_S, ATTAINMENT = 2.0, 0.1, 0.95
PROMPT, OUTPUT = 3000, 30
RATE = 2.0
"""Requests per second of 1x: two thirds of what one worker serves within the objectives."""
STEPS = ((180.0, 1), (180.0, 4), (240.0, 1))
"""Seconds, and the factor on the rate."""
SETTLING_S = 60.0
"""After each step the workers may lag: start-up alone takes half of it."""
STATIC_SHARE = 0.7

ENGINE = {
    "apiVersion": "penstock.dev/v1alpha1",
    "kind": "EngineClass",
    "metadata": {"name": "slow-start"},
    "spec": {
        "adapter": "Simulated",
        "image": "penstock/simulated-engine:0.1.0",
        "simulation": {"startup": "30s"},
    },
}
MANIFEST = {
    "apiVersion": "penstock.dev/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"name": NAME, "namespace": "default"},
    "spec": {
        "model": {"name": MODEL, "architecture": {"name": "meta-llama/Llama-3.1-8B-Instruct"}},
        "engine": {"className": "slow-start"},
        "objectives": {"ttft": "2s", "tpot": "100ms"},
        "pools": [{"name": "serve", "acceleratorClasses": ["a100-80g"], "replicas": {"min": LEAST, "max": MOST}}],
        "autoscaling": {"mode": "Auto", "budget": {"maxAccelerators": BUDGET}},
    },
}
FAST_WINDOWS = {"--time-scale": "0.2", "--scrape-interval": "2s", "--cycle-interval": "2s"}


def requests() -> Trace:
    """Independent arrivals at the rate of each step."""
    chance = random.Random(11)
    made: list[TraceRequest] = []
    start = 0.0
    for seconds, factor in STEPS:
        at = start + chance.expovariate(RATE * factor)
        while at < start + seconds:
            made.append(TraceRequest(at, chance.randint(PROMPT // 2, PROMPT * 3 // 2), OUTPUT))
            at += chance.expovariate(RATE * factor)
        start += seconds
    return Trace(tuple(made))


@dataclass
class Watcher:
    """Looks at the pool every second: what is wanted, ready and held."""

    cluster: Cluster
    looks: list[tuple[float, int, int, int]] = field(default_factory=list)
    """Seconds, wanted, ready and held workers; a worker here is one accelerator."""
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        start = time.monotonic()
        while not self.stop.wait(1.0):
            try:
                pods = self.cluster.items("pods", "-l", f"penstock.dev/deployment={NAME}")
                wanted = int(self.cluster.get("wpool", POOL)["spec"]["replicas"])
            except AssertionError:
                continue
            living = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
            self.looks.append((time.monotonic() - start, wanted, sum(map(is_ready, living)), len(pods)))

    def worker_seconds(self) -> float:
        pairs = zip(self.looks, self.looks[1:], strict=False)
        return sum((after[0] - before[0]) * before[3] for before, after in pairs)


@contextmanager
def watching(cluster: Cluster) -> Iterator[Watcher]:
    watcher = Watcher(cluster)
    thread = threading.Thread(target=watcher.run, daemon=True)
    thread.start()
    try:
        yield watcher
    finally:
        watcher.stop.set()
        thread.join(60)


def set_flags(cluster: Cluster, flags: dict[str, str]) -> list[str]:
    """Give the autoscaler other flags; returns those it had."""
    deployment = cluster.get("deployment", "penstock-autoscaler", "-n", SYSTEM)
    before = list(deployment["spec"]["template"]["spec"]["containers"][0]["args"])
    kept = [arg for arg in before if arg.split("=")[0] not in flags]
    replace_args(cluster, [*kept, *(f"{name}={value}" for name, value in flags.items())])
    return before


def replace_args(cluster: Cluster, args: list[str]) -> None:
    patch = [{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": args}]
    target = ("deployment", "penstock-autoscaler", "-n", SYSTEM)
    cluster.kubectl("patch", *target, "--type=json", "-p", json.dumps(patch))
    cluster.kubectl("rollout", "status", *target, "--timeout=90s", timeout=120)


@pytest.fixture
def deployment(cluster: Cluster) -> Iterator[None]:
    before = set_flags(cluster, FAST_WINDOWS)
    for each in (ENGINE, MANIFEST):
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(each))
    wait_for("the deployment is ready", lambda: cluster.condition(NAME, "Ready").get("status") == "True", 180)
    yield
    cluster.kubectl("delete", "mdep", NAME, "--wait=true", timeout=180)
    cluster.kubectl("delete", "engineclass", "slow-start")
    replace_args(cluster, before)


@pytest.mark.box
@pytest.mark.timeout(1500)
def test_workers_follow_the_load(cluster: Cluster, deployment: None) -> None:
    trace = requests()
    with watching(cluster) as watcher, load(cluster, trace, MODEL) as running:
        pass
    outcomes = running.outcomes()
    assert len(outcomes) == len(trace.requests)
    assert all(o.verdict is Verdict.COMPLETED for o in outcomes), describe(outcomes)
    settled = [o for o in outcomes if not settling(o.sent_s)]
    met = sum(o.meets(TTFT_S, TPOT_S) for o in settled)
    assert met >= ATTAINMENT * len(settled), f"{met} of {len(settled)} met the objectives; {watcher.looks[::20]}"
    moved_out_and_in(watcher)
    assert all(LEAST <= wanted <= MOST and held <= BUDGET for _, wanted, _, held in watcher.looks), watcher.looks
    peak = max(held for _, _, _, held in watcher.looks)
    seconds = watcher.looks[-1][0] - watcher.looks[0][0]
    share = watcher.worker_seconds() / (peak * seconds)
    assert share <= STATIC_SHARE, f"{share:.2f} of the accelerator-hours of {peak} workers all the time"
    explained(cluster, watcher)


def settling(at: float) -> bool:
    """Whether a request was sent within the time after a step; the start is one."""
    start = 0.0
    for seconds, _ in STEPS:
        if start <= at < start + SETTLING_S:
            return True
        start += seconds
    return False


def moved_out_and_in(watcher: Watcher) -> None:
    first = STEPS[0][0]
    second = first + STEPS[1][0]
    before = max(wanted for at, wanted, _, _ in watcher.looks if SETTLING_S < at < first)
    during = max(wanted for at, wanted, _, _ in watcher.looks if first < at < second)
    after = watcher.looks[-1][1]
    assert during >= before + 2, f"{before} workers wanted before the step, {during} during it"
    assert after < during, f"{after} workers wanted at the end, {during} at the peak"


def explained(cluster: Cluster, watcher: Watcher) -> None:
    """Each change of what is wanted has an Event that says from what to what."""
    changes = {(a[1], b[1]) for a, b in zip(watcher.looks, watcher.looks[1:], strict=False) if a[1] != b[1]}
    notes = [str(e.get("note", "")) for e in scaled_events(cluster)]
    assert changes
    missing = [c for c in changes if not any(f"from {c[0]} to {c[1]}" in note for note in notes)]
    # Two changes within one look are seen as one.
    assert len(missing) <= len(changes) // 4, f"changes without an Event: {missing}; {notes}"


def scaled_events(cluster: Cluster) -> list[Object]:
    return [
        e for e in cluster.items("events.events.k8s.io") if e.get("reason") == "Scaled" and POOL in e.get("note", "")
    ]
