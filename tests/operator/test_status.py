"""What conditions say about workers in every kind of trouble."""

import pytest
from penstock.operator.decisions.desired import desired
from penstock.operator.decisions.reading import read_node, read_pod
from penstock.operator.decisions.times import epoch

POOL = "llama-serve-a100-80g"


def started(world, **spec):
    world.deploy(**spec)
    world.route()
    world.settle()


def told(world, of):
    world.reconcile()
    condition = world.condition(of)
    return condition["status"], condition["reason"], condition["message"]


def test_no_room_is_told_in_the_schedulers_words(world):
    started(world)
    world.scale_by_user(POOL, 4)
    world.reconcile()
    world.cluster_step(ready=False)
    said = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    for pod in world.pods(ready=False):
        pod["status"]["conditions"] = [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}
        ]
    status, reason, message = told(world, "CapacityAvailable")
    assert (status, reason) == ("False", "InsufficientCapacity")
    assert f"2 of 4 workers find no a100-80g: {said}" in message
    assert told(world, "Available")[:2] == ("True", "MinimumReady"), "two ready workers still serve"


@pytest.mark.parametrize(
    ("waiting", "reason"),
    [
        ("CrashLoopBackOff", "WorkersCrashing"),
        ("ImagePullBackOff", "ImageUnavailable"),
        ("ErrImagePull", "ImageUnavailable"),
    ],
)
def test_a_container_that_does_not_start(world, waiting, reason):
    started(world)
    pod = world.pods()[0]
    pod["status"] = {
        "phase": "Running",
        "containerStatuses": [
            {
                "name": "engine",
                "restartCount": 4,
                "state": {"waiting": {"reason": waiting, "message": "back-off 40s"}},
                "lastState": {"terminated": {"reason": "Error", "exitCode": 1, "message": "CUDA out of memory"}},
            }
        ],
    }
    status, got, message = told(world, "Degraded")
    assert (status, got) == ("True", reason)
    assert pod["metadata"]["name"] in message and "CUDA out of memory" in message
    assert told(world, "Ready")[1] == reason, "the sum names the cause, not the count"


def test_a_worker_that_stopped_being_ready(world):
    started(world)
    pod = world.pods()[0]
    pod["status"] = {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T01:00:00Z"}],
        "containerStatuses": [{"name": "engine", "state": {"running": {"startedAt": "2026-01-01T00:30:00Z"}}}],
    }
    assert told(world, "Degraded")[:2] == ("True", "WorkersUnready")


def test_a_worker_that_is_still_starting_is_no_trouble(world):
    started(world)
    pod = world.pods()[0]
    pod["status"] = {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:29:00Z"}],
        "containerStatuses": [{"name": "engine", "state": {"running": {"startedAt": "2026-01-01T00:30:00Z"}}}],
    }
    assert told(world, "Degraded")[0] == "False"


def test_a_lost_node_is_named(world):
    started(world)
    world.node("node-1", ready=False)
    for pod in world.pods():
        pod["status"]["conditions"][0]["status"] = "False"
    status, reason, message = told(world, "Degraded")
    assert (status, reason) == ("True", "WorkersUnready") and "node node-1 is not ready" in message


def test_a_pod_beyond_its_grace_is_an_overlap_and_time_is_watched(world):
    started(world)
    pod = world.pods()[0]
    pod["metadata"]["deletionTimestamp"] = "2027-01-15T09:00:00Z"
    world.now = epoch("2027-01-15T08:59:00Z")
    assert desired(world.observe()).requeue_after == 60.0
    assert told(world, "Degraded")[0] == "False"
    world.now = epoch("2027-01-15T09:00:40Z")
    status, reason, message = told(world, "Degraded")
    assert (status, reason) == ("True", "TerminatingOverlap") and "by 2027-01-15T09:00:00Z" in message
    for _ in range(3):
        world.now += 1
        assert desired(world.observe()).writes == (), "time alone must not write"


def test_a_quota_that_allows_no_pods(world):
    started(world)
    world.of("ReplicaSet")[0]["status"] = {
        "conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus"}]
    }
    assert told(world, "CapacityAvailable")[:2] == ("False", "QuotaExceeded")


def test_scaled_to_zero(world):
    started(world, pools=[{"name": "serve", "acceleratorClasses": ["a100-80g"], "replicas": {"min": 0, "max": 4}}])
    assert told(world, "Available")[:2] == ("False", "ScaledToZero")
    world.scale_by_user(POOL, 1)
    world.settle()
    assert told(world, "Available")[:2] == ("True", "WorkersReady")


def test_the_sum_waits_for_the_router(world):
    world.deploy()
    world.settle()
    assert told(world, "Ready")[:2] == ("False", "RouterUnknown")
    world.route()
    assert told(world, "Ready")[:2] == ("True", "Ready")
    router = world.condition("RouterReady")
    assert router["message"] == "sees all", "the router's condition must survive our writes"
    router.update(status="False", reason="NoRoutableWorker", message="none")
    assert told(world, "Ready")[:2] == ("False", "NoRoutableWorker")


def test_transition_times_move_with_the_status_only(world):
    started(world)
    before = world.condition("Available")["lastTransitionTime"]
    world.now += 100
    world.scale_by_user(POOL, 3)
    world.reconcile()
    assert world.condition("Available")["reason"] == "MinimumReady"
    assert world.condition("Available")["lastTransitionTime"] == before
    world.pods()[0]["status"]["conditions"][0]["status"] = "False"
    world.pods()[1]["status"]["conditions"][0]["status"] = "False"
    world.reconcile()
    assert world.condition("Available")["lastTransitionTime"] != before


def test_a_refused_write_is_told(world):
    started(world)
    (status,) = [w for w in desired(world.observe(), failure="the API server refuses X: no").writes if w.subresource]
    degraded = next(c for c in status.body["status"]["conditions"] if c["type"] == "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "ReconcileFailed")


def test_a_price_that_is_missing_is_not_zero(world):
    world.accelerator("a100-80g", pricePerHour=None)
    started(world)
    status = world.objects["ModelDeployment", "llama"]["status"]
    assert status["plan"]["costPerHour"] == "" and status["plan"]["accelerators"] == 2


def test_profiles_in_use_are_named_with_their_source(world):
    world.accelerator("odd-80g")
    started(world, pools=[{"name": "serve", "acceleratorClasses": ["odd-80g"], "replicas": {"min": 1}}])
    assert told(world, "ProfileReady")[:2] == ("True", "ProfileFromRoofline")
    assert world.objects["ModelDeployment", "llama"]["status"]["profiles"][0]["source"] == "Roofline"


def test_events_tell_changes_not_states(world):
    world.deploy()
    first = [event.reason for event in world.reconcile().events]
    assert "WorkerPoolApplied" in first and "Accepted" in first
    world.settle()
    assert world.reconcile().events == ()
    world.change(routing={"policy": "Nope"})
    (event,) = [e for e in world.reconcile().events if e.reason == "UnknownRoutingPolicy"]
    assert event.type == "Warning" and event.uid == world.objects["ModelDeployment", "llama"]["metadata"]["uid"]


def test_a_bare_pod_and_a_bare_node_are_read_without_fuss():
    pod = read_pod({"metadata": {"name": "p", "namespace": "n"}})
    assert (pod.ready, pod.scheduled, pod.live, pod.waiting) == (False, False, True, "")
    allocatable = {"cpu": "8", "example.com/x": "2", "a/b": "1k"}
    node = read_node({"metadata": {"name": "n"}, "status": {"allocatable": allocatable}})
    assert node.allocatable == {"example.com/x": 2} and not node.ready


def test_what_the_autoscaler_cannot_do_is_degraded_and_its_part_is_left_alone(world):
    started(world)
    stored = world.objects["ModelDeployment", "llama"]
    said = {"degraded": "SignalsMissing", "message": "workers do not answer"}
    stored["status"]["recommendation"] = said
    assert told(world, "Degraded") == ("True", "SignalsMissing", "workers do not answer")
    assert told(world, "Ready")[0] == "True", "what serves goes on serving"
    stored["status"]["recommendation"] = {"degraded": "", "reason": "enough"}
    assert told(world, "Degraded")[:2] == ("False", "AsExpected")
    stored["status"]["recommendation"] = {"degraded": "", "reason": "another sentence"}
    assert not [w for w in desired(world.observe()).writes if w.subresource == "status"], "news of others moves us not"
