"""Eight minutes of traffic, one fault at a time: who had no first byte yet is served, and the state comes back.

The order of the faults is fixed and each waits for the recovery from the one before. What the client may see is
stated per fault: a worker that dies takes the streams it was sending with it; nothing else may break a stream.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from penstock.core.reports import Outcome, Verdict
from penstock.core.traces import Trace, limit_duration, scale_rate
from verbs import Cluster, Load, Object, describe, is_ready, load, wait_for

NAME = "faults"
MODEL = "e2e/faults-8b"
WORKERS = 4
BACK_WITHIN_S = 120.0
CALM_S = 20.0
SYSTEM = "penstock-system"
ROLES = ("operator", "router", "autoscaler")

MANIFEST = {
    "apiVersion": "penstock.dev/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"name": NAME, "namespace": "default"},
    "spec": {
        "model": {"name": MODEL, "architecture": {"name": "meta-llama/Llama-3.1-8B-Instruct"}},
        "objectives": {"ttft": "1s", "tpot": "50ms"},
        "pools": [
            {"name": "serve", "acceleratorClasses": ["a100-80g"], "replicas": {"min": WORKERS, "max": WORKERS + 2}}
        ],
    },
}


@pytest.fixture(scope="module")
def deployment(cluster: Cluster) -> Iterator[None]:
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(MANIFEST))
    wait_for("the deployment is available", lambda: as_before(cluster), 120)
    yield
    cluster.kubectl("delete", "mdep", NAME, "--wait=true", timeout=180)


def as_before(cluster: Cluster) -> bool:
    """Whether the deployment is well: Ready, exactly its workers, all ready, one revision with pods."""
    pods = cluster.items("pods", "-l", f"penstock.dev/deployment={NAME}")
    revisions = {p["metadata"]["labels"]["penstock.dev/revision"] for p in pods}
    return (
        cluster.condition(NAME, "Ready").get("status") == "True"
        and cluster.condition(NAME, "Available").get("status") == "True"
        and len(pods) == WORKERS
        and all(map(is_ready, pods))
        and len(revisions) == 1
    )


def back(cluster: Cluster, what: str) -> None:
    wait_for(f"the state after {what} is as before", lambda: as_before(cluster), BACK_WITHIN_S)


@pytest.mark.box
@pytest.mark.timeout(1200)
def test_one_fault_at_a_time(cluster: Cluster, deployment: None, azure: Callable[[], Trace]) -> None:
    trace = limit_duration(scale_rate(azure(), 0.5), 8 * 60.0)
    with load(cluster, trace, MODEL) as running:
        wait_for("traffic flows", lambda: len(running.outcomes()) > 10, 60)
        for fault in FAULTS:
            fault(cluster, running)
            time.sleep(CALM_S)  # so that no request sees two faults
        assert running.now() < 8 * 60.0, f"the faults outlasted the load: {running.marks}"
    judge(running)


def judge(running: Load) -> None:
    """What the client may and may not have seen."""
    outcomes = running.outcomes()
    before_first_byte = [o for o in outcomes if o.verdict is not Verdict.COMPLETED and o.ttft_s is None]
    assert not before_first_byte, f"lost before a first byte: {describe(before_first_byte)}; faults {running.marks}"
    deadly = {o.index for name in ("worker killed", "node lost") for o in running.during(name)}
    cut = [o for o in outcomes if o.verdict is not Verdict.COMPLETED and o.index not in deadly]
    assert not cut, f"streams cut where nothing died: {describe(cut)}; faults {running.marks}"
    assert len(broken(outcomes)) <= 0.02 * len(outcomes), describe(outcomes)
    for name, _, _ in running.marks:
        assert running.during(name), f"no request was alive during {name}: the test proved nothing"


def broken(outcomes: list[Outcome]) -> list[Outcome]:
    return [o for o in outcomes if o.verdict is not Verdict.COMPLETED]


def worker_killed(cluster: Cluster, running: Load) -> None:
    victim = cluster.ready_workers(NAME)[0]
    with running.fault("worker killed"):
        assert cluster.kill_pod_process(victim, "penstock.workers.simulated") >= 1
        wait_for("the kubelet saw the worker die", lambda: restarts(cluster, victim) > 0, 30)
    back(cluster, "a worker killed")


def restarts(cluster: Cluster, pod: Object) -> int:
    statuses = cluster.get("pod", pod["metadata"]["name"])["status"]["containerStatuses"]
    return sum(int(s["restartCount"]) for s in statuses)


def node_lost(cluster: Cluster, running: Load) -> None:
    """A node that carries workers, and maybe the operator; the one with the gateway has a test of its own."""
    gateways = {str(p["spec"]["nodeName"]) for p in role_pods(cluster, "router")}
    hosts = [str(p["spec"]["nodeName"]) for p in cluster.ready_workers(NAME)]
    victims = [n for n in hosts if n not in gateways]
    assert victims, f"workers on {hosts}, the gateway on {gateways}: no node to lose"
    with running.fault("node lost"):
        cluster.kill_node(victims[0])
        wait_for("the node is not ready", lambda: not node_ready(cluster, victims[0]), 60)
    cluster.start_node(victims[0])
    wait_for("the node is back", lambda: node_ready(cluster, victims[0]), 60)
    back(cluster, "a node lost")
    wait_for("our roles are back", lambda: all(role_ready(cluster, role) for role in ROLES), BACK_WITHIN_S)


def node_ready(cluster: Cluster, node: str) -> bool:
    return is_ready(cluster.get("node", node))


def rolled(cluster: Cluster, running: Load) -> None:
    _rolled(cluster, running, "roll", surge=1, unavailable=0, length="16384")


def rolled_without_surge(cluster: Cluster, running: Load) -> None:
    _rolled(cluster, running, "roll without surge", surge=0, unavailable=1, length="16000")


def _rolled(cluster: Cluster, running: Load, name: str, *, surge: int, unavailable: int, length: str) -> None:
    old = {p["metadata"]["name"] for p in cluster.workers(NAME)}
    patch = {
        "spec": {
            "engine": {"args": ["--max-model-len", length]},
            "rollout": {"maxSurge": surge, "maxUnavailable": unavailable},
        }
    }
    peak = 0
    with running.fault(name):
        cluster.kubectl("patch", "mdep", NAME, "--type=merge", "-p", json.dumps(patch))

        def done() -> bool:
            nonlocal peak
            pods = cluster.items("pods", "-l", f"penstock.dev/deployment={NAME}")
            peak = max(peak, len(pods))
            return as_before(cluster) and not old & {p["metadata"]["name"] for p in pods}

        wait_for(f"the {name} ends", done, BACK_WITHIN_S)
    # A worker on its way out still holds its accelerators: without surge it counts too.
    assert surge > 0 or peak <= WORKERS, f"{peak} pods during a roll with maxSurge 0"


def scaled_down(cluster: Cluster, running: Load) -> None:
    pool = f"{NAME}-serve-a100-80g"
    cluster.kubectl("scale", "wpool", pool, f"--replicas={WORKERS + 1}")
    wait_for("the pool grew", lambda: len(cluster.ready_workers(NAME)) == WORKERS + 1, 60)
    refused = cluster.try_kubectl("scale", "wpool", pool, "--replicas=50")
    assert refused.returncode != 0 and "outside" in refused.stderr, refused.stderr
    with running.fault("scale down"):
        cluster.kubectl("scale", "wpool", pool, f"--replicas={WORKERS}")
        wait_for("the pool shrank", lambda: as_before(cluster), BACK_WITHIN_S)


def operator_killed(cluster: Cluster, running: Load) -> None:
    with running.fault("operator killed"):
        kill_role(cluster, "operator")
        cluster.kubectl("delete", "pod", cluster.workers(NAME)[0]["metadata"]["name"], "--wait=false")
    wait_for("the operator is back", lambda: role_ready(cluster, "operator"), BACK_WITHIN_S)
    back(cluster, "the operator killed")


def api_server_killed(cluster: Cluster, running: Load) -> None:
    with running.fault("API server killed"):
        cluster.kill_component("kube-apiserver")
        wait_for("the API server answers", lambda: bool(cluster.get("nodes")["items"]), 60)
    back(cluster, "the API server killed")


FAULTS = (
    worker_killed,
    node_lost,
    rolled,
    rolled_without_surge,
    scaled_down,
    operator_killed,
    api_server_killed,
)


def role_pods(cluster: Cluster, role: str) -> list[Object]:
    return cluster.items("pods", "-n", SYSTEM, "-l", f"app.kubernetes.io/component={role}")


def kill_role(cluster: Cluster, role: str) -> None:
    killed = [cluster.kill_pod_process(pod, f"penstock.{role}") for pod in role_pods(cluster, role)]
    assert killed and all(killed), f"no process of the {role} found"


def role_ready(cluster: Cluster, role: str) -> bool:
    pods = role_pods(cluster, role)
    return bool(pods) and all(map(is_ready, pods))


@pytest.mark.box
@pytest.mark.timeout(600)
def test_a_killed_router_serves_again_within_two_seconds_of_ready(
    cluster: Cluster, deployment: None, azure: Callable[[], Trace]
) -> None:
    trace = limit_duration(azure(), 60.0)
    trace = replace(trace, requests=tuple(replace(r, output_tokens=min(r.output_tokens, 40)) for r in trace.requests))
    ready_at = 0.0
    with load(cluster, trace, MODEL, seed=2) as running:
        wait_for("traffic flows", lambda: len(running.outcomes()) > 10, 60)
        with running.fault("router killed"):
            kill_role(cluster, "router")
            wait_for("the router is away", lambda: not role_ready(cluster, "router"), 30, every=0.05)
            wait_for("the router is ready again", lambda: role_ready(cluster, "router"), 60, every=0.05)
            ready_at = running.now()
    late = [o for o in running.outcomes() if o.sent_s > ready_at + 2.0]
    assert len(late) > 20, f"only {len(late)} requests were sent after the router came back at {ready_at:.1f} s"
    assert all(o.verdict is Verdict.COMPLETED for o in late), describe(late)
