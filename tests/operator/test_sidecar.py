"""Decode workers' sidecars: who gets one, how it learns of prefill workers, and that none of it rolls a worker."""

import pytest
from penstock.operator.decisions.writes import Apply
from penstock.operator.shell.kube import path_of

IMAGE = "penstock/sidecar:1"
POOLS = [
    {"name": "p", "role": "Prefill", "acceleratorClasses": ["a100-80g"], "replicas": {"min": 1, "max": 8}},
    {"name": "d", "role": "Decode", "acceleratorClasses": ["a100-80g"], "replicas": {"min": 2, "max": 8}},
]


def sidecars(world):
    """Sidecar container by role, of every ReplicaSet whose pods have one."""
    return {
        item["metadata"]["labels"]["penstock.dev/role"]: container
        for item in world.of("ReplicaSet")
        for container in item["spec"]["template"]["spec"].get("initContainers", ())
    }


def services(world):
    return {item["metadata"]["name"]: item for item in world.of("Service")}


@pytest.fixture
def apart(world):
    world.sidecar_image = IMAGE
    world.deploy(pools=POOLS)
    world.settle()
    return world


def test_decode_workers_have_a_sidecar_and_others_have_none(apart):
    assert set(sidecars(apart)) == {"Decode"}
    (container,) = [c for r, c in sidecars(apart).items() if r == "Decode"]
    assert container["image"] == IMAGE and container["restartPolicy"] == "Always"


def test_workers_that_do_both_have_none(world):
    world.sidecar_image = IMAGE
    world.deploy()
    world.settle()
    assert not sidecars(world) and not services(world)


def test_without_an_image_nobody_has_one(world):
    world.deploy(pools=POOLS)
    world.settle()
    assert not sidecars(world) and not services(world)


def test_the_sidecar_is_told_the_service_that_selects_its_prefill_workers(apart):
    ((name, service),) = services(apart).items()
    args = sidecars(apart)["Decode"]["args"]
    assert args[args.index("--prefill-service") + 1] == f"{name}:8000"
    assert service["spec"]["clusterIP"] == "None" and len(name) <= 63 and name[0].isalpha()
    selector = service["spec"]["selector"].items()
    chosen = [p["metadata"]["labels"] for p in apart.pods() if selector <= p["metadata"]["labels"].items()]
    assert [labels["penstock.dev/role"] for labels in chosen] == ["Prefill"]


def test_the_service_is_written_once_and_again_when_it_is_forgotten(apart):
    def written():
        return [w for w in apart.reconcile().writes if isinstance(w, Apply) and w.ref.kind == "Service"]

    assert not written()
    apart.services.clear()  # an operator that has just started, or some minutes later
    assert len(written()) == 1
    assert not written()


def test_a_new_hash_has_a_service_of_its_own_that_goes_with_its_revisions(apart):
    before = services(apart)
    apart.change(engine={"args": ["--block-size=32"]})
    apart.settle()
    after = services(apart)
    assert len(after) == 2 and before.keys() < after.keys()
    uids = {item["metadata"]["uid"]: item for item in apart.of("ReplicaSet")}
    for service in after.values():
        owners = service["metadata"]["ownerReferences"]
        assert owners and all(owner["kind"] == "ReplicaSet" and not owner["controller"] for owner in owners)
        wanted = service["spec"]["selector"]["penstock.dev/kv-hash"]
        for owner in owners:
            template = uids[owner["uid"]]["spec"]["template"]
            assert template["metadata"]["labels"]["penstock.dev/kv-hash"] == wanted


def test_two_deployments_never_share_a_service(world):
    world.sidecar_image = IMAGE
    for number in range(2):
        name = f"llama-{number}"
        world.deploy(name, pools=POOLS, model={"name": f"m{number}", "source": {"uri": "hf://meta-llama/Llama-3.1-8B"}})
        world.reconcile(name)
        world.reconcile(name)
    found = [s["spec"]["selector"]["penstock.dev/deployment"] for s in services(world).values()]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(("before", "after"), [("", IMAGE), (IMAGE, "penstock/sidecar:2"), (IMAGE, "")])
def test_another_release_of_the_sidecar_rolls_nobody(world, before, after):
    world.sidecar_image = before
    world.deploy(pools=POOLS)
    world.settle()
    made = [item["metadata"]["name"] for item in world.of("ReplicaSet")]
    world.sidecar_image = after
    world.settle()
    assert [item["metadata"]["name"] for item in world.of("ReplicaSet")] == made
    assert {c["image"] for c in sidecars(world).values()} == ({before} if before else set())


def test_whatever_is_written_the_client_knows_the_address_of(apart):
    for write in apart.log:
        ref = write.ref
        assert path_of(ref.api_version, ref.kind, ref.namespace, ref.name)
    assert {"Service", "ConfigMap", "WorkerPool"} <= {write.ref.kind for write in apart.log}
