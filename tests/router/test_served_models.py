"""Which ModelDeployments' models are served: a mistake in a spec stops nothing that runs, and takes nobody's name."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from penstock.core.fleet import Fleet
from penstock.router.decisions import find_policy
from penstock.router.shell.discovery.cluster import ClusterDiscovery
from penstock.router.shell.discovery.objects import read_deployment
from penstock.router.shell.models import ServedModel


class Told:
    """Stands for the model table: what it was told last."""

    def __init__(self) -> None:
        self.models: dict[str, ServedModel] = {}

    def replace(self, served: Any) -> None:
        self.models = {model.name: model for model in served}


def pod(deployment: str = "chat") -> dict[str, Any]:
    metadata = {"name": f"{deployment}-0", "namespace": "n", "uid": deployment}
    labels = {"penstock.dev/deployment": deployment, "penstock.dev/pool": "serve"}
    return {
        "metadata": {**metadata, "labels": labels, "annotations": {"penstock.dev/model": "m"}},
        "status": {"podIP": "10.0.0.1", "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }


def deployment(name: str, accepted: bool, policy: str = "LeastLoaded") -> dict[str, Any]:
    verdict = {"type": "Accepted", "status": "True" if accepted else "False"}
    return {
        "metadata": {"name": name, "namespace": "n", "generation": 1},
        "spec": {"model": {"name": "m"}, "routing": {"policy": policy}},
        "status": {"conditions": [verdict]},
    }


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def discovery(told: Told) -> ClusterDiscovery:
    fleet = Fleet()
    gateway = cast("Any", SimpleNamespace(fleet=fleet, models=told, remove_worker=fleet.remove))
    return ClusterDiscovery(cast("Any", None), gateway, (), find_policy("KVAware"))


def test_one_that_is_refused_with_workers_goes_on(discovery: ClusterDiscovery, told: Told) -> None:
    discovery._deployment_changed(("n", "chat"), deployment("chat", True))
    discovery._pod_changed(("n", "chat-0"), pod())
    assert told.models["m"].policy.name == "LeastLoaded"
    discovery._deployment_changed(("n", "chat"), deployment("chat", False, policy="LeestLoaded"))
    assert told.models["m"].policy.name == "KVAware", "a policy nobody knows is the default one"
    seen = read_deployment(deployment("chat", False))
    assert seen is not None and discovery._counts(seen) == (1, 1, 1), "the condition says what is so"
    discovery._pod_removed(("n", "chat-0"))
    assert not told.models


def test_one_that_is_refused_takes_no_name_from_another(discovery: ClusterDiscovery, told: Told) -> None:
    discovery._deployment_changed(("n", "a"), deployment("a", False, policy="Random"))
    assert not told.models, "it never had a worker"
    discovery._pod_changed(("n", "a-0"), pod("a"))
    discovery._deployment_changed(("n", "z"), deployment("z", True))
    assert told.models["m"].policy.name == "LeastLoaded"
