"""The operator as a process, with exactly the rights the chart gives it, against a real API server and controllers.

There is no kubelet: a thread of ours marks pods ready.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from penstock.box import components
from penstock.box.binaries import API_PROGRAMS, find_programs
from penstock.box.kubeconfig import write_kubeconfig
from penstock.box.standalone import StandaloneControlPlane, free_port, standalone_control_plane

pytestmark = pytest.mark.control_plane

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts" / "penstock"
SYSTEM = "penstock-system"
RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
SIDECAR = "penstock/sidecar:1"
POOL = "llama-serve-a100-80g"


class Cluster:
    """kubectl against the API server, in one namespace."""

    def __init__(self, plane: StandaloneControlPlane, namespace: str) -> None:
        self.plane = plane
        self.namespace = namespace

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(self.plane.kubectl), f"--kubeconfig={self.plane.kubeconfig}", f"-n={self.namespace}", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)

    def must(self, *arguments: str, stdin: str | None = None) -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        self.must("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        done = self.run("get", kind, name, "-o", "json")
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def all(self, kind: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(self.must("get", kind, "-o", "json"))["items"]
        return items

    def patch(self, kind: str, name: str, spec: dict[str, Any]) -> None:
        self.must("patch", kind, name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def condition(self, of: str, name: str = "llama") -> dict[str, Any]:
        conditions = self.get("mdep", name).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == of), {})

    def workers(self, name: str = "llama") -> str:
        return str(self.get("mdep", name).get("status", {}).get("workers", ""))

    def replicas(self) -> dict[str, int]:
        return {r["metadata"]["name"]: r["spec"]["replicas"] for r in self.all("rs")}


def eventually(check: Callable[[], Any], what: str, seconds: float = 40.0) -> Any:
    """Wait for a truthy answer; the limit is generous because it is not what is tested."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = check()
        if answer:
            return answer
        time.sleep(0.2)
    raise AssertionError(f"never: {what}")


def deployment(name: str = "llama", **spec: Any) -> dict[str, Any]:
    base = {
        "model": {"name": f"served-{name}", "architecture": {"name": "meta-llama/Llama-3.1-8B-Instruct"}},
        "objectives": {"ttft": "1s", "tpot": "50ms"},
        "pools": [{"name": "serve", "acceleratorClasses": ["a100-80g"], "replicas": {"min": 2, "max": 4}}],
    }
    metadata = {"name": name}
    return {"apiVersion": "penstock.dev/v1alpha1", "kind": "ModelDeployment", "metadata": metadata, "spec": base | spec}


class Kubelet(threading.Thread):
    """Marks pods ready, all namespaces; `paused` leaves new ones pending."""

    def __init__(self, plane: StandaloneControlPlane) -> None:
        super().__init__(daemon=True)
        self._plane = plane
        self.paused = threading.Event()
        self.stopped = threading.Event()

    def run(self) -> None:
        kubectl = [str(self._plane.kubectl), f"--kubeconfig={self._plane.kubeconfig}"]
        status = {"phase": "Running", "conditions": [{"type": t, "status": "True"} for t in ("PodScheduled", "Ready")]}
        while not self.stopped.wait(0.3):
            if self.paused.is_set():
                continue
            listed = subprocess.run([*kubectl, "get", "pods", "-A", "-o", "json"], capture_output=True, check=False)
            for pod in json.loads(listed.stdout or b'{"items":[]}')["items"]:
                if pod["status"].get("phase") == "Running" or "deletionTimestamp" in pod["metadata"]:
                    continue
                where = ["-n", pod["metadata"]["namespace"], "patch", "pod", pod["metadata"]["name"]]
                patch = ["--subresource=status", "--type=merge", "-p", json.dumps({"status": status})]
                subprocess.run([*kubectl, *where, *patch], capture_output=True, check=False)


class Operator:
    """One operator process."""

    def __init__(self, kubeconfig: Path, log: Path, *flags: str) -> None:
        self.health = free_port()
        ports = [f"--health-port={self.health}", f"--metrics-port={free_port()}", f"--namespace={SYSTEM}"]
        self._log = log.open("ab")
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "penstock.operator", *ports, *flags],
            env={**os.environ, "KUBECONFIG": str(kubeconfig)},
            stdout=self._log,
            stderr=self._log,
        )

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(20)
        self._log.close()
        return code


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandaloneControlPlane]:
    """An API server of our own with the chart's definitions, rights and classes, and Kubernetes' own controllers."""
    needed = API_PROGRAMS | {"kube-controller-manager", "helm"}
    programs = find_programs(needed)
    if programs is None:
        pytest.skip("the Kubernetes programs or helm are not in the cache: run `penstock binaries`")
    with standalone_control_plane(programs.folder_of(API_PROGRAMS), tmp_path_factory.mktemp("operator")) as running:
        cluster = Cluster(running, SYSTEM)
        cluster.must("create", "namespace", SYSTEM)
        install(cluster, programs.path("helm"))
        with controllers(running):
            kubelet = Kubelet(running)
            kubelet.start()
            yield running
            kubelet.stopped.set()


def install(cluster: Cluster, helm: Path) -> None:
    """What the chart renders for the operator: definitions, rights, classes; not the Deployments."""
    values = ["--set", "engines.default=simulated", "--include-crds", "--no-hooks", "--kube-version=1.34.0"]
    command = [str(helm), "template", "penstock", str(CHART), f"--namespace={SYSTEM}", *values]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    objects = [each for each in yaml.safe_load_all(text) if each]
    cluster.apply(*[each for each in objects if each["kind"] in (*RIGHTS, "CustomResourceDefinition")])
    cluster.must("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    cluster.apply(*[each for each in objects if each["kind"] in ("EngineClass", "AcceleratorClass")])


@contextmanager
def controllers(running: StandaloneControlPlane) -> Iterator[None]:
    """The real kube-controller-manager: ReplicaSets make pods, the garbage collector follows owners."""
    port = int(running.url.rsplit(":", 1)[1])
    programs = running.kubectl.parent
    described = components.ControlPlane(programs, running.pki, running.logs, "127.0.0.1", port, 0, 0)
    pki, path = running.pki, running.logs / "controllers.kubeconfig"
    kubeconfig = write_kubeconfig(path, running.url, pki.ca_pem, pki.controller_manager)
    command = [*components.kube_controller_manager(described, kubeconfig), f"--secure-port={free_port()}"]
    with (running.logs / "controllers.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def rights(plane: StandaloneControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig that is the chart's service account of the operator, and no more."""
    token = Cluster(plane, SYSTEM).must("create", "token", "penstock-operator", "--duration=2h").strip()
    config = yaml.safe_load(plane.kubeconfig.read_text())
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    path = tmp_path_factory.mktemp("rights") / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the test's operators write."""
    return tmp_path / "operator.log"


@pytest.fixture
def operator(rights: Path, log: Path) -> Iterator[Operator]:
    """A running operator that ends cleanly and was never refused anything."""
    running = Operator(rights, log, f"--sidecar-image={SIDECAR}")
    yield running
    if running.process.poll() is None:
        assert running.end() == 0
    text = log.read_text()
    assert "Forbidden" not in text and "Traceback" not in text, text


@pytest.fixture
def cluster(plane: StandaloneControlPlane, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A namespace of its own for each test; its deployments are gone afterwards, for names are unique cluster-wide."""
    made = Cluster(plane, request.node.name.replace("test_", "").replace("_", "-")[:60].strip("-"))
    made.must("create", "namespace", made.namespace)
    yield made
    made.must("delete", "mdep", "--all", "--wait=true", "--timeout=30s")


def running_deployment(cluster: Cluster, workers: str = "2/2", **spec: Any) -> None:
    cluster.apply(deployment(**spec))
    eventually(lambda: cluster.workers() == workers, f"{workers} workers")


def test_a_deployment_becomes_pools_sets_pods_and_a_status(cluster: Cluster, operator: Operator) -> None:
    running_deployment(cluster)
    stored = cluster.get("mdep", "llama")
    assert stored["status"]["observedGeneration"] == stored["metadata"]["generation"]
    assert cluster.condition("Available")["status"] == "True"
    assert cluster.condition("ProfileReady")["status"] == "True"
    assert cluster.condition("Ready")["reason"] == "RouterUnknown"
    assert "2 of 2 workers ready on a100-80g" in stored["status"]["message"]
    pool = cluster.get("wpool", POOL)
    assert pool["spec"]["replicas"] == 2 and pool["status"]["readyReplicas"] == 2
    (replica_set,) = cluster.all("rs")
    assert replica_set["metadata"]["name"] == f"{POOL}-{pool['spec']['revision']}"
    assert cluster.get("configmap", "llama-drain")["data"]["drain.py"]
    for pod in cluster.all("pods"):
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["metadata"]["labels"]["penstock.dev/revision"] == pool["spec"]["revision"]


def test_prefill_and_decode_pools_run_and_a_change_of_kv_compatibility_rolls_both(
    cluster: Cluster, operator: Operator
) -> None:
    sides = [
        {"name": "p", "role": "Prefill", "acceleratorClasses": ["h100-80g"], "replicas": {"min": 1, "max": 2}},
        {"name": "d", "role": "Decode", "acceleratorClasses": ["a100-80g"], "replicas": {"min": 2, "max": 4}},
    ]
    running_deployment(cluster, workers="3/3", disaggregation="Always", pools=sides)
    assert cluster.condition("Accepted")["status"] == "True"
    pools = {pool["spec"]["role"]: pool["spec"] for pool in cluster.all("wpool")}
    assert set(pools) == {"Prefill", "Decode"} and pools["Prefill"]["kvHash"] == pools["Decode"]["kvHash"]
    old = pods_by_hash(cluster)
    assert list(old) == [pools["Prefill"]["kvHash"]]
    (service,) = prefill_services(cluster)
    for pod in cluster.all("pods"):
        is_decode = pod["metadata"]["labels"]["penstock.dev/role"] == "Decode"
        assert [c["image"] for c in pod["spec"].get("initContainers", [])] == [SIDECAR] * is_decode
        chosen = service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        assert chosen is not is_decode
    cluster.patch("mdep", "llama", {"engine": {"args": ["--block-size", "32"]}})

    def rolled() -> bool:
        now = pods_by_hash(cluster)
        assert any({"Prefill", "Decode"} <= roles for roles in now.values()), f"no pair left: {now}"
        return len(now) == 1 and now != old and cluster.workers() == "3/3"

    eventually(rolled, "both sides of the new hash only")
    eventually(lambda: len(prefill_services(cluster)) == 2, "a Service for each hash that has a ReplicaSet")
    cluster.must("delete", "mdep", "llama", "--wait=true", "--timeout=30s")
    eventually(lambda: not prefill_services(cluster), "Services go with their ReplicaSets")


def prefill_services(cluster: Cluster) -> list[Any]:
    """The headless Services by which sidecars know prefill workers."""
    return [s for s in cluster.all("services") if s["metadata"]["name"].startswith("prefill-")]


def pods_by_hash(cluster: Cluster) -> dict[str, set[str]]:
    """Roles of the ready pods that stay, by KV hash."""
    found: dict[str, set[str]] = {}
    for pod in cluster.all("pods"):
        conditions = pod["status"].get("conditions", [])
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        if ready and "deletionTimestamp" not in pod["metadata"]:
            hash_ = pod["metadata"]["annotations"]["penstock.dev/kv-hash"]
            found.setdefault(hash_, set()).add(pod["metadata"]["labels"]["penstock.dev/role"])
    return found


def test_nothing_is_marked_and_nothing_blocks(cluster: Cluster, operator: Operator) -> None:
    running_deployment(cluster)
    for kind in ("mdep", "wpool", "rs", "configmap"):
        for stored in cluster.all(kind):
            assert "finalizers" not in stored["metadata"], kind
    listed = cluster.must("get", "mdep", "llama", "-o", "json", "--show-managed-fields")
    metadata = json.loads(listed)["metadata"]
    assert "annotations" not in metadata
    writers = {entry["manager"] for entry in metadata["managedFields"] if entry.get("subresource") != "status"}
    assert writers == {"kubectl"}, "the operator wrote a user's object"
    fields = json.loads(cluster.must("get", "wpool", POOL, "-o", "json", "--show-managed-fields"))["metadata"]
    owners = [e["manager"] for e in fields["managedFields"] if "f:replicas" in e["fieldsV1"].get("f:spec", {})]
    assert owners == ["penstock-initial"]


def test_wrong_engine_class_is_said_and_mended(cluster: Cluster, operator: Operator) -> None:
    cluster.apply(deployment(engine={"className": "simulatd"}))
    refused = eventually(lambda: cluster.condition("Accepted"), "a verdict")
    assert (refused["status"], refused["reason"]) == ("False", "UnknownEngineClass")
    assert "did you mean 'simulated'?" in refused["message"]
    assert cluster.all("wpool") == []
    cluster.patch("mdep", "llama", {"engine": {"className": "simulated"}})
    eventually(lambda: cluster.workers() == "2/2", "workers after the class was mended")


def test_a_class_that_appears_later_mends_a_deployment(cluster: Cluster, operator: Operator) -> None:
    pools = [{"name": "serve", "acceleratorClasses": ["late-gpu"], "replicas": {"min": 1}}]
    cluster.apply(deployment(pools=pools))
    eventually(lambda: cluster.condition("Accepted").get("reason") == "UnknownAcceleratorClass", "the refusal")
    spec = {"resourceName": "nvidia.com/gpu", "memory": "80Gi", "memoryBandwidth": "2T", "flops": {"bf16": "300T"}}
    metadata = {"name": "late-gpu"}
    kind = {"apiVersion": "penstock.dev/v1alpha1", "kind": "AcceleratorClass"}
    cluster.apply({**kind, "metadata": metadata, "spec": spec})
    eventually(lambda: cluster.workers() == "1/1", "a worker on the new class")


def test_a_model_too_large_is_refused_with_what_would_fit(cluster: Cluster, operator: Operator) -> None:
    cluster.apply(deployment(model={"name": "meta-llama/Llama-3.1-70B-Instruct"}))
    refused = eventually(lambda: cluster.condition("Accepted"), "a verdict")
    assert refused["reason"] == "ModelDoesNotFit"
    assert "use tensor:" in refused["message"]


def test_a_pod_the_server_refuses_is_said_in_its_words(cluster: Cluster, operator: Operator) -> None:
    running_deployment(cluster)
    revision = cluster.get("wpool", POOL)["spec"]["revision"]
    cluster.patch("mdep", "llama", {"podTemplate": {"spec": {"tolerations": [{"operator": "Sometimes"}]}}})
    eventually(lambda: cluster.condition("Accepted").get("reason") == "InvalidPodTemplate", "the refusal")
    assert "tolerations" in cluster.condition("Accepted")["message"]
    assert cluster.get("wpool", POOL)["spec"]["revision"] == revision
    cluster.must("patch", "mdep", "llama", "--type=json", "-p", '[{"op": "remove", "path": "/spec/podTemplate"}]')
    eventually(lambda: cluster.condition("Accepted").get("status") == "True", "acceptance after mending")


def test_what_is_taken_out_of_the_pod_template_is_gone(cluster: Cluster, operator: Operator) -> None:
    running_deployment(cluster)
    before = cluster.get("wpool", POOL)["spec"]
    extra = {"metadata": {"annotations": {"team": "chat"}}, "spec": {"tolerations": [{"key": "spot"}]}}
    cluster.patch("mdep", "llama", {"podTemplate": extra})
    eventually(lambda: "spot" in str(cluster.get("wpool", POOL)["spec"]["template"]), "the toleration")
    cluster.must("patch", "mdep", "llama", "--type=json", "-p", '[{"op": "remove", "path": "/spec/podTemplate"}]')
    eventually(lambda: cluster.get("wpool", POOL)["spec"]["revision"] == before["revision"], "the old revision")
    assert cluster.get("wpool", POOL)["spec"]["template"] == before["template"]
    eventually(lambda: sorted(cluster.replicas().values()) == [0, 2], "the roll back")


def test_scale_within_bounds_survives_a_killed_operator(cluster: Cluster, rights: Path, log: Path) -> None:
    first = Operator(rights, log, "--no-leader-election")
    try:
        running_deployment(cluster)
        beyond = cluster.run("scale", "wpool", POOL, "--replicas=5")
        assert beyond.returncode != 0 and "5 is outside 2..4" in beyond.stderr
        cluster.must("scale", "wpool", POOL, "--replicas=3")
        eventually(lambda: cluster.workers() == "3/3", "the scaled number")
    finally:
        first.end(signal.SIGKILL)
    second = Operator(rights, log, "--no-leader-election")
    try:
        cluster.patch("mdep", "llama", {"rollout": {"maxSurge": 2}})
        generation = cluster.get("mdep", "llama")["metadata"]["generation"]
        seen = lambda: cluster.get("mdep", "llama")["status"]["observedGeneration"]  # noqa: E731
        eventually(lambda: seen() == generation, "the new operator at work")
        assert cluster.get("wpool", POOL)["spec"]["replicas"] == 3
        assert list(cluster.replicas().values()) == [3]
        pools = [{"name": "serve", "role": "PrefillDecode", "acceleratorClasses": ["a100-80g"]}]
        cluster.patch("mdep", "llama", {"pools": [pools[0] | {"replicas": {"min": 1, "max": 2}}]})
        eventually(lambda: cluster.workers() == "2/2", "scaled down to the lowered maximum")
        assert cluster.get("wpool", POOL)["spec"]["maxReplicas"] == 2
    finally:
        assert second.end() == 0


def test_a_roll_without_surge_waits_for_the_old_pod_object(cluster: Cluster, operator: Operator) -> None:
    """Pods are bound to a node without a kubelet: deleted, they stay until they are removed by force."""
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "no-kubelet"}})
    running_deployment(cluster, rollout={"maxSurge": 0, "maxUnavailable": 1})
    old = next(iter(cluster.replicas()))
    for pod in cluster.all("pods"):
        bind(cluster, pod["metadata"]["name"])
    cluster.patch("mdep", "llama", {"engine": {"args": ["--max-num-seqs=64"]}})
    ending = eventually(lambda: leaving(cluster), "an old pod ends")
    new = eventually(lambda: next((name for name in cluster.replicas() if name != old), ""), "a new ReplicaSet")
    time.sleep(2.0)  # time enough for an operator that does not wait
    assert cluster.replicas()[new] == 0, "the successor was asked for while the old pod held its accelerators"
    assert len(cluster.all("pods")) == 2
    most = 2
    while cluster.replicas()[old] or ending:
        for pod in ending:
            cluster.must("delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0")
        time.sleep(0.5)
        most = max(most, len(cluster.all("pods")))
        ending = leaving(cluster)
    eventually(lambda: cluster.replicas() == {old: 0, new: 2} and cluster.workers() == "2/2", "the end of the roll")
    assert most == 2, "two workers held one worker's accelerators"
    cluster.must("delete", "node", "no-kubelet")


def leaving(cluster: Cluster) -> list[dict[str, Any]]:
    return [pod for pod in cluster.all("pods") if "deletionTimestamp" in pod["metadata"]]


def bind(cluster: Cluster, pod: str) -> None:
    target = {"apiVersion": "v1", "kind": "Node", "name": "no-kubelet"}
    body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target}
    path = f"/api/v1/namespaces/{cluster.namespace}/pods/{pod}/binding"
    cluster.must("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


def test_a_standby_takes_over_when_the_leader_is_killed(cluster: Cluster, rights: Path, log: Path) -> None:
    leader = Operator(rights, log)
    running_deployment(cluster)
    standby = Operator(rights, log)
    try:
        eventually(lambda: log.read_text().count("the cluster is known") == 2, "the standby is warm")
        leader.end(signal.SIGKILL)
        cluster.must("scale", "wpool", POOL, "--replicas=3")
        eventually(lambda: cluster.workers() == "3/3", "the standby at work")
        assert log.read_text().count('"leading as') == 2
    finally:
        assert standby.end() == 0
    assert json.loads(Cluster(cluster.plane, SYSTEM).must("get", "lease", "penstock-operator", "-o", "json"))["spec"][
        "holderIdentity"
    ] in ("", None), "a clean end must release the lease"


def test_deleting_leaves_nothing(cluster: Cluster, operator: Operator) -> None:
    running_deployment(cluster)
    cluster.must("delete", "mdep", "llama", "--wait=true", "--timeout=20s")
    left = "wpool,rs,pods,configmap"

    def gone() -> bool:
        items = json.loads(cluster.must("get", left, "-o", "json"))["items"]
        return not [each for each in items if each["metadata"]["name"].startswith("llama")]

    eventually(gone, "everything owned is collected")


def test_events_tell_the_story_once(cluster: Cluster, operator: Operator) -> None:
    running_deployment(cluster)
    told = eventually(
        lambda: [e for e in cluster.all("events") if e["involvedObject"]["kind"] == "ModelDeployment"], "events"
    )
    eventually(lambda: "WorkersReady" in cluster.must("describe", "mdep", "llama"), "the last event")
    reasons = [e["reason"] for e in told]
    assert reasons.count("WorkerPoolApplied") == 1 and reasons.count("Accepted") == 1
