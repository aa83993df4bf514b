"""Load of 1x, 4x and 1x again over ten minutes: the workers follow it, and bounds and budget hold at every look.

Once with workers that do both, once with prefill and decode apart; `-k together` or `-k apart` picks one of them.

The engines take 30 s to start. The guard's windows are shortened, so that a scale-in is seen within minutes. Requests
are made here, with a seed, so that 4x is 4x: long prompts and short outputs load the engines, not the cores below.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

import pytest
from penstock.core.reports import Outcome, Verdict
from penstock.core.traces import Trace, TraceRequest
from verbs import Cluster, Object, describe, is_ready, load, wait_for

NAME = "scaling"
MODEL = "e2e/scaling-8b"
ACCELERATOR = "a100-80g"
SYSTEM = "penstock-system"
LEAST, MOST = 1, 8
TTFT_S, TPOT_S, ATTAINMENT = 2.0, 0.1, 0.95
STATIC_SHARE = 0.7
"""Accelerator-hours may be at most this share of those of the most workers all the time."""
PROMPT = 3000
SEQUENCES = 6
"""What one engine runs at once: so few that output tokens fill a worker that decodes, not the cores below."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A way to share the work among pools."""

    pools: tuple[tuple[str, str], ...]
    """Name and role."""
    disaggregation: str
    rate: float
    """Requests per second of 1x."""
    output: int
    """Tokens of an answer."""
    budget: int
    """Accelerators."""
    args: tuple[str, ...] = ()
    """Of the engine."""

    @property
    def worker_pools(self) -> tuple[str, ...]:
        return tuple(f"{NAME}-{name}-{ACCELERATOR}" for name, _ in self.pools)


TOGETHER = Shape((("serve", "PrefillDecode"),), "Never", 2.0, 30, 8)
"""1x is two thirds of what one worker serves within the objectives."""
APART = Shape((("prefill", "Prefill"), ("decode", "Decode")), "Always", 3.0, 90, 14, (f"--max-num-seqs={SEQUENCES}",))
"""1x is what two workers prefill and one decodes."""
STEPS = ((180.0, 1), (180.0, 4), (240.0, 1))
"""Seconds, and the factor on the rate."""
SETTLING_S = 60.0
"""After each step the workers may lag: start-up alone takes half of it."""

ENGINE = {
    "apiVersion": "penstock.dev/v1alpha1",
    "kind": "EngineClass",
    "metadata": {"name": "slow-start"},
    "spec": {
        "adapter": "Simulated",
        "image": "penstock/simulated-engine:0.1.0",
        "simulation": {"startup": "30s"},
        "args": ["--enable-faults"],
    },
}
FAST_WINDOWS = {"--time-scale": "0.2", "--scrape-interval": "2s", "--cycle-interval": "2s"}


def manifest(shape: Shape) -> Object:
    replicas = {"min": LEAST, "max": MOST}
    return {
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": NAME, "namespace": "default"},
        "spec": {
            "model": {"name": MODEL, "architecture": {"name": "meta-llama/Llama-3.1-8B-Instruct"}},
            "engine": {"className": "slow-start", "args": list(shape.args)},
            "objectives": {"ttft": "2s", "tpot": "100ms"},
            "disaggregation": shape.disaggregation,
            "pools": [
                {"name": name, "role": role, "acceleratorClasses": [ACCELERATOR], "replicas": replicas}
                for name, role in shape.pools
            ],
            "autoscaling": {"mode": "Auto", "budget": {"maxAccelerators": shape.budget}},
        },
    }


def requests(shape: Shape, steps: tuple[tuple[float, int], ...] = STEPS) -> Trace:
    """Independent arrivals at the shape's rate times the factor of each step."""
    chance = random.Random(11)
    made: list[TraceRequest] = []
    start = 0.0
    for seconds, factor in steps:
        at = start + chance.expovariate(shape.rate * factor)
        while at < start + seconds:
            made.append(TraceRequest(at, chance.randint(PROMPT // 2, PROMPT * 3 // 2), shape.output))
            at += chance.expovariate(shape.rate * factor)
        start += seconds
    return Trace(tuple(made))


@dataclass
class Watcher:
    """Looks at the pools every second: what is wanted of each, and ready and held in all."""

    cluster: Cluster
    pools: tuple[str, ...]
    looks: list[tuple[float, tuple[int, ...], int, int]] = field(default_factory=list)
    """Seconds; wanted workers of each pool; ready and held workers. A worker here is one accelerator."""
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        start = time.monotonic()
        while not self.stop.wait(1.0):
            try:
                pods = self.cluster.items("pods", "-l", f"penstock.dev/deployment={NAME}")
                wanted = tuple(int(self.cluster.get("wpool", pool)["spec"]["replicas"]) for pool in self.pools)
            except AssertionError:
                continue
            living = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
            self.looks.append((time.monotonic() - start, wanted, sum(map(is_ready, living)), len(pods)))

    def worker_seconds(self) -> float:
        pairs = pairwise(self.looks)
        return sum((after[0] - before[0]) * before[3] for before, after in pairs)


@contextmanager
def watching(cluster: Cluster, pools: tuple[str, ...]) -> Iterator[Watcher]:
    watcher = Watcher(cluster, pools)
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


@pytest.fixture(params=[TOGETHER, APART], ids=["together", "apart"])
def shape(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Shape]:
    """A deployment of this shape, ready."""
    shape: Shape = request.param
    before = set_flags(cluster, FAST_WINDOWS)
    for each in (ENGINE, manifest(shape)):
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(each))
    wait_for("the deployment is ready", lambda: cluster.condition(NAME, "Ready").get("status") == "True", 180)
    yield shape
    cluster.kubectl("delete", "mdep", NAME, "--wait=true", timeout=180)
    cluster.kubectl("delete", "engineclass", "slow-start")
    replace_args(cluster, before)


@pytest.mark.box
@pytest.mark.timeout(1500)
def test_workers_follow_the_load(cluster: Cluster, shape: Shape) -> None:
    trace = requests(shape)
    with watching(cluster, shape.worker_pools) as watcher, load(cluster, trace, MODEL) as running:
        pass
    outcomes = running.outcomes()
    assert len(outcomes) == len(trace.requests)
    assert all(o.verdict is Verdict.COMPLETED for o in outcomes), describe(outcomes)
    settled = [o for o in outcomes if not settling(o.sent_s)]
    met = sum(o.meets(TTFT_S, TPOT_S) for o in settled)
    assert met >= ATTAINMENT * len(settled), f"{met} of {len(settled)} met the objectives; {missed(settled)}"
    moved_out_and_in(watcher)
    in_proportion(watcher)
    assert all(LEAST <= count <= MOST for _, wanted, _, _ in watcher.looks for count in wanted), watcher.looks
    assert all(held <= shape.budget for _, _, _, held in watcher.looks), watcher.looks
    peak = max(held for _, _, _, held in watcher.looks)
    seconds = watcher.looks[-1][0] - watcher.looks[0][0]
    share = watcher.worker_seconds() / (peak * seconds)
    assert share <= STATIC_SHARE, f"{share:.2f} of the accelerator-hours of {peak} workers all the time"
    explained(cluster, watcher)


def missed(outcomes: list[Outcome]) -> str:
    """When requests missed which objective, by half minutes, in words."""
    late = Counter(int(o.sent_s // 30) * 30 for o in outcomes if (o.ttft_s or 0.0) > TTFT_S)
    slow = Counter(int(o.sent_s // 30) * 30 for o in outcomes if (o.tpot_s or 0.0) > TPOT_S)
    return f"TTFT missed at {sorted(late.items())}, TPOT at {sorted(slow.items())}"


def settling(at: float) -> bool:
    """Whether a request was sent within the time after a step; the start is one."""
    start = 0.0
    for seconds, _ in STEPS:
        if start <= at < start + SETTLING_S:
            return True
        start += seconds
    return False


def moved_out_and_in(watcher: Watcher) -> None:
    """Every pool grew for the step and shrank after it."""
    first = STEPS[0][0]
    second = first + STEPS[1][0]
    for number, pool in enumerate(watcher.pools):
        before = max(wanted[number] for at, wanted, _, _ in watcher.looks if SETTLING_S < at < first)
        during = max(wanted[number] for at, wanted, _, _ in watcher.looks if first < at < second)
        after = watcher.looks[-1][1][number]
        assert during > before, f"{pool}: {before} workers wanted before the step, {during} during it"
        assert after < during, f"{pool}: {after} workers wanted at the end, {during} at the peak"


def in_proportion(watcher: Watcher) -> None:
    """Prefill and decode keep the ratio they have at the peak, to within one worker of either."""
    if len(watcher.pools) < 2:
        return
    peak = max((wanted for _, wanted, _, _ in watcher.looks), key=sum)
    ratio = peak[0] / peak[1]
    for at, (prefill, decode), _, _ in watcher.looks:
        least, most = ratio * (decode - 1) - 1, ratio * (decode + 1) + 1
        assert least <= prefill <= most, f"{prefill}:{decode} wanted at {at:.0f} s, {peak} at the peak"


def explained(cluster: Cluster, watcher: Watcher) -> None:
    """Each change of what is wanted has an Event that says of which pool, from what and to what."""
    wanted = [dict(zip(watcher.pools, look[1], strict=True)) for look in watcher.looks]
    changes = {
        f"{pool} from {a[pool]} to {b[pool]}"
        for a, b in pairwise(wanted)
        for pool in watcher.pools
        if a[pool] != b[pool]
    }
    events = cluster.items("events.events.k8s.io")
    notes = [str(e.get("note", "")) for e in events if e.get("reason") == "Scaled"]
    assert changes
    missing = [change for change in changes if not any(change in note for note in notes)]
    # Two changes within one look are seen as one.
    assert len(missing) <= len(changes) // 4, f"changes without an Event: {missing}; {notes}"


BLIND_STEPS = ((60.0, 3), (240.0, 1))
BLIND_S = 120.0


@pytest.mark.box
@pytest.mark.timeout(900)
@pytest.mark.parametrize("shape", [TOGETHER], ids=["together"], indirect=True)
def test_who_sees_nothing_takes_nothing_away(cluster: Cluster, shape: Shape) -> None:
    """The load falls while no worker answers for its metrics: it is said, and nobody goes until they answer again."""
    (pool,) = shape.worker_pools

    def wanted() -> int:
        return int(cluster.get("wpool", pool)["spec"]["replicas"])

    with load(cluster, requests(shape, BLIND_STEPS), MODEL) as running:
        wait_for("workers are added", lambda: wanted() >= 3, 60)
        time.sleep(max(0.0, BLIND_STEPS[0][0] - running.now()))
        before = wanted()
        fault(cluster, "no-metrics")
        end, said = time.monotonic() + BLIND_S, ""
        while time.monotonic() < end:
            time.sleep(2)
            fault(cluster, "no-metrics")  # Those that have started since then too.
            assert wanted() >= before, "workers were taken away though nobody knew the load"
            degraded = cluster.condition(NAME, "Degraded")
            said = said or (degraded.get("message", "") if degraded.get("status") == "True" else "")
        assert "not known" in said or "is known from" in said, f"Degraded said: {said!r}"
        fault(cluster, "none")
        wait_for("workers go once the load is known", lambda: wanted() < before, 180)
        wait_for("all is well again", lambda: cluster.condition(NAME, "Degraded").get("status") != "True", 60)
        running.stop()
    # Stopping cuts off the client's last requests.
    heard = [o for o in running.outcomes() if o.error != "Interrupted"]
    assert all(o.verdict is Verdict.COMPLETED for o in heard), describe(heard)


def fault(cluster: Cluster, text: str) -> None:
    """Have every worker that answers go wrong, or be well, in this way."""
    for pod in cluster.ready_workers(NAME):
        path = f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}:8000/proxy/faults"
        cluster.kubectl("create", "--raw", path, "-f", "-", stdin=text)


RISING_STEPS = ((20.0, 1), (60.0, 5))
ENOUGH = 4
"""Workers of `TOGETHER` that 5x needs at least: one serves 1.5x within the objectives."""


@pytest.mark.box
@pytest.mark.timeout(900)
@pytest.mark.parametrize("shape", [TOGETHER], ids=["together"], indirect=True)
def test_a_scale_out_goes_on_when_the_autoscaler_is_killed(cluster: Cluster, shape: Shape) -> None:
    """Killed on the first step of a rise: what was asked for stays so, and the next process asks for the rest."""
    (pool,) = shape.worker_pools

    def wanted() -> int:
        return int(cluster.get("wpool", pool)["spec"]["replicas"])

    with (
        watching(cluster, shape.worker_pools) as watcher,
        load(cluster, requests(shape, RISING_STEPS), MODEL) as running,
    ):
        wait_for("the first worker is added", lambda: wanted() > LEAST, 90, every=0.1)
        (victim,) = autoscalers(cluster)
        before, killed_at = wanted(), time.monotonic()
        assert cluster.kill_pod_process(victim, "penstock.autoscaler") == 1
        assert before < ENOUGH, f"{before} workers were wanted at once: nothing was left to ask for"
        told = recommendation(cluster)
        wait_for("the lease is held again", lambda: renewed_since(cluster, killed_at), 60, every=0.2)
        held_s = time.monotonic() - killed_at
        wait_for("the next process knows the load", lambda: planned_anew(cluster, told), 60, every=0.2)
        planned_s = time.monotonic() - killed_at
        wait_for("it asks for what the load needs", lambda: wanted() >= ENOUGH, 90)
        counts = [count for _, (count,), _, _ in watcher.looks]
    print(f"killed at {before} workers: lease held again after {held_s:.1f} s, a plan by load after {planned_s:.1f} s")
    assert all(o.verdict is Verdict.COMPLETED for o in running.outcomes()), describe(running.outcomes())
    assert all(after >= before for before, after in pairwise(counts)), f"a worker was taken away as load rose: {counts}"
    assert max(held for _, _, _, held in watcher.looks) <= shape.budget
    assert sum(int(s["restartCount"]) for p in autoscalers(cluster) for s in p["status"]["containerStatuses"]) >= 1


def recommendation(cluster: Cluster) -> Object:
    """What the autoscaler said last of the deployment."""
    return dict(cluster.get("mdep", NAME).get("status", {}).get("recommendation", {}))


def planned_anew(cluster: Cluster, before: Object) -> bool:
    """Whether something else is recommended than by the process before, and by a load that was measured."""
    now = recommendation(cluster)
    return now != before and now.get("why") in ("Load", "AtLeast", "AtMost")


def autoscalers(cluster: Cluster) -> list[Object]:
    pods = cluster.items("pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=autoscaler")
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def renewed_since(cluster: Cluster, killed_at: float) -> bool:
    """Whether somebody has renewed the Lease later than that time of the monotonic clock, a kill."""
    renewed = datetime.fromisoformat(cluster.get("lease", "penstock-autoscaler", "-n", SYSTEM)["spec"]["renewTime"])
    return time.time() - renewed.timestamp() < time.monotonic() - killed_at - 0.1
