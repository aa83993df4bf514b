"""What a WorkerPool says of its workers' speed reaches the fleet, whenever it comes, and costs no worker its place."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from penstock.core.fleet import Fleet, Worker
from penstock.router.decisions import find_policy
from penstock.router.shell.discovery.cluster import ClusterDiscovery
from penstock.router.shell.discovery.speeds import Speed, told_speed

SPEED = {
    "source": "Benchmark",
    "prefill": {"base": "12.5", "perToken": "0.05", "perSquaredToken": "0.000001"},
    "decode": {"base": "9", "perSequence": "0.1", "perContextToken": "0.0001"},
    "transferPerToken": "0.002",
    "pricePerHour": "4.76",
}
KEY, POOL = ("chat", "p"), ("chat", "m-serve-a100-80g")


def pod(uid: str = "u") -> dict[str, Any]:
    labels = {
        "penstock.dev/deployment": "m",
        "penstock.dev/pool": "serve",
        "penstock.dev/accelerator": "a100-80g",
    }
    metadata = {"name": "p", "namespace": "chat", "uid": uid, "labels": labels}
    return {
        "metadata": {**metadata, "annotations": {"penstock.dev/model": "nobody/knows"}},
        "status": {"podIP": "10.0.0.1", "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }


def pool(**speed: Any) -> dict[str, Any]:
    return {"spec": {"speed": {**SPEED, **speed}}}


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def discovery(fleet: Fleet) -> ClusterDiscovery:
    models = SimpleNamespace(replace=lambda served: list(served))
    gateway = cast("Any", SimpleNamespace(fleet=fleet, models=models, remove_worker=fleet.remove))
    return ClusterDiscovery(cast("Any", None), gateway, (), find_policy("KVAware"))


def prefill(fleet: Fleet) -> list[float]:
    slot = fleet.slot_of("chat/p")
    assert slot is not None
    return [float(value) for value in fleet.prefill_ms[slot]]


@pytest.mark.parametrize("pool_first", [True, False])
def test_a_worker_is_as_fast_as_its_pool_says(fleet: Fleet, discovery: ClusterDiscovery, pool_first: bool) -> None:
    steps = [lambda: discovery._pool_changed(POOL, pool()), lambda: discovery._pod_changed(KEY, pod())]
    for step in steps if pool_first else reversed(steps):
        step()
    assert prefill(fleet) == [12.5, 0.05, 1e-6]
    slot = fleet.slot_of("chat/p")
    assert slot is not None and fleet.worker(slot).price_per_hour == 4.76


def test_a_new_figure_leaves_a_worker_its_requests(fleet: Fleet, discovery: ClusterDiscovery) -> None:
    discovery._pod_changed(KEY, pod())
    slot = fleet.slot_of("chat/p")
    assert slot is not None and np.isnan(fleet.prefill_ms[slot]).all()
    held = fleet.reserve(slot, 100, 10)
    view = fleet.view()
    discovery._pool_changed(POOL, pool())
    assert view.stale, "policies keep what they computed from a worker's speed until membership changes"
    assert fleet.slot_of("chat/p") == slot and fleet.in_flight[slot] == 1
    discovery._pool_changed(POOL, pool(pricePerHour="2"))
    discovery._pod_changed(KEY, pod())  # Any later change of the pod does not bring the old figures back.
    assert fleet.price[slot] == 2.0 and fleet.in_flight[slot] == 1
    fleet.release(held)


def test_a_pool_that_says_nothing_takes_nothing_back(fleet: Fleet, discovery: ClusterDiscovery) -> None:
    discovery._pool_changed(POOL, pool())
    discovery._pod_changed(KEY, pod())
    discovery._pool_changed(POOL, {"spec": {}})
    assert prefill(fleet) == [12.5, 0.05, 1e-6]


def test_other_pools_are_left_alone(fleet: Fleet, discovery: ClusterDiscovery) -> None:
    discovery._pod_changed(KEY, pod())
    discovery._pool_changed(("chat", "m-serve-h100-80g"), pool())
    discovery._pool_changed(("other", POOL[1]), pool())
    assert all(np.isnan(prefill(fleet)))


@pytest.mark.parametrize("odd", [{"prefill": None}, {"decode": {"base": "fast"}}, {"prefill": {"base": "-1"}}])
def test_what_cannot_be_read_is_as_good_as_not_said(odd: dict[str, Any]) -> None:
    assert told_speed(pool(**odd)["spec"]) is None


def test_experts_are_told_where_there_are_any() -> None:
    told = told_speed(pool(experts={"whole": "14", "share": "0.03125"})["spec"])
    assert told is not None and told.experts_ms == (14.0, 0.03125)
    assert told_speed(pool()["spec"]) == Speed(
        (12.5, 0.05, 1e-6), (9.0, 0.1, 1e-4), (0.0, 0.0), transfer_ms=0.002, price_per_hour=4.76
    )


def test_a_worker_cannot_become_another_one(fleet: Fleet) -> None:
    slot = fleet.add(Worker("a", "10.0.0.1", 8000, "m"))
    with pytest.raises(ValueError, match="differs"):
        fleet.describe(slot, Worker("a", "10.0.0.2", 8000, "m"))
