"""A whole box: names and Services work from pods, what dies comes back, and nothing stays behind."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from penstock.box.errors import BoxError
from penstock.box.lifecycle import Box, find_box, stop_box
from penstock.box.testing import kubectl, temporary_box, why_no_box

pytestmark = pytest.mark.box

_SERVER = (
    "import http.server,socket\n"
    "class H(http.server.BaseHTTPRequestHandler):\n"
    "  def do_GET(s):\n"
    "    b=socket.gethostname().encode(); s.send_response(200); s.send_header('content-length',str(len(b)))\n"
    "    s.end_headers(); s.wfile.write(b)\n"
    "  def log_message(*a): pass\n"
    "http.server.ThreadingHTTPServer(('0.0.0.0',8000),H).serve_forever()"
)


def _container(*command: str) -> dict[str, object]:
    return {"name": "c", "image": "penstock/toolbox", "command": list(command)}


def _web() -> list[dict[str, object]]:
    container = _container("python", "-c", _SERVER) | {
        "ports": [{"name": "http", "containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
    }
    labels = {"app": "web"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web"},
            "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": labels, "ports": ports},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "headless"},
            "spec": {"clusterIP": "None", "selector": labels, "ports": ports},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "nobody"},
            "spec": {"selector": {"app": "nobody"}, "ports": ports},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "client"},
            "spec": {"containers": [_container("sleep", "3600")], "terminationGracePeriodSeconds": 0},
        },
    ]


@pytest.fixture(scope="module")
def web(box: Box) -> Iterator[Box]:
    """Two web pods behind Services, and a pod to ask from, in the namespace `net`."""
    kubectl(box, "create", "namespace", "net")
    _await(lambda: "default" in kubectl(box, "get", "serviceaccounts", "-n", "net", "-o", "name"), "a service account")
    kubectl(
        box, "apply", "-n", "net", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": _web()})
    )
    kubectl(box, "rollout", "status", "deployment/web", "-n", "net", "--timeout=90s", timeout=100)
    kubectl(box, "wait", "pod/client", "-n", "net", "--for=condition=Ready", "--timeout=60s", timeout=70)
    yield box
    kubectl(box, "delete", "namespace", "net", "--wait=false")


def _await(check: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:.0f} s"
        time.sleep(0.3)


def _in_client(box: Box, script: str) -> str:
    return kubectl(box, "exec", "client", "-n", "net", "--", "sh", "-c", script)


def _answers(box: Box, url: str, times: int = 6) -> list[str]:
    return _in_client(box, f"for i in $(seq {times}); do curl -sS -m 5 {url}; echo; done").split()


def _pods(box: Box) -> set[str]:
    names = kubectl(box, "get", "pods", "-n", "net", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}")
    return set(names.split())


@pytest.mark.parametrize("name", ["web", "web.net", "web.net.svc", "web.net.svc.cluster.local"])
def test_a_service_answers_by_each_of_its_names(web: Box, name: str) -> None:
    # Before the rollout's last EndpointSlice is seen only one pod may answer; then both take turns.
    _await(lambda: set(_answers(web, name)) == _pods(web), "an answer of each pod", seconds=15)


def test_a_headless_service_names_its_pods(web: Box) -> None:
    found = _in_client(web, "getent ahostsv4 headless.net.svc.cluster.local | cut -d' ' -f1 | sort -u").split()
    pods = kubectl(web, "get", "pods", "-n", "net", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}").split()
    assert found == sorted(pods)


def test_a_service_without_endpoints_refuses_at_once(web: Box) -> None:
    with pytest.raises(BoxError, match="code 7"):
        _in_client(web, "curl -sS -m 5 nobody")


def test_a_pod_reaches_the_api_server_with_its_own_account(web: Box) -> None:
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    said = _in_client(
        web,
        f'curl -sS -m 5 --cacert {folder}/ca.crt -H "Authorization: Bearer $(cat {folder}/token)" '
        "https://kubernetes.default.svc/api/v1/namespaces/net/secrets",
    )
    # Known by name, and without rights: authentication and RBAC both work.
    assert "system:serviceaccount:net:default" in said
    assert json.loads(said)["code"] == 403


def test_the_cluster_dns_stands_where_users_look_for_it(web: Box) -> None:
    assert (
        kubectl(web, "get", "service/kube-dns", "-n", "kube-system", "-o", "jsonpath={.spec.clusterIP}") == "10.96.0.10"
    )
    assert _in_client(web, "getent hosts kubernetes.default | cut -d' ' -f1").strip() == "10.96.0.1"


def test_a_kubelet_reaches_no_node_but_its_own(web: Box) -> None:
    kubeconfig = web.paths.root / "kubeconfigs" / "h100-80g-0"
    inner = kubeconfig.read_text().replace("https://127.0.0.1:6443", web.api_url)
    stolen = web.paths.root / "stolen"
    stolen.write_text(inner)
    patch = (f"--kubeconfig={stolen}", "patch", "node", "--type=merge", '-p={"metadata":{"labels":{"mine":"yes"}}}')
    with pytest.raises(BoxError, match="only its own Node object"):
        kubectl(web, *patch, "a100-80g-0")
    kubectl(web, *patch, "h100-80g-0")


def test_a_killed_api_server_comes_back_and_services_did_not_notice(web: Box) -> None:
    before = _pods(web)
    web.kill_component("kube-apiserver")
    with web.kube() as kube:
        _await(lambda: kube.ok("/readyz"), "the API server")
    _await(lambda: set(_answers(web, "web")) == before, "an answer of each pod", seconds=30)
    restarts = {process["name"]: process["restarts"] for process in web.processes()}
    assert restarts["kube-apiserver"] >= 1
    assert restarts["etcd"] == 0


@pytest.mark.parametrize("component", ["etcd", "service-proxy", "kube-controller-manager", "kube-scheduler"])
def test_every_component_comes_back(web: Box, component: str) -> None:
    def state() -> tuple[str, int]:
        process = next(p for p in web.processes() if p["name"] == component)
        return process["state"], process["restarts"]

    restarts = state()[1]
    web.kill_component(component)
    _await(lambda: state() == ("Running", restarts + 1), f"{component} again")
    with web.kube() as kube:
        _await(lambda: kube.ok("/readyz"), "the API server")
    _await(lambda: len(set(_answers(web, "web"))) == 2, "an answer of each pod", seconds=30)


def test_an_unknown_name_on_the_control_channel_says_what_there_is(box: Box) -> None:
    with pytest.raises(BoxError, match="there are a100-80g-0, h100-80g-0"):
        box.kill_node("nowhere")
    with pytest.raises(BoxError, match="kube-apiserver"):
        box.kill_component("nothing")


def _processes_of(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def test_a_lost_node_is_lost_whole_and_comes_back(box: Box) -> None:
    node = "a100-80g-0"
    spec = box.paths.root / "nodes" / node
    assert any("kubelet" in line for line in _processes_of(spec))
    box.kill_node(node)
    # Its first process is dead; the kernel then ends the rest of its namespace, which takes a moment on a busy machine.
    _await(lambda: not _processes_of(spec), "ended whole", seconds=10)
    assert next(p for p in box.processes() if p["name"] == f"node-{node}")["state"] == "Held"
    with box.kube() as kube:
        _await(lambda: node not in kube.ready_nodes(), "NotReady", seconds=60)
        box.start_node(node)
        _await(lambda: node in kube.ready_nodes(), "Ready")


def test_down_leaves_nothing() -> None:
    if reason := why_no_box():
        pytest.skip(reason)
    mounts, devices = Path("/proc/self/mounts").read_text(), sorted(Path("/dev").iterdir())
    with temporary_box("cpu=1x0") as box:
        root, ports = box.paths.root, (box.settings.api_port, box.settings.gateway_port)
        assert _processes_of(root)
        assert find_box("test") is not None
        kubectl(box, "run", "sleeper", "--image=penstock/toolbox", "--", "sleep", "3600")
        assert stop_box("test")
        assert find_box("test") is None
        assert _processes_of(root) == []
        assert not root.exists()
        for port in ports:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=5)
        assert not stop_box("test")
    assert Path("/proc/self/mounts").read_text() == mounts
    assert sorted(Path("/dev").iterdir()) == devices
