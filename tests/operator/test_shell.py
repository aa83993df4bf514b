"""The thin parts against a small HTTP API server of our own: verbs, errors, leadership, lists that wait."""

import asyncio
import json

import pytest
from aiohttp import web
from penstock.operator.decisions.writes import Apply, Delete, Event, Ref, Scale
from penstock.operator.shell.kube import ApiError, Kube, Unreachable, path_of
from penstock.operator.shell.leader import Leader
from penstock.operator.shell.metrics import Metrics
from penstock.operator.shell.queue import WorkQueue
from penstock.operator.shell.quiet_kopf import ConnectionInfo
from penstock.operator.shell.reconciler import NotLeading, Reconciler
from penstock.operator.shell.recorder import Recorder
from penstock.operator.shell.settings import parse
from penstock.operator.shell.store import Store
from penstock.operator.shell.sweeper import Sweeper

POOL = Ref("penstock.dev/v1alpha1", "WorkerPool", "chat", "p")


class Server:
    """Answers what `script` says and remembers what was asked."""

    def __init__(self):
        self.asked = []
        self.lease = None
        self.answers = {}

    async def handle(self, request):
        body = await request.text()
        self.asked.append((request.method, request.path_qs, json.loads(body) if body else None))
        if "/leases" in request.path:
            return self.leases(request.method, body)
        echoed = json.loads(body) if request.method == "PATCH" else {"metadata": {}}
        echoed.setdefault("metadata", {})["resourceVersion"] = "0"  # older than anything a test puts into a store
        status, answer = self.answers.get((request.method, request.path), (200, echoed))
        return web.json_response(answer, status=status, headers={"Retry-After": "7"} if status == 429 else {})

    def leases(self, method, body):
        if method == "GET":
            return web.json_response(self.lease or {"reason": "NotFound"}, status=200 if self.lease else 404)
        given = json.loads(body)
        stale = self.lease and given["metadata"].get("resourceVersion") != self.lease["metadata"]["resourceVersion"]
        if stale:
            return web.json_response({"reason": "Conflict"}, status=409)
        version = int(self.lease["metadata"]["resourceVersion"]) + 1 if self.lease else 1
        self.lease = given | {"metadata": given["metadata"] | {"resourceVersion": str(version)}}
        return web.json_response(self.lease)


@pytest.fixture
async def server():
    answering = Server()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answering.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    answering.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield answering
    await runner.cleanup()


@pytest.fixture
async def kube(server):
    async with Kube(lambda: ConnectionInfo(server=server.url, token="secret")) as opened:
        yield opened


async def test_verbs_are_what_the_api_server_expects(kube, server):
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a b", "namespace": "chat"}}
    await kube.apply(Apply(body, manager="m", dry_run=True, force=False))
    await kube.scale(POOL, 3)
    await kube.delete(POOL, "uid-1")
    (apply, scale, delete) = server.asked
    assert apply[:2] == (
        "PATCH",
        "/api/v1/namespaces/chat/configmaps/a%20b?fieldManager=m&force=false&dryRun=All",
    )
    assert scale[1].startswith("/apis/penstock.dev/v1alpha1/namespaces/chat/workerpools/p/scale")
    assert scale[2] == {"spec": {"replicas": 3}}
    assert delete[2] == {"propagationPolicy": "Background", "preconditions": {"uid": "uid-1"}}


async def test_refusals_carry_the_servers_words(kube, server):
    path = path_of(POOL.api_version, POOL.kind, "chat", "p")
    server.answers["GET", path] = (422, {"reason": "Invalid", "message": "replicas 9 is outside 2..8"})
    with pytest.raises(ApiError, match="422 Invalid: replicas 9 is outside"):
        await kube.get(POOL)
    server.answers["GET", path] = (429, {"reason": "TooManyRequests"})
    with pytest.raises(ApiError) as caught:
        await kube.get(POOL)
    assert caught.value.retry_after_s == 7.0


async def test_deleting_what_is_gone_or_was_replaced_is_no_error(kube, server):
    path = path_of(POOL.api_version, POOL.kind, "chat", "p")
    for code in (404, 409):
        server.answers["DELETE", path] = (code, {"reason": "x"})
        await kube.delete(POOL, "uid")


async def test_silence_is_told_apart_and_announced():
    announced = []
    async with Kube(lambda: ConnectionInfo(server="http://127.0.0.1:9")) as nobody:
        nobody.unreachable = lambda: announced.append(True)
        with pytest.raises(Unreachable):
            await nobody.get(POOL)
    assert announced == [True]


async def _until(check):
    for _ in range(1000):
        if check():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("never came true")


async def test_one_leads_and_hands_over_at_once_when_it_ends(kube):
    first = Leader(kube, namespace="system", identity="a", random=lambda: 0.5)
    second = Leader(kube, namespace="system", identity="b", random=lambda: 0.5)
    task = asyncio.create_task(first.run())
    await _until(first.holds)
    other = asyncio.create_task(second.run())
    await asyncio.sleep(0.2)
    assert not second.holds()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not first.holds() and not first.elected.is_set()
    await _until(second.holds)
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)


async def test_a_lease_that_another_took_is_not_renewed(kube, server):
    leader = Leader(kube, namespace="system", identity="a", random=lambda: 0.0)
    task = asyncio.create_task(leader.run())
    await _until(leader.holds)
    server.lease["spec"]["holderIdentity"] = "thief"
    server.lease["metadata"]["resourceVersion"] = "77"
    await _until(lambda: not leader.holds())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert server.lease["spec"]["holderIdentity"] == "thief"


def parts(kube, holds=lambda: True):
    queue = WorkQueue(clock=asyncio.get_running_loop().time, random=lambda: 0.0)
    store, metrics = Store(queue.add), Metrics()
    recorder = Recorder(kube, metrics, instance="test", clock=asyncio.get_running_loop().time)
    made = Reconciler(kube=kube, store=store, queue=queue, recorder=recorder, metrics=metrics, holds=holds)
    return queue, store, metrics, recorder, made


def stock(store, furnish):
    """Put a furnished world with one deployment into a store."""
    from penstock.operator.shell.store import KINDS

    world = furnish()
    world.deploy()
    kinds = {kind.kind: kind for kind in KINDS}
    for (kind, _), stored in world.objects.items():
        store.put(kinds[kind], stored)
    return world


async def test_nothing_is_written_without_the_lease(kube, server, furnish):
    _, store, _, _, reconciler = parts(kube, holds=lambda: False)
    stock(store, furnish)
    with pytest.raises(NotLeading):
        await reconciler.reconcile(("chat", "llama"))
    assert server.asked == []


async def test_the_lease_is_asked_for_before_every_single_write(kube, server, furnish):
    left = [True, True]
    _, store, _, _, reconciler = parts(kube, holds=lambda: bool(left) and left.pop())
    stock(store, furnish)
    with pytest.raises(NotLeading):
        await reconciler.reconcile(("chat", "llama"))
    assert len(server.asked) == 2


async def test_a_refused_write_is_told_in_status_and_tried_again(kube, server, furnish):
    _, store, metrics, _, reconciler = parts(kube)
    stock(store, furnish)
    path = path_of("v1", "ConfigMap", "chat", "llama-drain")
    server.answers["PATCH", path] = (403, {"reason": "Forbidden", "message": "no ConfigMaps for you"})
    with pytest.raises(ApiError):
        await reconciler.reconcile(("chat", "llama"))
    status = server.asked[-1]
    assert status[1].startswith("/apis/penstock.dev/v1alpha1/namespaces/chat/modeldeployments/llama/status")
    degraded = next(c for c in status[2]["status"]["conditions"] if c["type"] == "Degraded")
    assert degraded["reason"] == "ReconcileFailed" and "no ConfigMaps for you" in degraded["message"]
    assert metrics.writes.labels("ConfigMap", "apply", "403")._value.get() == 1


async def test_a_refused_pod_is_told_at_once_and_not_offered_again(kube, server, furnish):
    _, store, _, _, reconciler = parts(kube)
    stock(store, furnish)
    wanted = next(w for w in _writes(store) if isinstance(w, Apply) and w.dry_run)
    path = path_of("apps/v1", "ReplicaSet", "chat", wanted.ref.name)
    server.answers["PATCH", path] = (422, {"reason": "Invalid", "message": "spec.containers: Required"})
    await reconciler.reconcile(("chat", "llama"))
    offered = [asked for asked in server.asked if asked[1].startswith(path)]
    assert len(offered) == 1
    accepted = server.asked[-1][2]["status"]["conditions"][0]
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidPodTemplate")


def _writes(store):
    from penstock.operator.decisions.desired import desired

    return desired(store.observe(("chat", "llama"), now=0.0, refusals={}, drain=False, endpoint="")).writes


async def test_events_are_posted_once_and_never_block(kube, server):
    _, _, metrics, recorder, _ = parts(kube)
    event = Event(POOL, "uid", "Normal", "Scaled", "Reconcile", "from 1 to 2")
    for _ in range(3):
        recorder.post(event)
    task = asyncio.create_task(recorder.run())
    await _until(lambda: server.asked)
    await asyncio.sleep(0.05)
    task.cancel()
    assert len(server.asked) == 1
    posted = server.asked[0][2]
    assert posted["regarding"]["name"] == "p" and posted["note"] == "from 1 to 2"
    for number in range(1500):
        recorder.post(Event(POOL, "uid", "Normal", "Scaled", "Reconcile", str(number)))
    assert metrics.events_dropped._value.get() >= 499


async def test_the_first_list_waits_for_missing_definitions(kube, server):
    queue, store, metrics, _, _ = parts(kube)
    sweeper = Sweeper(kube=kube, store=store, queue=queue, metrics=metrics, namespaces=(), random=lambda: 0.0)
    path = path_of("penstock.dev/v1alpha1", "ModelDeployment")
    server.answers["GET", path] = (404, {"message": "404 page not found"})
    task = asyncio.create_task(sweeper.first())
    await _until(lambda: any(path in asked[1] for asked in server.asked))
    assert not sweeper.synced.is_set()
    del server.answers["GET", path]
    await asyncio.wait_for(task, 10)
    assert sweeper.synced.is_set()


def test_flags_override_the_environment():
    environment = {
        "PENSTOCK_NAMESPACE": "sys",
        "PENSTOCK_WATCH_NAMESPACES": "a, b",
        "PENSTOCK_LEADER_ELECTION": "false",
    }
    settings = parse(["--namespace=other"], environment)
    assert (settings.namespace, settings.watch_namespaces, settings.leader_election) == ("other", ("a", "b"), False)
    assert parse(["--leader-election"], environment).leader_election


@pytest.mark.parametrize(
    ("flags", "environment"),
    [(["--workers=0"], {}), (["--health-port=x"], {}), ([], {"PENSTOCK_LEADER_ELECTION": "perhaps"}), (["--nope"], {})],
)
def test_flags_that_make_no_sense_end_the_process(flags, environment, capsys):
    with pytest.raises(SystemExit):
        parse(flags, environment)
    assert "error:" in capsys.readouterr().err


def test_writes_name_their_object():
    assert str(POOL) == "WorkerPool chat/p"
    assert Scale(POOL, 1).ref is Delete(POOL, "u").ref
