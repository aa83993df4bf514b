"""What a user of Kubernetes may take for granted, asked of the box: kubelets are real, the runtime below them is ours.

Each test has a namespace of its own, so they neither wait for nor disturb each other's leftovers.
"""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from penstock.box.errors import BoxError
from penstock.box.lifecycle import Box
from penstock.box.testing import kubectl, temporary_box, why_no_box
from spaces import TOOLBOX, Object, Space, once, pod, service, succeeds, until, web

pytestmark = [pytest.mark.box, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    """Two nodes, eight GPUs each, nothing installed."""
    if reason := why_no_box():
        pytest.skip(reason)
    with temporary_box("h100-80g=1x8,a100-80g=1x8") as running:
        yield running


@pytest.fixture
def space(box: Box, request: pytest.FixtureRequest) -> Iterator[Space]:
    """A fresh namespace with its service account, removed afterwards without waiting."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:50]
    kubectl(box, "create", "namespace", name)
    fresh = Space(box, name)
    until(lambda: succeeds(lambda: fresh.kubectl("get", "serviceaccount", "default")), "the default service account")
    yield fresh
    kubectl(box, "delete", "namespace", name, "--wait=false")


# ---- workloads ----


def test_rolling_update_keeps_answering_by_name(space: Space) -> None:
    """A client pod that asks a Service by its DNS name sees the old and then the new text, and no failure."""
    space.apply(web("shop", "old", 2), service("shop"))
    space.kubectl("rollout", "status", "deployment/shop", "--timeout=60s")
    ask = "curl -s -S -m 5 http://shop/ || echo FAILED"
    space.apply(pod("client", f"while true; do {ask}; sleep 0.2; done"))
    space.ready("client")
    until(lambda: "old" in space.kubectl("logs", "client"), "an answer through the Service")
    early = space.kubectl("logs", "client")
    space.apply(web("shop", "new", 2))
    space.kubectl("rollout", "status", "deployment/shop", "--timeout=90s")
    until(lambda: space.kubectl("logs", "client", "--tail=3").split() == ["new"] * 3, "only the new text")
    later = space.kubectl("logs", "client")[len(early) :]
    assert "FAILED" not in later, f"a client saw the roll: {later[:500]}"


def test_crash_loop_backs_off(space: Space) -> None:
    """A container that keeps failing is started again, later each time, and says so."""
    space.apply(pod("crasher", "echo attempt; exit 3"))
    until(lambda: space.container("crasher").get("restartCount", 0) >= 1, "a restart")
    until(
        lambda: space.container("crasher")["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff",
        "CrashLoopBackOff",
    )
    last = space.container("crasher")["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (3, "Error")
    # Only the newest dead container is kept, so the one that the status still names may just have gone.
    until(lambda: space.kubectl("logs", "crasher", "--previous").strip() == "attempt", "the last run's log")


def test_liveness_failure_restarts(space: Space) -> None:
    """A container whose liveness probe fails is killed and started again; its neighbour is left alone."""
    probe = {"exec": {"command": ["test", "-e", "/tmp/well"]}, "periodSeconds": 1, "failureThreshold": 2}
    script = "touch /tmp/well; sleep 3; rm /tmp/well; sleep 1000"
    sick = pod("sick", script, livenessProbe={**probe, "initialDelaySeconds": 1})
    sick["spec"]["containers"].append({"name": "side", "image": TOOLBOX, "command": ["sleep", "1000"]})
    space.apply(sick)
    until(lambda: space.container("sick", 0).get("restartCount", 0) >= 1, "a restart by liveness")
    assert space.container("sick", 1)["restartCount"] == 0
    assert space.container("sick", 0)["lastState"]["terminated"]["exitCode"] == 137


def test_exec_probe_timeout_counts_as_failure(space: Space) -> None:
    """A probe that hangs is cut off and fails: the pod runs but is never Ready."""
    probe = {"exec": {"command": ["sleep", "60"]}, "periodSeconds": 1, "timeoutSeconds": 1}
    space.apply(pod("hanging", "sleep 1000", readinessProbe=probe))
    until(lambda: "timed out" in space.kubectl("get", "events", "-o", "jsonpath={.items[*].message}"), "the event")
    assert not space.container("hanging")["ready"]
    lines = "for line in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $line; echo; done"
    left = space.kubectl("exec", "hanging", "--", "sh", "-c", f"{lines} | grep -c '^sleep 60' || true")
    assert int(left) <= 1, "the probes that timed out still run"


def test_init_containers_run_in_order_before_the_main_one(space: Space) -> None:
    """Init containers run one after another to their end; a native sidecar among them stays."""

    def note(word: str) -> str:
        return f"echo {word} >> /shared/order"

    mounts = [{"name": "shared", "mountPath": "/shared"}]
    step = {"image": TOOLBOX, "volumeMounts": mounts}
    inits = [
        {**step, "name": "one", "command": ["sh", "-c", f"sleep 0.5; {note('one')}"]},
        {**step, "name": "side", "command": ["sh", "-c", f"{note('side')}; sleep 1000"], "restartPolicy": "Always"},
        {**step, "name": "two", "command": ["sh", "-c", note("two")]},
    ]  # fmt: skip
    spec = {"initContainers": inits, "volumes": [{"name": "shared", "emptyDir": {}}]}
    space.apply(once("ordered", "cat /shared/order", spec=spec, volumeMounts=mounts))
    assert space.done("ordered").split() == ["one", "side", "two"]


# ---- files ----


def test_volumes_reach_an_unprivileged_user(space: Space) -> None:
    """ConfigMap, Secret, downward API, token and emptyDir, as the user of the restricted profile and read-only root."""
    space.kubectl("create", "configmap", "settings", "--from-literal=colour=blue")
    space.kubectl("create", "secret", "generic", "key", "--from-literal=password=hunter2")
    sources = [
        {"configMap": {"name": "settings"}},
        {"secret": {"name": "key"}},
        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        {"serviceAccountToken": {"path": "token", "audience": "tests", "expirationSeconds": 600}},
    ]
    volumes = [
        {"name": "all", "projected": {"sources": sources, "defaultMode": 0o400}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "one", "configMap": {"name": "settings"}},
    ]
    mounts = [
        {"name": "all", "mountPath": "/etc/all", "readOnly": True},
        {"name": "scratch", "mountPath": "/scratch"},
        {"name": "one", "mountPath": "/opt/deep/er/colour.txt", "subPath": "colour"},
    ]
    script = """set -e
cd /etc/all; echo $(cat colour) $(cat password) $(cat name) $(id -u) $(id -g); test -s token
test -s /var/run/secrets/kubernetes.io/serviceaccount/token
cat /opt/deep/er/colour.txt; echo
echo kept > /scratch/file; cat /scratch/file
touch /anything 2>/dev/null && echo root-is-writable
touch /etc/all/anything 2>/dev/null && echo volume-is-writable
true"""
    security = {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    user = {"runAsNonRoot": True, "runAsUser": 1234, "runAsGroup": 2345, "fsGroup": 2345}
    spec = {"volumes": volumes, "securityContext": {**user, "seccompProfile": {"type": "RuntimeDefault"}}}
    space.kubectl("label", "namespace", space.name, "pod-security.kubernetes.io/enforce=restricted")
    space.apply(once("reader", script, spec=spec, volumeMounts=mounts, securityContext=security))
    assert space.done("reader").splitlines() == ["blue hunter2 reader 1234 2345", "blue", "kept"]


def test_the_restricted_profile_refuses_root(space: Space) -> None:
    """The API server's Pod Security admission is on, and a numeric user is what it takes to pass the kubelet."""
    space.kubectl("label", "namespace", space.name, "pod-security.kubernetes.io/enforce=restricted")
    with pytest.raises(BoxError, match="violates PodSecurity"):
        space.apply(pod("rooted", "sleep 1"))


def test_run_as_non_root_without_a_user_is_refused_for_a_root_image(space: Space) -> None:
    """The kubelet holds runAsNonRoot against the image's own user: the toolbox is root, a role's image is not."""
    space.apply(pod("rooted", "sleep 100", spec={"securityContext": {"runAsNonRoot": True}}))
    role = once("role", "id -u", spec={"securityContext": {"runAsNonRoot": True}}, image="penstock/router:any")
    space.apply(role)
    assert space.done("role").strip() == "65532"
    until(
        lambda: (
            space.container("rooted").get("state", {}).get("waiting", {}).get("reason") == "CreateContainerConfigError"
        ),
        "CreateContainerConfigError",
    )


def test_config_map_changes_reach_the_running_pod(space: Space) -> None:
    """A mounted ConfigMap follows its object."""
    space.kubectl("create", "configmap", "live", "--from-literal=value=first")
    volumes = [{"name": "live", "configMap": {"name": "live"}}]
    mounts = [{"name": "live", "mountPath": "/live"}]
    space.apply(
        pod(
            "watcher",
            "while true; do cat /live/value; echo; sleep 1; done",
            spec={"volumes": volumes},
            volumeMounts=mounts,
        )
    )
    space.ready("watcher")
    space.kubectl("patch", "configmap", "live", "-p", '{"data":{"value":"second"}}')
    until(lambda: "second" in space.kubectl("logs", "watcher", "--tail=2"), "the new value", 90)


def test_host_files_are_out_of_reach(space: Space) -> None:
    """A container has devices, temporary folders and processes of its own, and sees nobody's home."""
    script = """ls /home | wc -l; ls /proc | grep -c '^[0-9]'; touch /tmp/mine; ls /tmp/mine; echo x > /dev/null
touch /usr/marker 2>&1 | grep -o 'Read-only file system'; (echo 1 > /proc/sys/vm/drop_caches) 2>/dev/null || echo safe
ls /dev/pts; hostname; test -e /dev/vda || echo no disks; chown 5:5 /tmp/mine && echo owned"""
    space.apply(once("private", script))
    lines = space.done("private").splitlines()
    assert lines[0] == "0"
    assert int(lines[1]) <= 5, f"processes of others are visible: {lines[1]}"
    assert lines[2:] == ["/tmp/mine", "Read-only file system", "safe", "ptmx", "private", "no disks", "owned"]


# ---- ends ----


def test_pre_stop_runs_and_grace_is_kept(space: Space) -> None:
    """preStop runs before SIGTERM, the process has its grace to finish, and all of it is in the log."""
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo hook > /proc/1/fd/1; sleep 1"]}}}
    script = "trap 'echo term; sleep 1; echo bye; exit 0' TERM; echo up; while true; do sleep 0.1; done"
    space.apply(pod("polite", script, lifecycle=hook, spec={"terminationGracePeriodSeconds": 20}))
    space.ready("polite")
    lines: list[str] = []
    with following(space, "polite", lines):
        space.kubectl("delete", "pod", "polite", "--timeout=30s")
    assert [line for line in lines if line] == ["up", "hook", "term", "bye"]


def test_a_deaf_process_is_killed_when_its_grace_ends(space: Space) -> None:
    """A process that ignores SIGTERM is gone soon after its grace."""
    space.apply(pod("deaf", "trap '' TERM; while true; do sleep 0.1; done", spec={"terminationGracePeriodSeconds": 2}))
    space.ready("deaf")
    space.kubectl("delete", "pod", "deaf", "--timeout=20s")


@contextmanager
def following(space: Space, name: str, lines: list[str]) -> Iterator[None]:
    """Collect a pod's log into `lines` while the block runs, and until the log ends."""
    command = [*space.command(), "logs", "-f", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout
        reader = threading.Thread(target=lambda: lines.extend(line.strip() for line in output), daemon=True)
        reader.start()
        until(lambda: lines, "the first line of the log")
        yield
        reader.join(20)
        process.kill()


def test_exit_message_and_code_are_told(space: Space) -> None:
    """What a container writes to its termination log, and its exit code, are in the pod's status."""
    space.apply(once("failing", "echo out of luck > /dev/termination-log; exit 42"))
    until(lambda: space.get("pod", "failing")["status"]["phase"] == "Failed", "the end")
    ended = space.container("failing")["state"]["terminated"]
    assert (ended["exitCode"], ended["message"].strip()) == (42, "out of luck")


def test_a_command_that_does_not_exist_is_named(space: Space) -> None:
    """The status says which program could not be found."""
    broken = pod("typo", "")
    broken["spec"]["containers"][0]["command"] = ["pyhton", "-V"]
    space.apply(broken)
    until(lambda: "executable file not found in $PATH" in json.dumps(space.container("typo")), "the reason")


# ---- what cannot be had ----


def test_unknown_image_is_err_image_pull(space: Space) -> None:
    """An image outside the table fails its pull, in a sentence that names what there is."""
    space.apply(pod("stranger", "true", image="docker.io/library/nginx:1.29"))
    reasons = {"ErrImagePull", "ImagePullBackOff"}
    until(
        lambda: space.container("stranger").get("state", {}).get("waiting", {}).get("reason") in reasons, "ErrImagePull"
    )
    events = space.kubectl("get", "events", "-o", "jsonpath={.items[*].message}")
    assert "docker.io/library/nginx:1.29" in events
    assert "penstock/toolbox" in events


def test_gpus_are_counted_and_assigned(space: Space) -> None:
    """Pods get distinct GPUs of the class they ask for; one more than there are stays Pending, until one is free."""
    choice = {"nodeSelector": {"penstock.dev/accelerator": "h100-80g"}}

    def asks(name: str, count: int) -> Object:
        script = "echo $NVIDIA_VISIBLE_DEVICES; sleep 1000"
        return pod(name, script, spec=choice, resources={"limits": {"nvidia.com/gpu": count}})

    space.apply(asks("first", 6), asks("second", 2))
    space.ready("first", "second")
    until(lambda: space.kubectl("logs", "first").strip() and space.kubectl("logs", "second").strip(), "both logs")
    given = [space.kubectl("logs", name).strip().split(",") for name in ("first", "second")]
    assert sorted(int(gpu) for gpus in given for gpu in gpus) == list(range(8))
    space.apply(asks("third", 1))
    until(lambda: "Insufficient nvidia.com/gpu" in json.dumps(space.get("pod", "third")["status"]), "the reason")
    assert space.get("pod", "third")["status"]["phase"] == "Pending"
    space.kubectl("delete", "pod", "second")
    space.ready("third")


# ---- kubectl ----


def test_exec_carries_input_output_and_exit_code(space: Space) -> None:
    """exec: output, input, the user of the container, the exit code; cp goes both ways."""
    space.apply(pod("target", "sleep 1000", spec={"securityContext": {"runAsUser": 4242}}))
    space.ready("target")
    assert space.kubectl("exec", "target", "--", "id", "-u").strip() == "4242"
    payload = "".join(f"line {number}\n" for number in range(20_000))
    assert space.kubectl("exec", "-i", "target", "--", "cat", stdin=payload) == payload
    with pytest.raises(BoxError, match="exit code 7"):
        space.kubectl("exec", "target", "--", "sh", "-c", "exit 7")
    with pytest.raises(BoxError, match="executable file not found"):
        space.kubectl("exec", "target", "--", "no-such-program")


def test_port_forward_reaches_a_loopback_listener(space: Space) -> None:
    """port-forward ends inside the pod, where a server that listens on loopback alone can be reached."""
    space.apply(pod("inner", "cd /tmp && echo inside > index.html && exec python -m http.server 9000 --bind 127.0.0.1"))
    space.ready("inner")
    command = [*space.command(), "port-forward", "pod/inner", ":9000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().split(":")[1].split()[0]
        texts: list[str] = []

        def answered() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
                    texts.append(response.read().decode().strip())
            except OSError:
                return False
            return True

        until(answered, "an answer through the forwarded port")
        process.kill()
    assert texts == ["inside"]


def test_containers_of_a_pod_share_its_network(space: Space) -> None:
    """Two containers meet on loopback, see one host name, and each its own processes unless told to share."""
    both = pod("pair", "cd /tmp && exec python -m http.server 7000", spec={"shareProcessNamespace": True})
    wait = "until curl -s -m 2 http://127.0.0.1:7000/ >/dev/null; do sleep 0.2; done"
    script = f"{wait}; hostname; cat /proc/[0-9]*/comm | grep -c python"
    both["spec"]["containers"].append(
        {"name": "peer", "image": TOOLBOX, "command": ["sh", "-c", f"{script}; sleep 1000"]}
    )
    space.apply(both)
    space.ready("pair")
    until(lambda: len(space.kubectl("logs", "pair", "-c", "peer").split()) == 2, "the peer's report")
    assert space.kubectl("logs", "pair", "-c", "peer").split() == ["pair", "1"]


def test_a_pod_reaches_the_api_server_with_its_token(space: Space) -> None:
    """The in-cluster configuration works: address, authority and token lead to an answer that knows who asks."""
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    script = f"""python - <<'END'
import json, ssl, urllib.request
context = ssl.create_default_context(cafile="{account}/ca.crt")
body = json.dumps({{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}}).encode()
url = "https://kubernetes.default.svc/apis/authentication.k8s.io/v1/selfsubjectreviews"
request = urllib.request.Request(url, body)
request.add_header("Authorization", "Bearer " + open("{account}/token").read())
request.add_header("Content-Type", "application/json")
print(json.load(urllib.request.urlopen(request, context=context, timeout=10))["status"]["userInfo"]["username"])
END"""
    space.apply(once("asker", script))
    assert space.done("asker").strip() == f"system:serviceaccount:{space.name}:default"


# ---- nodes ----


def test_a_lost_node_is_noticed_and_its_pods_replaced(space: Space) -> None:
    """Kubelet, runtime and pods of a node vanish together: the node turns NotReady, a Deployment recovers elsewhere."""
    on_a100 = "a100-80g-0"
    space.apply(web("survivor", "alive", 2))
    space.kubectl("rollout", "status", "deployment/survivor", "--timeout=60s")
    try:
        space.box.kill_node(on_a100)
        until(lambda: _node_ready(space, on_a100) != "True", "NotReady", 60)
        # Tolerations of 30 s pass, then the pods are replaced on the node that is left.
        until(lambda: _ready_elsewhere(space, "survivor", on_a100) == 2, "two replicas elsewhere", 90)
    finally:
        space.box.start_node(on_a100)
    until(lambda: _node_ready(space, on_a100) == "True", "the node's return", 60)
    space.apply(once("again", "echo back", spec={"nodeSelector": {"kubernetes.io/hostname": on_a100}}))
    assert space.done("again").strip() == "back"
    until(lambda: _gpus(space, on_a100) == "8", "its GPUs")


def _node_ready(space: Space, node: str) -> str:
    conditions = space.get("node", node)["status"]["conditions"]
    return next(str(c["status"]) for c in conditions if c["type"] == "Ready")


def _gpus(space: Space, node: str) -> str:
    return str(space.get("node", node)["status"]["allocatable"].get("nvidia.com/gpu"))


def _ready_elsewhere(space: Space, app: str, lost: str) -> int:
    pods = space.get("pods", "-l", f"app={app}")["items"]
    return sum(
        item["spec"].get("nodeName") != lost
        and any(c["type"] == "Ready" and c["status"] == "True" for c in item["status"].get("conditions", ()))
        for item in pods
    )
