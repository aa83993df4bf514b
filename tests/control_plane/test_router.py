"""The router against a real API server: pods come into rotation, leave it, and the condition says so."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from penstock.box.binaries import API_PROGRAMS, find_programs
from penstock.box.standalone import StandaloneControlPlane, free_port, standalone_control_plane

pytestmark = pytest.mark.control_plane

CRDS = Path(__file__).parents[2] / "crds"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
BODY = json.dumps({"model": MODEL, "prompt": "x"})


@dataclass
class Cluster:
    """kubectl on one namespace."""

    plane: StandaloneControlPlane
    namespace: str

    def kubectl(self, *arguments: str, stdin: object = None) -> str:
        """Run kubectl; fails the test when kubectl fails."""
        command = [str(self.plane.kubectl), f"--kubeconfig={self.plane.kubeconfig}", "-n", self.namespace, *arguments]
        given = json.dumps(stdin) if stdin is not None else None
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, item: object) -> None:
        """Create or change an object."""
        self.kubectl("apply", "-f", "-", stdin=item)

    def status(self, kind: str, name: str, status: object) -> None:
        """Write an object's status, as its controller would."""
        patch = json.dumps({"status": status})
        self.kubectl("patch", kind, name, "--subresource=status", "--type=merge", "-p", patch)

    def pod(self, name: str, port: int, *, ready: bool = True, deployment: str = "llama") -> None:
        """A worker's pod at a port of this machine."""
        engine = {"name": "engine", "image": "x", "ports": [{"name": "http", "containerPort": port}]}
        labels = {
            "penstock.dev/deployment": deployment,
            "penstock.dev/pool": "serve",
            "penstock.dev/role": "PrefillDecode",
        }
        metadata = {"name": name, "labels": labels, "annotations": {"penstock.dev/model": MODEL}}
        spec = {"containers": [engine], "automountServiceAccountToken": False, "nodeName": "nowhere"}
        self.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        self.ready(name, ready)

    def ready(self, name: str, ready: bool) -> None:
        """What the pod's kubelet would say."""
        conditions = [{"type": "Ready", "status": str(ready)}]
        running = {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}], "conditions": conditions}
        self.status("pod", name, running)

    def condition(self, kind: str = "RouterReady", name: str = "llama") -> dict[str, Any]:
        """A condition of the deployment, empty when it has none."""
        item = json.loads(self.kubectl("get", "mdep", name, "-o", "json"))
        found = [c for c in item.get("status", {}).get("conditions", []) if c["type"] == kind]
        return found[0] if found else {}


def deployment(policy: str = "RoundRobin") -> dict[str, Any]:
    """A ModelDeployment of the model."""
    spec = {
        "model": {"name": MODEL, "source": {"uri": f"hf://{MODEL}"}},
        "objectives": {"ttft": "500ms", "tpot": "40ms"},
        "routing": {"policy": policy},
    }
    return {
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "llama"},
        "spec": spec,
    }


ACCEPTED = [
    {
        "type": "Accepted",
        "status": "True",
        "reason": "Accepted",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "observedGeneration": 1,
    }
]


async def eventually(check: Callable[[], Any], what: str) -> Any:
    """The first truthy answer of `check`; fails with `what` after 20 seconds."""
    for _ in range(200):
        found = await asyncio.to_thread(check)
        if found:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"never happened: {what}")


@asynccontextmanager
async def worker(name: str) -> AsyncIterator[int]:
    """A worker that answers with its name."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                await reader.readexactly(int(length[1]) if length else 0)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(name), name.encode()))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@dataclass
class Running:
    """A router process and a client for it."""

    process: subprocess.Popen[bytes]
    client: httpx.AsyncClient
    health: str

    async def names(self, count: int = 8) -> set[str]:
        """Workers that answered so many requests; what is not answered 200 shows as its status."""
        answers = [await self.client.post("/v1/completions", content=BODY) for _ in range(count)]
        return {a.text if a.status_code == 200 else str(a.status_code) for a in answers}

    async def serves(self, expected: set[str]) -> None:
        """Wait until exactly these answer."""
        seen: set[str] = set()
        for _ in range(100):
            seen = await self.names()
            if seen == expected:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"expected {expected}, got {seen}")


@asynccontextmanager
async def router(plane: StandaloneControlPlane, *flags: str) -> AsyncIterator[Running]:
    """A router process, ready, pointed at the API server."""
    port, health = free_port(), free_port()
    ports = [f"--port={port}", f"--health-port={health}", "--metrics-port=0", "--host=127.0.0.1"]
    process = subprocess.Popen(  # noqa: ASYNC220 - starting one takes no time worth yielding for
        [sys.executable, "-m", "penstock.router", *ports, "--drain-lag=0", "--scrape-interval=0", *flags],
        env={**os.environ, "KUBECONFIG": str(plane.kubeconfig)},
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            url = f"http://127.0.0.1:{health}/readyz"
            for _ in range(200):
                try:
                    if (await client.get(url)).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.1)
            else:
                raise AssertionError("the router never became ready")
            yield Running(process, client, url)
            process.terminate()
            assert await asyncio.to_thread(process.wait, 20) == 0
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def installed(control_plane: StandaloneControlPlane) -> StandaloneControlPlane:
    """The control plane with our kinds."""
    Cluster(control_plane, "default").kubectl("apply", "--server-side", "-f", str(CRDS))
    Cluster(control_plane, "default").kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    return control_plane


@pytest.fixture
def cluster(installed: StandaloneControlPlane, request: pytest.FixtureRequest) -> Cluster:
    """A namespace of its own for each test."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:60]
    return make_namespace(installed, name)


def make_namespace(plane: StandaloneControlPlane, name: str) -> Cluster:
    """A namespace with the service account that pods need (no controller makes it here)."""
    made = Cluster(plane, name)
    made.kubectl("create", "namespace", name)
    made.kubectl("create", "serviceaccount", "default")
    return made


async def test_pods_enter_and_leave_rotation_and_the_condition_follows(cluster: Cluster) -> None:
    cluster.apply(deployment())
    async with (
        worker("a") as a,
        worker("b") as b,
        router(cluster.plane, f"--watch-namespaces={cluster.namespace}") as r,
    ):
        assert await r.names(1) == {"404"}, "not accepted yet, so not served"
        cluster.status("mdep", "llama", {"conditions": ACCEPTED})
        await r.serves({"503"})
        condition = await eventually(cluster.condition, "a first condition")
        assert (condition["status"], condition["reason"]) == ("False", "NoRoutableWorker")

        cluster.pod("a", a)
        cluster.pod("b", b, ready=False)
        await r.serves({"a"})
        cluster.ready("b", True)
        await r.serves({"a", "b"})

        def says_two() -> bool:
            return cluster.condition().get("message") == "2 workers of 2 ready pods in rotation"

        await eventually(says_two, "two workers in the condition")
        condition = cluster.condition()
        assert (condition["status"], condition["reason"]) == ("True", "WorkersRoutable")
        assert condition["observedGeneration"] == 1 and condition["lastTransitionTime"]
        assert cluster.condition("Accepted")["status"] == "True", "another writer's condition was touched"

        # The pod's object stays (grace, no kubelet to end it), so only the deletionTimestamp can take it out.
        cluster.kubectl("delete", "pod", "a", "--wait=false", "--grace-period=300")
        await r.serves({"b"})
        cluster.kubectl("delete", "pod", "b", "--force", "--grace-period=0")
        await r.serves({"503"})

        def says_none() -> bool:
            return cluster.condition().get("status") == "False"

        await eventually(says_none, "no worker in the condition")


async def test_the_condition_is_owned_by_the_router_and_written_once(cluster: Cluster) -> None:
    cluster.apply(deployment())
    cluster.status("mdep", "llama", {"conditions": ACCEPTED})
    async with worker("a") as a, router(cluster.plane, f"--watch-namespaces={cluster.namespace}") as r:
        cluster.pod("a", a)
        await r.serves({"a"})
        await eventually(lambda: cluster.condition().get("status") == "True", "the condition")

        def version() -> str:
            return cluster.kubectl("get", "mdep", "llama", "-o", "jsonpath={.metadata.resourceVersion}")

        before = version()
        # A change of the pod that means nothing to us.
        cluster.kubectl("annotate", "pod", "a", "unrelated=1")
        await r.names(20)
        await asyncio.sleep(1.0)
        assert version() == before
        fields = json.loads(cluster.kubectl("get", "mdep", "llama", "-o", "json", "--show-managed-fields"))
        managers = {m["manager"]: m for m in fields["metadata"]["managedFields"]}
        owned = managers["penstock-router"]
        assert owned["operation"] == "Apply" and owned["subresource"] == "status"
        keys = list(owned["fieldsV1"]["f:status"]["f:conditions"])
        assert keys == ['k:{"type":"RouterReady"}']


async def test_models_list_the_accepted_ones_with_their_policy(cluster: Cluster) -> None:
    cluster.apply(deployment(policy="LeastLoaded"))
    cluster.status("mdep", "llama", {"conditions": ACCEPTED})
    async with router(cluster.plane, f"--watch-namespaces={cluster.namespace}") as r:
        listing = (await r.client.get("/v1/models")).json()
        assert [m["id"] for m in listing["data"]] == [MODEL]
        assert (await r.client.get(f"/v1/models/{MODEL}")).status_code == 200
        cluster.kubectl("delete", "mdep", "llama")

        for _ in range(100):
            if not (await r.client.get("/v1/models")).json()["data"]:
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("a deleted deployment is still served")


async def test_pods_of_other_namespaces_are_not_seen(cluster: Cluster) -> None:
    cluster.apply(deployment())
    cluster.status("mdep", "llama", {"conditions": ACCEPTED})
    async with worker("a") as a:
        make_namespace(cluster.plane, "strangers").pod("stranger", a)
        async with router(cluster.plane, f"--watch-namespaces={cluster.namespace}") as r:
            assert await r.names(2) == {"503"}


async def test_without_our_kinds_the_pods_alone_are_served(tmp_path: Path) -> None:
    """An API server that does not know ModelDeployments: the router goes on with the pods' own word."""
    programs = find_programs(API_PROGRAMS)
    if programs is None:
        pytest.skip("the Kubernetes programs are not in the cache: run `penstock binaries`")
    with standalone_control_plane(programs.folder_of(API_PROGRAMS), tmp_path) as bare:
        cluster = make_namespace(bare, "bare")
        async with worker("a") as a:
            cluster.pod("a", a)
            async with router(bare, "--watch-namespaces=bare") as r:
                await r.serves({"a"})
                assert [m["id"] for m in (await r.client.get("/v1/models")).json()["data"]] == [MODEL]


class Gate:
    """A way to the API server that can be shut."""

    def __init__(self, target: int) -> None:
        """Towards this port of loopback."""
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def open(self) -> None:
        """Let connections through (again, on the same port)."""
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        """Refuse new connections and cut those there are."""
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, back}
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()


async def test_api_server_away_the_last_known_state_serves_and_then_catches_up(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.apply(deployment())
    cluster.status("mdep", "llama", {"conditions": ACCEPTED})
    gate = Gate(int(cluster.plane.url.rpartition(":")[2]))
    await gate.open()
    through = tmp_path / "kubeconfig"
    through.write_text(
        cluster.plane.kubeconfig.read_text().replace(cluster.plane.url, f"https://127.0.0.1:{gate.port}")
    )
    flag = f"--watch-namespaces={cluster.namespace}"
    async with (
        worker("a") as a,
        worker("b") as b,
        router(dataclasses.replace(cluster.plane, kubeconfig=through), flag) as r,
    ):
        cluster.pod("a", a)
        await r.serves({"a"})
        gate.shut()
        cluster.pod("b", b)
        cluster.kubectl("delete", "pod", "a", "--force", "--grace-period=0")
        assert await r.names(8) == {"a"}, "nothing was heard, so nothing may change"
        await gate.open()
        await r.serves({"b"})
    gate.shut()
