"""What a snapshot says of workers that the cluster holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from penstock.autoscaler.decisions.history import History
from penstock.autoscaler.decisions.observations import WorkerHistory
from penstock.autoscaler.decisions.snapshot import DeploymentView, Pods
from penstock.autoscaler.shell.cluster import ClusterView
from penstock.autoscaler.shell.objects import Pool, PoolKey, Worker
from penstock.autoscaler.shell.views import ViewRules, Views

NOW = 10_000.0
KEY = PoolKey("team", "chat", "serve", "PrefillDecode", "h100", "a/model")
DEPLOYMENT = {
    "metadata": {"namespace": "team", "name": "chat"},
    "spec": {
        "model": {"name": "a/model"},
        "objectives": {"ttft": "1s", "tpot": "50ms"},
        "pools": [{"name": "serve", "acceleratorClasses": ["h100"]}],
    },
}


def worker(name: str, ready_since: float | None = None, **more: Any) -> Worker:
    facts: dict[str, Any] = {"started": True, "ready": ready_since is not None, "terminating": False, **more}
    return Worker("team", name, KEY, None, scheduled=True, created=NOW - 500, ready_since=ready_since, **facts)


def pods(*workers: Worker) -> Pods:
    return deployment(*workers).pools[0].pods


def deployment(*workers: Worker, item: dict[str, Any] = DEPLOYMENT) -> DeploymentView:
    cluster = SimpleNamespace(
        workers=lambda: list(workers),
        pools=lambda: [Pool(KEY, 3, "chat-serve-h100")],
        deployments=lambda: [item],
        cluster_scoped=lambda plural: [],
    )
    seen = Views(ViewRules(), WorkerHistory).snapshot(cast(ClusterView, cluster), History(since=0.0), NOW, 50.0)
    return seen.deployments[0]


def test_the_longest_ready_worker_says_since_when_a_pool_serves() -> None:
    """The guard calls silence a fault only of workers that were there long enough to be asked."""
    leaving = worker("w3", NOW - 300, terminating=True)
    seen = pods(worker("w0", NOW - 7), worker("w1", NOW - 40), worker("w2"), leaving)
    assert (seen.ready, seen.starting, seen.terminating) == (2, 1, 1)
    assert seen.ready_s == pytest.approx(40)


def test_the_wish_for_no_worker_is_seen() -> None:
    """The guard tells who wished for it why the last worker stays."""
    assert deployment().to_zero_after_s is None
    idle = {"mode": "Auto", "scaleToZeroAfter": "15m"}
    asked = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "autoscaling": idle}}
    assert deployment(item=asked).to_zero_after_s == 900.0
