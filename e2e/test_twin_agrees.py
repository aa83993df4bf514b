"""The box and the twin over the same load: what was decided is decided again, and left to themselves they agree.

Router and autoscaler record what they decide. Replayed, every pick, plan and guard must come out the same to the byte.
Then the twin plays the same load with the profile that the box's autoscaler went by, and its replicas are laid beside
the box's: whatever one wants, the other wants to within one worker, at most a cycle sooner or later. When a worker is
scraped is chance, in both: so the twin plays ten times with other scrapes, and the box has to agree with eight of them.
The twin is told how the box's cycles lay, since a loaded machine makes them longer: when the first was, how far apart.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from penstock.autoscaler.decisions.capacity import WorkerModel
from penstock.autoscaler.decisions.cycle import CycleTimes
from penstock.core.fleet import Role
from penstock.core.models import Parallelism, find_model
from penstock.core.records import read_record, rebuild
from penstock.core.reports import Verdict
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator import Autoscaling, Bounds, PoolSpec, Scenario, StartUp, Twin, parse_nodes
from penstock.simulator.snapshots import replay_records
from test_scaling import ACCELERATOR, ENGINE, MODEL, NAME, SYSTEM, TOGETHER, manifest
from verbs import Cluster, describe, load, wait_for

STEPS = ((75.0, 1), (100.0, 3), (105.0, 1))
"""Seconds, and the factor on the rate."""
RATE = 1.1
"""Requests per second of 1x: with prompts so long it takes three workers, and 3x takes seven."""
PROMPT, OUTPUT = 6000, 20
CYCLE_S = 5.0
STARTUP_S = 30.0
TWINS, AGREE = 10, 8
"""Twins that play the load, and how many of them the box has to agree with: a rare course jumps from 2 workers to 6."""
FOLDER = "/tmp/record"
FLAGS = {
    "autoscaler": {"--time-scale": "0.2", "--cycle-interval": f"{CYCLE_S:g}s", "--record": FOLDER},
    "router": {"--record": FOLDER},
}
KEEP = os.environ.get("PENSTOCK_KEEP", "")
"""A folder for the records and the figures of a run, where somebody wants to look at them."""


@dataclass(frozen=True, slots=True)
class Course:
    """Replicas over time: each holds from its second on."""

    steps: tuple[tuple[float, int], ...]

    def at(self, second: float) -> int:
        return [count for at, count in self.steps if at <= second or at == self.steps[0][0]][-1]

    def around(self, second: float, slack: float) -> set[int]:
        """Everything that holds at some time within `slack` of a second."""
        inside = {count for at, count in self.steps if second - slack <= at <= second + slack}
        return inside | {self.at(second - slack), self.at(second + slack)}


@dataclass(frozen=True, slots=True)
class Met:
    """What the box's autoscaler met with; the twin is told as much. Seconds."""

    lead_s: float
    """From its first cycle to the load."""
    cycle_s: float
    """From one cycle to the next, in the mean."""
    startup_s: float
    worker: WorkerModel
    """What one worker can do."""


@pytest.fixture
def recording(cluster: Cluster) -> Iterator[None]:
    """Router and autoscaler record; a deployment of one worker is ready."""
    before = {role: set_flags(cluster, role, flags) for role, flags in FLAGS.items()}
    for each in (ENGINE, manifest(TOGETHER)):
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(each))
    wait_for("the deployment is ready", lambda: cluster.condition(NAME, "Ready").get("status") == "True", 180)
    yield
    cluster.kubectl("delete", "mdep", NAME, "--wait=true", timeout=180)
    cluster.kubectl("delete", "engineclass", "slow-start")
    for role, args in before.items():
        replace_args(cluster, role, args)


def requests() -> Trace:
    """Independent arrivals at the rate times the factor of each step, with a seed."""
    chance, made, start = random.Random(11), [], 0.0
    for seconds, factor in STEPS:
        at = start + chance.expovariate(RATE * factor)
        while at < start + seconds:
            made.append(TraceRequest(at, chance.randint(PROMPT * 2 // 3, PROMPT * 4 // 3), OUTPUT))
            at += chance.expovariate(RATE * factor)
        start += seconds
    return Trace(tuple(made))


def set_flags(cluster: Cluster, role: str, flags: dict[str, str]) -> list[str]:
    deployment = cluster.get("deployment", f"penstock-{role}", "-n", SYSTEM)
    before = list(deployment["spec"]["template"]["spec"]["containers"][0]["args"])
    kept = [arg for arg in before if arg.split("=")[0] not in flags]
    replace_args(cluster, role, [*kept, *(f"{name}={value}" for name, value in flags.items())])
    return before


def replace_args(cluster: Cluster, role: str, args: list[str]) -> None:
    patch = [{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": args}]
    target = ("deployment", f"penstock-{role}", "-n", SYSTEM)
    cluster.kubectl("patch", *target, "--type=json", "-p", json.dumps(patch))
    cluster.kubectl("rollout", "status", *target, "--timeout=90s", timeout=120)


def recorded(cluster: Cluster, role: str, name: str) -> list[bytes]:
    """The lines that the running pod of a role has on record, oldest first."""
    pods = [
        pod
        for pod in cluster.items("pods", "-n", SYSTEM)
        if pod["metadata"]["name"].startswith(f"penstock-{role}-") and "deletionTimestamp" not in pod["metadata"]
    ]
    assert len(pods) == 1, [pod["metadata"]["name"] for pod in pods]
    files = [f"{FOLDER}/{name}.before.jsonl", f"{FOLDER}/{name}.jsonl"]
    return [line for file in files for line in cluster.read_file(pods[0], f"penstock.{role}", file).splitlines(True)]


@pytest.mark.box
@pytest.mark.timeout(1200)
def test_the_twin_decides_as_the_box_did(cluster: Cluster, recording: None) -> None:
    trace = requests()
    with load(cluster, trace, MODEL) as running:
        began = time.time() - running.now()
    assert all(o.verdict is Verdict.COMPLETED for o in running.outcomes()), describe(running.outcomes())
    picks, cycles = recorded(cluster, "router", "picks"), recorded(cluster, "autoscaler", "cycles")
    for name, lines, kind, least in (("picks", picks, "Pick", len(trace.requests)), ("cycles", cycles, "Cycle", 40)):
        keep(f"{name}.jsonl", b"".join(lines))
        replayed = replay_records(lines, f"{name}.jsonl")
        assert replayed.differences == []
        assert replayed.same[kind] >= least
    box, met = box_course(cycles, began)
    twins = [twin_course(trace, met, seed) for seed in range(TWINS)]
    end = int(trace.duration_s)
    facts = {"picks": len(picks), "cycles": len(cycles), "startup_s": met.startup_s, "lead_s": met.lead_s}
    report(box, twins, facts | {"cycle_s": met.cycle_s}, end)
    others = [(seed, twin.steps) for seed, twin in enumerate(twins) if not agree(box, twin, met.cycle_s, end)]
    assert len(others) <= TWINS - AGREE, f"box {box.steps}, twins that want something else {others}"
    # Workers that stood still would not agree with the box, however many: the bound can fail.
    assert not any(agree(box, Course(((-met.lead_s, still),)), met.cycle_s, end) for still in range(1, 9)), box


def box_course(cycles: list[bytes], began: float) -> tuple[Course, Met]:
    """Replicas by seconds of the load, and what the autoscaler met with."""
    steps: list[tuple[float, int]] = []
    at: list[float] = []
    startup_s, worker = STARTUP_S, None
    for line in cycles:
        record = read_record(line)
        fresh = record["fresh"]
        views = [view for view in fresh["deployments"] if view["key"][1] == NAME]
        if not views:
            continue
        at.append(fresh["now"])
        (pool,) = views[0]["pools"]
        after = next(dict(each["moves"]) for each in record["done"] if each["key"][1] == NAME)[pool["name"]]
        if not steps or steps[-1][1] != after:
            steps.append((fresh["now"] - began, after))
        startup_s, worker = pool["startup_s"], pool["worker"] or worker
    assert worker is not None
    cycle_s = (at[-1] - at[0]) / (len(at) - 1)
    return Course(tuple(steps)), Met(began - at[0], cycle_s, startup_s, rebuild(worker, WorkerModel))


def twin_course(trace: Trace, met: Met, seed: int) -> Course:
    """Replicas by seconds of the load, with the box's profile, KV cache, start-up and cycles."""
    lead_s, worker = max(0.0, met.lead_s), met.worker
    model = find_model("llama-3.1-8b")
    assert model is not None
    shifted = Trace(tuple(TraceRequest(r.arrival_s + lead_s, r.input_tokens, r.output_tokens) for r in trace.requests))
    scenario = Scenario(
        model,
        parse_nodes(f"{ACCELERATOR}=2x8"),
        pools=(PoolSpec("serve", Role.PREFILL_DECODE, ACCELERATOR, Parallelism(), 1),),
        profile=worker.latency,
        kv_capacity=worker.kv_capacity_tokens,
        max_num_seqs=worker.max_sequences,
        max_context=8192,
        ttft_s=2.0,
        tpot_s=0.1,
        cold=True,  # As in the box, cycles begin while the first worker still starts.
        start_up=StartUp(0.0, max(0.0, met.startup_s - STARTUP_S), 0.0, STARTUP_S, 0.0),
        autoscaling=Autoscaling(
            (Bounds("serve", 1, 8),),
            cycle_interval_s=met.cycle_s,
            times=CycleTimes(time_scale=0.2),
            max_accelerators=TOGETHER.budget,
            until_s=lead_s + trace.duration_s,
        ),
        seed=seed,
    )
    scaled = Twin(scenario, shifted).run().scaling
    assert scaled is not None
    return Course(((-lead_s, 1), *((change.at_s - lead_s, change.after) for change in scaled.changes)))


def agree(one: Course, other: Course, cycle_s: float, until: int) -> bool:
    """Whether at every second each wants what the other does, to within a worker, within a cycle."""
    return all(
        min(abs(this.at(second) - count) for count in that.around(second, cycle_s)) <= 1
        for second in range(until)
        for this, that in ((one, other), (other, one))
    )


def report(box: Course, twins: list[Course], facts: dict[str, Any], until: int) -> None:
    """All courses, and how many of them agree: box with twins, twins with each other."""
    slack = facts["cycle_s"]
    pairs = [(one, other) for at, one in enumerate(twins) for other in twins[:at]]
    made = {
        **facts,
        "box": [(round(at, 1), count) for at, count in box.steps],
        "twins": [[(round(at, 1), count) for at, count in twin.steps] for twin in twins],
        "twins_that_agree_with_the_box": sum(agree(box, twin, slack, until) for twin in twins),
        "pairs_of_twins_that_agree": f"{sum(agree(*pair, slack, until) for pair in pairs)} of {len(pairs)}",
        "worker_seconds": [sum(course.at(second) for second in range(until)) for course in (box, *twins)],
    }
    print(json.dumps(made))
    keep("agrees.json", json.dumps(made, indent=2).encode() + b"\n")


def keep(name: str, data: bytes) -> None:
    if KEEP:
        Path(KEEP, name).write_bytes(data)
