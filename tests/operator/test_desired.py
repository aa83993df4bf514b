"""The whole pure core against a cluster in memory: it converges, holds still, and survives being cut off anywhere."""

import copy

import pytest
from penstock.operator.decisions.desired import desired
from penstock.operator.decisions.writes import Apply, Delete, Scale

POOL = "llama-serve-a100-80g"


def _essence(world):
    """What must be equal however often the operator died on the way; names that carry counters are left out."""
    return {
        "pools": [(o["metadata"]["name"], o["spec"]) for o in world.of("WorkerPool")],
        "sets": sorted((o["metadata"]["name"], o["spec"]["replicas"]) for o in world.of("ReplicaSet")),
        "maps": [o["metadata"]["name"] for o in world.of("ConfigMap")],
        "pods": len(world.pods(ready=True)),
        "conditions": [(c["type"], c["status"], c["reason"]) for c in _status(world)["conditions"]],
        "workers": _status(world)["workers"],
    }


def _status(world):
    return world.objects["ModelDeployment", "llama"]["status"]


def test_a_deployment_becomes_ready(world):
    world.deploy()
    world.route()
    world.settle()
    assert _status(world)["workers"] == "2/2"
    assert world.condition("Ready")["status"] == "True"
    assert _status(world)["plan"]["costPerHour"] == "5.00"
    assert "2 on node-1" in _status(world)["message"]
    assert world.objects["WorkerPool", POOL]["status"]["selector"] == (
        "penstock.dev/accelerator=a100-80g,penstock.dev/deployment=llama,penstock.dev/pool=serve"
    )


def test_what_is_reached_is_left_alone(world):
    world.deploy()
    world.settle()
    assert desired(world.observe()).writes == ()


def test_every_owned_object_hangs_on_the_deployment_without_blocking_it(world):
    deployment = world.deploy()
    world.settle()
    for kind in ("WorkerPool", "ReplicaSet", "ConfigMap"):
        for stored in world.of(kind):
            (owner,) = stored["metadata"]["ownerReferences"]
            assert owner["controller"] and not owner["blockOwnerDeletion"]
            assert "finalizers" not in stored["metadata"]
    assert world.of("ConfigMap")[0]["metadata"]["ownerReferences"][0]["uid"] == deployment["metadata"]["uid"]


def test_deleting_the_deployment_leaves_nothing(world):
    world.deploy()
    world.settle()
    del world.objects["ModelDeployment", "llama"]
    for _ in range(5):
        world.cluster_step()
    assert {kind for kind, _ in world.objects} == {"EngineClass", "AcceleratorClass", "Node"}


def test_a_deployment_on_its_way_out_gets_no_writes(world):
    world.deploy()["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert desired(world.observe()).writes == ()


def test_replicas_are_set_once_and_then_belong_to_whoever_scales(world):
    world.deploy()
    world.settle()
    world.scale_by_user(POOL, 5)
    world.settle()
    assert world.objects["WorkerPool", POOL]["spec"]["replicas"] == 5
    assert _status(world)["workers"] == "5/5"
    initial = [w for w in world.log if isinstance(w, Apply) and w.manager == "penstock-initial"]
    declared = [w for w in world.log if isinstance(w, Apply) and "replicas" in w.body.get("spec", {})]
    assert len(initial) == 1 and not initial[0].force
    assert [w.ref.kind for w in declared if w.manager != "penstock-initial" and not w.dry_run] == ["ReplicaSet"]


def _range(least, most):
    return [{"name": "serve", "acceleratorClasses": ["a100-80g"], "replicas": {"min": least, "max": most}}]


@pytest.mark.parametrize(
    ("start", "least", "most", "expected"),
    [(6, 2, 4, 4), (2, 5, 8, 5), (6, 1, 2, 2), (2, 9, 12, 9), (3, 3, 3, 3), (8, 0, 1, 1)],
)
def test_moving_a_bound_scales_in_an_order_the_api_server_accepts(world, start, least, most, expected):
    world.deploy()
    world.settle()
    world.scale_by_user(POOL, start)
    world.settle()
    world.change(pools=_range(least, most))
    world.settle()  # the world refuses replicas outside the bounds at every single write
    spec = world.objects["WorkerPool", POOL]["spec"]
    assert (spec["replicas"], spec["minReplicas"], spec["maxReplicas"]) == (expected, least, most)


@pytest.mark.parametrize("rollout", [{"maxSurge": 0, "maxUnavailable": 1}, {"maxSurge": 1, "maxUnavailable": 0}])
def test_a_change_of_arguments_rolls_all_workers(world, rollout):
    world.deploy(rollout=rollout)
    world.settle()
    before = {p["metadata"]["name"] for p in world.pods()}
    world.change(engine={"args": ["--max-num-seqs=64"]})
    world.settle()
    assert not before & {p["metadata"]["name"] for p in world.pods(ready=True)}
    assert len(world.pods(ready=True)) == 2
    assert sorted(o["spec"]["replicas"] for o in world.of("ReplicaSet")) == [0, 2]


def test_applying_the_old_spec_again_rolls_back_to_the_old_replica_set(world):
    world.deploy()
    world.settle()
    (first,) = world.of("ReplicaSet")
    world.change(engine={"args": ["--max-num-seqs=64"]})
    world.settle()
    world.change(engine={})
    world.settle()
    assert world.objects["ReplicaSet", first["metadata"]["name"]]["spec"]["replicas"] == 2
    assert len(world.of("ReplicaSet")) == 2


def test_old_revisions_are_pruned_to_a_small_history(world):
    world.deploy()
    world.settle()
    for number in range(7):
        world.change(engine={"args": [f"--max-num-seqs={number + 1}"]})
        world.settle()
    assert len(world.of("ReplicaSet")) == 4
    assert len(world.pods(ready=True)) == 2


def test_a_new_renderer_rolls_no_worker(world, monkeypatch):
    world.deploy()
    world.settle()
    monkeypatch.setattr(
        "penstock.operator.decisions.templates.render",
        lambda adapter, spec: {"metadata": {}, "spec": {"containers": [{"name": "engine", "image": "rendered anew"}]}},
    )
    assert desired(world.observe()).writes == ()
    world.change(engine={"args": ["--max-num-seqs=64"]})
    world.settle()
    assert "rendered anew" in str(world.objects["WorkerPool", POOL]["spec"]["template"])


def test_an_unaccepted_spec_stops_nothing_that_runs_and_recovers(world):
    world.deploy()
    world.settle()
    revision = world.objects["WorkerPool", POOL]["spec"]["revision"]
    world.change(engine={"className": "simulate", "args": ["--max-num-seqs=64"]})
    world.settle()
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "UnknownEngineClass")
    assert "did you mean 'simulated'?" in accepted["message"]
    assert len(world.pods(ready=True)) == 2
    world.scale_by_user(POOL, 3)
    world.settle()
    assert len(world.pods(ready=True)) == 3
    assert world.objects["WorkerPool", POOL]["spec"]["revision"] == revision
    world.change(engine={"className": "simulated"})
    world.settle()
    assert world.condition("Accepted")["status"] == "True"


def test_a_pod_the_api_server_refuses_is_told_and_changes_nothing(world):
    world.deploy()
    world.settle()
    before = copy.deepcopy([o["spec"] for o in world.of("WorkerPool")])
    world.refuse_pods = "spec.containers[1].image: Required value"
    world.change(podTemplate={"spec": {"containers": [{"name": "extra"}]}})
    wanted = world.reconcile()
    assert world.condition("Accepted")["reason"] == "InvalidPodTemplate"
    assert "Required value" in world.condition("Accepted")["message"]
    assert [o["spec"] for o in world.of("WorkerPool")] == before
    assert wanted.requeue_after is not None
    world.refuse_pods, world.refusals = "", {}
    world.settle()
    assert world.condition("Accepted")["status"] == "True"


def test_the_second_deployment_of_a_name_waits_for_the_first_to_go(world):
    world.deploy("llama")
    world.deploy("late")
    world.settle("llama")
    world.settle("late")
    assert world.condition("Accepted", "llama")["status"] == "True"
    refused = world.condition("Accepted", "late")
    assert refused["reason"] == "NameTaken" and "chat/llama" in refused["message"]
    assert not [o for o in world.of("WorkerPool") if o["spec"]["deploymentName"] == "late"]
    del world.objects["ModelDeployment", "llama"]
    world.settle("late")
    assert world.condition("Accepted", "late")["status"] == "True"


def test_a_worker_pool_of_another_deployment_is_left_alone(world):
    """Pool b-c of a and pool c of a-b would both be a-b-c-a100-80g."""
    world.deploy("a", model=_model("m"), pools=[_pool("b-c")])
    world.settle("a")
    mine = world.objects["WorkerPool", "a-b-c-a100-80g"]
    world.deploy("a-b", model=_model("n"), pools=[_pool("c")])
    world.settle("a-b")
    accepted = world.condition("Accepted", "a-b")
    assert (accepted["status"], accepted["reason"]) == ("False", "PoolNameTaken")
    assert "belongs to ModelDeployment a; give the pool another name" in accepted["message"]
    assert world.objects["WorkerPool", "a-b-c-a100-80g"] == mine
    assert world.condition("Accepted", "a")["status"] == "True"


def test_two_pools_of_one_worker_pool_name_are_refused(world):
    world.accelerator("c-a100-80g")
    world.deploy(pools=[_pool("a", "c-a100-80g"), _pool("a-c", "a100-80g")])
    world.settle()
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "PoolNameTaken")
    assert "would also be the name of pool a on c-a100-80g" in accepted["message"]


def _model(name):
    return {"name": name, "architecture": {"name": "meta-llama/Llama-3.1-8B-Instruct"}}


def _pool(name, accelerator="a100-80g"):
    return {"name": name, "acceleratorClasses": [accelerator], "replicas": {"min": 1, "max": 2}}


def test_a_class_taken_out_of_the_spec_goes_when_its_successor_is_ready(world):
    world.accelerator("h100-80g")
    world.deploy()
    world.settle()
    world.change(pools=[{"name": "serve", "acceleratorClasses": ["h100-80g"], "replicas": {"min": 2}}])
    world.reconcile()
    world.cluster_step(ready=False)
    world.reconcile()
    assert ("WorkerPool", POOL) in world.objects, "removed before the others could carry"
    world.settle()
    assert [o["metadata"]["name"] for o in world.of("WorkerPool")] == ["llama-serve-h100-80g"]
    assert len(world.pods(ready=True)) == 2


def test_a_pool_without_room_for_both_goes_at_once(world):
    world.accelerator("h100-80g")
    world.deploy(rollout={"maxSurge": 0, "maxUnavailable": 1})
    world.settle()
    world.change(pools=[{"name": "serve", "acceleratorClasses": ["h100-80g"], "replicas": {"min": 2}}])
    world.reconcile()
    assert ("WorkerPool", POOL) not in world.objects


def test_leftovers_of_an_earlier_deployment_are_waited_for(world):
    world.deploy()
    world.settle()
    old = world.objects.pop(("ModelDeployment", "llama"))
    world.deploy()
    wanted = desired(world.observe())
    touched = [w for w in wanted.writes if isinstance(w, Apply | Scale | Delete) and w.ref.name == POOL]
    assert touched == [], f"wrote to an object of {old['metadata']['uid']}"
    assert wanted.requeue_after == 2.0
    world.settle()
    assert world.of("WorkerPool")[0]["metadata"]["ownerReferences"][0]["uid"] != old["metadata"]["uid"]
    assert len(world.pods(ready=True)) == 2


def _story(world):
    """Everything a deployment goes through; each step is left half done when the operator dies."""
    yield lambda: world.deploy()
    yield lambda: world.scale_by_user(POOL, 4)
    yield lambda: world.change(engine={"args": ["--max-num-seqs=64"]}, rollout={"maxSurge": 0, "maxUnavailable": 1})
    yield lambda: world.change(pools=_range(1, 2))
    yield lambda: world.change(pools=[{"name": "other", "acceleratorClasses": ["a100-80g"], "replicas": {"min": 3}}])


def _run_story(world, die_after, interrupted):
    """Live through the story; the operator dies after `die_after` writes of each step and starts again."""
    for step in _story(world):
        step()
        if die_after is not None:
            world.die_at = world.writes + die_after
            try:
                world.settle()
            except interrupted:
                world.drained = False  # a new process has no memory
            world.die_at = None
        world.settle()
    return _essence(world)


def test_dying_before_any_single_write_changes_nothing_in_the_end(furnish, interrupted):
    calm = furnish()
    expected = _run_story(calm, None, interrupted)
    assert expected["pods"] == 3
    for die_after in range(14):
        assert _run_story(furnish(), die_after, interrupted) == expected, f"died after {die_after} writes"


def test_dying_in_one_step_at_every_write(furnish, interrupted):
    """The roll alone has more writes than the story's other steps: cut it at every one of them."""
    calm = furnish()
    calm.deploy()
    calm.settle()
    calm.change(engine={"args": ["--max-num-seqs=64"]})
    start = calm.writes
    calm.settle()
    expected, total = _essence(calm), calm.writes - start
    assert total > 8
    for die_after in range(total):
        world = furnish()
        world.deploy()
        world.settle()
        world.change(engine={"args": ["--max-num-seqs=64"]})
        world.die_at = world.writes + die_after
        with pytest.raises(interrupted):
            world.settle()
        world.die_at, world.drained = None, False
        world.settle()
        assert _essence(world) == expected, f"died after {die_after} of {total} writes"
