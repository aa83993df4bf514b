"""Every panel of the dashboard is answered by a real Prometheus that found everything by itself, and every alert holds.

A deployment with prefill and decode apart runs under a load that shares prefixes; a worker dies in the middle of it, so
that retries and continued streams have something to show. `PENSTOCK_ANSWERS` names a file the answers are kept in, for
`hack/draw_dashboard.py`.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from penstock.box.binaries import PROMETHEUS_PROGRAMS, Programs, ensure_programs, find_programs
from penstock.box.lifecycle import Box
from penstock.box.testing import kubectl, temporary_box, why_no_box
from penstock.core.traces import Trace, TraceRequest
from prometheus import DASHBOARD, REPOSITORY, Object, Prometheus, Question, manifest, questions
from verbs import Cluster, is_ready, load, wait_for

NODES = "h100-80g=1x8,a100-80g=2x8"
NAME, MODEL = "llama-70b", "meta-llama/Llama-3.1-70B-Instruct"
WORKERS, ROLES, SIDECARS = 3, 3, 2
INTERVAL = "2s"
RATE_S = 20
"""What Grafana would choose for $__rate_interval: four scrapes, and then some for a machine with two cores."""
SECONDS, RATE, MORE = 100.0, 2.5, 6.0
"""Of the load; requests per second, and from its 60th second on."""
pytestmark = [pytest.mark.box, pytest.mark.timeout(900)]

SILENT = {
    "Refused, retried, broken, continued: refused {{reason}}": "every request finds a worker",
    "Refused, retried, broken, continued: broken {{reason}}": "another worker continues every stream",
    "Legs run by sidecars: broken {{reason}}": "no engine dies under the few requests that are asked of sidecars",
    "Who made the tokens: unknown: {{reason}}": "the simulated model's tokenizer makes them all",
    "Why the plan is so, and what holds it back: degraded {{reason}}": "nothing that wants somebody to look",
    "Reconcile errors and writes: error {{reason}}": "no reconcile fails",
}
"""Queries without an answer while all is well, each with the reason."""


def programs() -> Programs:
    """Prometheus and promtool; skips where they are not in the cache and are not to be built."""
    if os.environ.get("PENSTOCK_BUILD") == "1":
        return ensure_programs(PROMETHEUS_PROGRAMS)
    found = find_programs(PROMETHEUS_PROGRAMS)
    if found is None:
        pytest.skip("Prometheus is not in the cache: run `penstock binaries --prometheus`, or set PENSTOCK_BUILD=1")
    return found


@contextmanager
def observed(box: Box, folder: Path) -> Iterator[Prometheus]:
    """The box with alerts and Prometheus installed, once every role and worker is scraped."""
    alerts = rendered_alerts(box)
    kubectl(box, "apply", "-f", "-", stdin=alerts)
    kubectl(box, "apply", "-f", "-", stdin=manifest(folder, INTERVAL))
    kubectl(box, "rollout", "status", "deployment/prometheus", "--timeout=120s", timeout=130)
    prometheus = Prometheus(box)
    try:
        wait_for("everything is scraped", lambda: healthy(prometheus) >= WORKERS + ROLES + SIDECARS, 60)
        yield prometheus
    finally:
        prometheus.close()


def rendered_alerts(box: Box) -> str:
    """The chart's rules as a ConfigMap, as the docs say to make it."""
    command = [box.program("helm"), "template", "penstock", str(REPOSITORY / "charts" / "penstock")]
    command += ["--namespace=default", "--show-only=templates/alerts.yaml", "--kube-version=1.34.0"]
    command += ["--set=alerts.enabled=true,alerts.form=ConfigMap"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def healthy(prometheus: Prometheus) -> int:
    return sum(target["health"] == "up" for target in prometheus.targets())


def requests() -> Trace:
    """Independent arrivals; half of the prompts begin alike, so that caches have something to hit."""
    chance = random.Random(7)
    made: list[TraceRequest] = []
    at = 0.0
    while (at := at + chance.expovariate(RATE if at < 60 else MORE)) < SECONDS:
        shared = tuple(range(3)) if chance.random() < 0.5 else ()
        own = (1000 + len(made),)
        made.append(TraceRequest(at, chance.randint(1600, 2400), chance.randint(20, 120), (*shared, *own)))
    return Trace(tuple(made))


def limit(box: Box) -> None:
    """A budget to be shown, and a plan to be held back: one decode worker would do for the load."""
    scaling = {"mode": "Auto", "budget": {"costPerHour": "120", "maxAccelerators": 24}}
    patch = [
        {"op": "add", "path": "/spec/autoscaling", "value": scaling},
        {"op": "test", "path": "/spec/pools/1/name", "value": "decode"},
        {"op": "replace", "path": "/spec/pools/1/replicas/min", "value": 1},
    ]
    kubectl(box, "patch", "mdep", NAME, "--type=json", "-p", json.dumps(patch))


def test_every_panel_is_answered_and_every_rule_is_sound() -> None:
    folder = programs().folder_of(PROMETHEUS_PROGRAMS)
    if reason := why_no_box():
        pytest.skip(reason)
    with temporary_box(NODES, example="llama-70b-disaggregated") as box:
        cluster = Cluster(Path(box.program("kubectl")), box.kubeconfig, box.paths.control_socket, box.gateway_url)
        limit(box)
        wait_for("the workers serve", lambda: len(ready(cluster)) >= WORKERS, 120)
        with observed(box, folder) as prometheus:
            began = time.time()
            under_load(cluster, prometheus)
            time.sleep(6)  # Three scrapes: the last requests are counted.
            values = variables(prometheus)
            answers = {question: prometheus.history(question.expanded(values), began, 2.0) for question in asked()}
            keep(answers)
            empty = {question.name for question, series in answers.items() if not series}
            assert empty <= SILENT.keys(), f"no answer: {sorted(empty - SILENT.keys())}"
            sound(prometheus)


def ready(cluster: Cluster) -> list[Object]:
    return [pod for pod in cluster.workers(NAME) if is_ready(pod)]


def under_load(cluster: Cluster, prometheus: Prometheus) -> None:
    """The load, and in the middle of it the death of the decode worker with the most to do."""
    with load(cluster, requests(), MODEL) as running:
        wait_for("a third of the load", lambda: running.now() > SECONDS / 3, SECONDS)
        ask_a_sidecar(cluster, prometheus)
        wait_for("half of the load", lambda: running.now() > SECONDS / 2, SECONDS)
        (busiest,) = prometheus.get("query", query='topk(1, vllm:num_requests_running{role="Decode"})')["result"]
        victim = cluster.get("pod", busiest["metric"]["worker"])
        assert cluster.kill_pod_process(victim, "penstock.workers.simulated") >= 1


def ask_a_sidecar(cluster: Cluster, prometheus: Prometheus) -> None:
    """What clients of picks do, who pass the gateway by; the second time they name a prefill worker that is none."""
    decode = next(pod for pod in cluster.workers(NAME) if role(pod) == "Decode")
    prefill = next(pod for pod in cluster.workers(NAME) if role(pod) == "Prefill")
    containers = (*decode["spec"].get("initContainers", ()), *decode["spec"]["containers"])
    ports = {port["name"]: port["containerPort"] for each in containers for port in each.get("ports", ())}
    for named in (prefill, decode):
        prefiller = f"{named['status']['podIP']}:8000"
        assert prometheus.complete(decode["metadata"]["name"], ports["sidecar"], MODEL, prefiller) == 200


def role(pod: Object) -> str:
    return str(pod["metadata"]["labels"]["penstock.dev/role"])


def asked() -> list[Question]:
    return list(questions(json.loads(DASHBOARD.read_text())))


def variables(prometheus: Prometheus) -> dict[str, str]:
    """Each variable's first value, found as Grafana finds it."""
    values = {"__rate_interval": f"{RATE_S}s"}
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] != "query":
            continue
        query = variable["query"]
        for name, value in values.items():
            query = query.replace(f"${name}", value)
        found = prometheus.label_values(query)
        assert found, f"the variable {variable['name']} finds nothing: {query}"
        values[variable["name"]] = found[0]
    assert (values["namespace"], values["deployment"], values["model"]) == ("default", NAME, MODEL)
    return values


def sound(prometheus: Prometheus) -> None:
    """Every alerting rule is loaded and evaluates."""
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) >= 17
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []
    critical = [r["name"] for r in rules if r["state"] == "firing" and r["labels"]["severity"] == "critical"]
    assert critical == []


def keep(answers: dict[Question, list[Object]]) -> None:
    if path := os.environ.get("PENSTOCK_ANSWERS"):
        rows = [{**asdict(question), "series": series} for question, series in answers.items()]
        Path(path).write_text(json.dumps(rows))
