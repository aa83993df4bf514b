"""The Mooncake conversation trace through prefill workers, five times as fast: what policies make of the caches.

The rate was fixed beforehand, so that `LeastLoaded` keeps the prefill workers 70 to 85 % busy; the run checks that it
did. Every policy gets the same fleet and the same requests, with other token ids, so that nothing is left in a cache
from the policy before. Each worker caches 3 million tokens, as one node of the source does (FAST '25, figure 9).
"""

from __future__ import annotations

import json
import re
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from penstock.box.testing import temporary_box, why_no_box
from penstock.core.reports import Outcome, Verdict
from penstock.core.traces import (
    Trace,
    drop_over_context,
    limit_duration,
    parse_trace,
    scale_rate,
    spread_slots,
)
from verbs import Cluster, Object, describe, load, wait_for

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NODES = "a100-80g=2x8,h100-80g=1x8,cpu=1x0"
NAME = "mooncake"
MODEL = "e2e/mooncake-70b"
TIME_SCALE = 5.0
CONTEXT = 32_768
PREFILLS, DECODES = 4, 2
RATE_SCALE = 0.68
"""Of the trace's own rate, in the engines' time."""
VIRTUAL_S = 900.0
"""Engine time of one policy's run."""
SEED = 5
CACHE_TOKENS, BLOCK = 3_000_000, 128
BUSY = (0.70, 0.85)
HITS_WITHIN = 0.02
ALARM_AFTER = 120
"""Requests, some of which share prefixes: enough for the ledger to judge by."""

ENGINE = {
    "apiVersion": "penstock.dev/v1alpha1",
    "kind": "EngineClass",
    "metadata": {"name": "five-fold"},
    "spec": {
        "adapter": "Simulated",
        "image": "penstock/simulated-engine:0.1.0",
        "simulation": {"timeScale": str(1 / TIME_SCALE), "startup": "1s"},
        "args": [
            f"--block-size={BLOCK}",
            f"--num-gpu-blocks-override={CACHE_TOKENS // BLOCK}",
            "--enable-faults",
        ],
    },
}


def manifest(policy: str) -> Object:
    def pool(name: str, role: str, accelerator: str, count: int) -> Object:
        return {
            "name": name,
            "role": role,
            "acceleratorClasses": [accelerator],
            "parallelism": {"tensor": 4},
            "replicas": {"min": count, "max": count},
        }

    return {
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": NAME, "namespace": "default"},
        "spec": {
            "model": {
                "name": MODEL,
                "architecture": {"name": "meta-llama/Llama-3.1-70B-Instruct"},
                "maxContextTokens": CONTEXT,
            },
            "engine": {"className": "five-fold"},
            "objectives": {"ttft": "2s", "tpot": "40ms"},
            "disaggregation": "Always",
            "pools": [
                pool("prefill", "Prefill", "a100-80g", PREFILLS),
                pool("decode", "Decode", "h100-80g", DECODES),
            ],
            "routing": {"policy": policy},
            "autoscaling": {"mode": "Off"},
        },
    }


@pytest.fixture(scope="module")
def trace() -> Trace:
    """What is sent: the beginning of the trace at its fixed rate, five times as fast, without what is too long."""
    path = DATA / "mooncake_conversation_trace.jsonl"
    if not path.exists():
        pytest.skip("the Mooncake conversation trace is not beside this checkout (../shared/data)")
    whole = spread_slots(parse_trace(path.read_text().splitlines()).trace, SEED)
    begun = limit_duration(scale_rate(whole, RATE_SCALE), VIRTUAL_S)
    kept, dropped = drop_over_context(begun, CONTEXT)
    print(f"{len(kept.requests)} requests; {dropped} beyond a context of {CONTEXT} dropped")
    assert dropped < 0.2 * len(begun.requests)
    return scale_rate(kept, TIME_SCALE)


@pytest.fixture(scope="module")
def fleet(mooncake_box: Cluster) -> Iterator[Cluster]:
    """Four workers that prefill and two that decode, ready."""
    mooncake_box.kubectl("apply", "-f", "-", stdin=json.dumps(ENGINE))
    mooncake_box.kubectl("apply", "-f", "-", stdin=json.dumps(manifest("KVAware")))
    wait_for("the deployment is ready", lambda: mooncake_box.condition(NAME, "Ready").get("status") == "True", 240)
    yield mooncake_box


@pytest.fixture(scope="module")
def mooncake_box() -> Iterator[Cluster]:
    """A box of its own: this load leaves no room for another deployment's."""
    if reason := why_no_box():
        pytest.skip(reason)
    with temporary_box(NODES, example="quickstart") as box:
        cluster = Cluster(Path(box.program("kubectl")), box.kubeconfig, box.paths.control_socket, box.gateway_url)
        cluster.kubectl("delete", "mdep", "--all", "--wait=true", timeout=120)  # Its accelerators are wanted.
        yield cluster


def prefills(cluster: Cluster) -> list[str]:
    pods = cluster.workers(NAME)
    return [p["metadata"]["name"] for p in pods if p["metadata"]["labels"]["penstock.dev/role"] == "Prefill"]


def page(cluster: Cluster, pod: str) -> str:
    return cluster.kubectl("get", "--raw", f"/api/v1/namespaces/default/pods/{pod}:8000/proxy/metrics")


def router_page(cluster: Cluster) -> str:
    (pod,) = cluster.items("pods", "-n", "penstock-system", "-l", "app.kubernetes.io/component=router")
    name = pod["metadata"]["name"]
    return cluster.kubectl("get", "--raw", f"/api/v1/namespaces/penstock-system/pods/{name}:9090/proxy/metrics")


def total(text: str, series: str) -> float:
    """Sum of all series of this name; a page without it is a mistake."""
    found = re.findall(rf"^{re.escape(series)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    assert found, f"no series {series}"
    return sum(float(value) for value in found)


@dataclass
class Watch:
    """How often a prefill worker was seen with something to do."""

    cluster: Cluster
    pods: list[str]
    looks: list[bool] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stop.wait(0.5):
            for pod in self.pods:
                try:
                    text = page(self.cluster, pod)
                except AssertionError:
                    continue
                self.looks.append(
                    total(text, "vllm:num_requests_running") + total(text, "vllm:num_requests_waiting") > 0
                )

    @property
    def busy(self) -> float:
        return sum(self.looks) / len(self.looks)


@contextmanager
def watching(cluster: Cluster) -> Iterator[Watch]:
    watch = Watch(cluster, prefills(cluster))
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop.set()
        thread.join(30)


@dataclass(frozen=True, slots=True)
class Run:
    """What one policy came to; seconds are the engines'."""

    mean_ttft_s: float
    busy: float
    hits: float
    """Share of prompt tokens that prefill workers found in their caches, by their own counters."""
    predicted: float
    measured: float
    """The same share as the router predicted it and was told it; 0 for policies that look at no prompt."""


def choose(cluster: Cluster, policy: str) -> None:
    patch = {"spec": {"routing": {"policy": policy}}}
    cluster.kubectl("patch", "mdep", NAME, "--type=merge", "-p", json.dumps(patch))
    time.sleep(3)  # The router sees a policy as it sees anything, a moment later.


def caches(cluster: Cluster) -> tuple[float, float]:
    """Prompt tokens that prefill workers looked up so far, and found."""
    pages = [page(cluster, pod) for pod in prefills(cluster)]
    queries, hits = (f"vllm:prefix_cache_{name}_total" for name in ("queries", "hits"))
    return sum(total(text, queries) for text in pages), sum(total(text, hits) for text in pages)


def ledger(cluster: Cluster) -> dict[str, float]:
    """The router's account of hits; zeros before the first."""
    text = router_page(cluster)
    names = ("prompt_tokens", "predicted_tokens", "measured_tokens")
    series = {name: f"penstock_router_hit_{name}_total" for name in names}
    return {name: total(text, each) if each + "{" in text else 0.0 for name, each in series.items()}


def play(cluster: Cluster, trace: Trace, policy: str, seed: int) -> Run:
    choose(cluster, policy)
    before, (asked, found) = ledger(cluster), caches(cluster)
    with watching(cluster) as watch, load(cluster, trace, MODEL, seed) as running:
        time.sleep(trace.duration_s)
        busy = watch.busy  # While requests come; what follows is the queue's end.
    outcomes: list[Outcome] = running.outcomes()
    assert len(outcomes) == len(trace.requests)
    assert all(o.verdict is Verdict.COMPLETED for o in outcomes), describe(outcomes)
    told = {name: value - before[name] for name, value in ledger(cluster).items()}
    asked_after, found_after = caches(cluster)
    prompts = max(1.0, told["prompt_tokens"])
    made = Run(
        statistics.fmean(o.ttft_s for o in outcomes if o.ttft_s is not None) * TIME_SCALE,
        busy,
        (found_after - found) / (asked_after - asked),
        told["predicted_tokens"] / prompts,
        told["measured_tokens"] / prompts,
    )
    print(policy, made)
    return made


@pytest.mark.box
@pytest.mark.timeout(2400)
def test_picks_that_know_the_caches_answer_sooner(fleet: Cluster, trace: Trace) -> None:
    policies = ("LeastLoaded", "RoundRobin", "PrefixAffinity", "KVAware")
    runs = {policy: play(fleet, trace, policy, seed) for seed, policy in enumerate(policies, 11)}
    assert BUSY[0] <= runs["LeastLoaded"].busy <= BUSY[1], runs
    for other in policies[:-1]:
        assert runs["KVAware"].mean_ttft_s < runs[other].mean_ttft_s, runs
    aware = runs["KVAware"]
    assert aware.measured > 0 and abs(aware.predicted - aware.measured) <= HITS_WITHIN, runs
    assert aware.hits > runs["LeastLoaded"].hits, runs


@pytest.mark.box
@pytest.mark.timeout(900)
def test_events_cut_off_raise_the_alarm(fleet: Cluster, trace: Trace) -> None:
    choose(fleet, "KVAware")
    begun = Trace(trace.requests[:ALARM_AFTER], trace.block_tokens)
    with load(fleet, begun, MODEL, 98) as quiet:
        pass
    assert all(o.verdict is Verdict.COMPLETED for o in quiet.outcomes()), describe(quiet.outcomes())
    assert total(router_page(fleet), "penstock_router_hit_alarm") == 0
    for pod in fleet.workers(NAME):
        path = f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}:8000/proxy/faults"
        fleet.kubectl("create", "--raw", path, "-f", "-", stdin="drop-events=1")
    outcomes: list[Outcome] = []
    # Twice the same prompts: what the second round finds cached, nobody told the router of.
    for _ in range(2):
        with load(fleet, begun, MODEL, 99) as running:
            pass
        outcomes += running.outcomes()
    assert all(o.verdict is Verdict.COMPLETED for o in outcomes), describe(outcomes)
    wait_for("the alarm rises", lambda: total(router_page(fleet), "penstock_router_hit_alarm") == 1, 30)
