"""The whole autoscaler over real sockets: an API server's lists and watches in, metrics out."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kubernetes_asyncio.client import ApiClient, Configuration
from penstock.autoscaler.shell.app import Autoscaler
from penstock.autoscaler.shell.settings import Settings
from prometheus_client.parser import text_string_to_metric_families

POOL = {
    "metadata": {"name": "chat-serve-h100", "namespace": "team", "resourceVersion": "1"},
    "spec": {
        "deploymentName": "chat",
        "poolName": "serve",
        "role": "PrefillDecode",
        "acceleratorClassName": "h100",
        "modelName": "m",
        "replicas": 3,
    },
}


def pod(name: str, port: int, *, started: bool = True, version: int = 1) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": "team",
            "resourceVersion": str(version),
            "labels": {
                "penstock.dev/deployment": "chat",
                "penstock.dev/pool": "serve",
                "penstock.dev/role": "PrefillDecode",
                "penstock.dev/accelerator": "h100",
            },
            "annotations": {"penstock.dev/model": "m"},
        },
        "spec": {"containers": [{"name": "engine", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {
            "podIP": "127.0.0.1",
            "containerStatuses": [{"name": "engine", "started": started}],
            "conditions": [{"type": "Ready", "status": "True" if started else "False"}],
        },
    }


class Api:
    """As much of an API server as a list and a watch see; `pods` are what it holds."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.events: list[asyncio.Queue[dict[str, Any] | None]] = []
        self.version = 1
        self.lists = 0
        self.pools_installed = True

    async def list_pods(self, request: web.Request) -> web.StreamResponse:
        assert request.query["labelSelector"] == "penstock.dev/deployment"
        if "watch" in request.query:
            return await self._stream(request)
        self.lists += 1
        return web.json_response(
            {"metadata": {"resourceVersion": str(self.version)}, "items": list(self.pods.values())}
        )

    async def list_pools(self, request: web.Request) -> web.StreamResponse:
        if not self.pools_installed:
            return web.json_response({"code": 404}, status=404)
        if "watch" in request.query:
            return await self._stream(request)
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": [POOL]})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        if request.path.endswith("/pods"):
            self.events.append(queue)
        while (event := await queue.get()) is not None:
            text = json.dumps(event).encode() + b"\n"
            await response.write(text[:7])
            await response.write(text[7:])
        return response

    def send(self, kind: str, item: dict[str, Any]) -> None:
        self.version += 1
        item = copy.deepcopy(item)
        item["metadata"]["resourceVersion"] = str(self.version)
        for queue in self.events:
            queue.put_nowait({"type": kind, "object": item})


@pytest.fixture
async def api() -> AsyncIterator[tuple[Api, ApiClient]]:
    made = Api()
    app = web.Application()
    app.add_routes(
        [
            web.get("/api/v1/namespaces/team/pods", made.list_pods),
            web.get("/apis/penstock.dev/v1alpha1/namespaces/team/workerpools", made.list_pools),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with ApiClient(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")) as client:
        yield made, client
    for queue in made.events:
        queue.put_nowait(None)
    await runner.cleanup()


class Running:
    """An autoscaler at work, and what it exports."""

    def __init__(self, autoscaler: Autoscaler) -> None:
        self.autoscaler = autoscaler

    async def get(self, port_index: int, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.autoscaler.servers.ports[port_index]}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    async def values(self) -> dict[tuple[str, str], float]:
        """Value by (name without prefix, last label)."""
        _, text = await self.get(1, "/metrics")
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("penstock_autoscaler_"):
                    last = sample.labels.get("signal") or sample.labels.get("state") or sample.labels.get("reason", "")
                    found[sample.name.removeprefix("penstock_autoscaler_"), last] = sample.value
        return found

    async def until(self, true: Callable[[dict[tuple[str, str], float]], object]) -> dict[tuple[str, str], float]:
        async with asyncio.timeout(20):
            while True:
                values = await self.values()
                if true(values):
                    return values
                await asyncio.sleep(0.05)


@pytest.fixture
async def running(api: tuple[Api, ApiClient]) -> AsyncIterator[Running]:
    settings = Settings(
        watch_namespaces=("team",),
        scrape_interval_s=0.1,
        scrape_timeout_s=0.3,
        signal_window_s=5,
        host="127.0.0.1",
        health_port=0,
        metrics_port=0,
    )
    autoscaler = Autoscaler(settings, api[1])
    task = asyncio.create_task(autoscaler.run())
    async with asyncio.timeout(10):
        while len(autoscaler.servers.ports) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    yield Running(autoscaler)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_workers_become_signals_with_coverage(api, engines, running) -> None:
    good, hanging = await engines.start(running=4), await engines.start(manner="hang")
    api[0].pods = {"a": pod("a", good.port), "b": pod("b", hanging.port)}
    await asyncio.sleep(0.1)
    for item in api[0].pods.values():
        api[0].send("ADDED", item)
    values = await running.until(lambda v: v.get(("pool_generation_tokens_per_second", ""), 0) > 0)
    assert values["pool_running_requests", ""] == values["deployment_running_requests", ""] == 4
    assert values["pool_signal_coverage_ratio", "running_requests"] == 0.5
    assert values["pool_signal_age_seconds", "running_requests"] < 20
    assert values["pool_workers", "ready"] == 2
    assert values["pool_desired_workers", ""] == 3
    assert values["pool_ttft_mean_seconds", ""] == pytest.approx(1.0)
    values = await running.until(lambda v: v.get(("scrapes_total", "TimedOut"), 0) > 0)
    assert values["scrapes_total", "Ok"] > 0


async def test_a_pool_without_workers_is_unknown_and_not_zero(running) -> None:
    values = await running.until(lambda v: ("pool_desired_workers", "") in v)
    assert values["pool_signal_coverage_ratio", "running_requests"] == 0
    assert ("pool_running_requests", "") not in values
    assert values["pool_workers", "ready"] == 0


async def test_a_worker_that_leaves_no_longer_counts(api, engines, running) -> None:
    one, two = await engines.start(running=4), await engines.start(running=5)
    await running.until(lambda v: api[0].events)
    api[0].send("ADDED", pod("a", one.port))
    api[0].send("ADDED", pod("b", two.port))
    await running.until(lambda v: v.get(("pool_running_requests", "")) == 9)
    leaving = pod("b", two.port)
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    api[0].send("MODIFIED", leaving)
    values = await running.until(lambda v: v.get(("pool_running_requests", "")) == 4)
    assert values["pool_workers", "terminating"] == 1
    api[0].send("DELETED", pod("b", two.port))
    values = await running.until(lambda v: v.get(("pool_workers", "terminating")) == 0)
    assert values["pool_signal_coverage_ratio", "running_requests"] == 1


async def test_a_worker_that_starts_is_not_yet_missing(api, engines, running) -> None:
    one = await engines.start()
    await running.until(lambda v: api[0].events)
    api[0].send("ADDED", pod("a", one.port))
    api[0].send("ADDED", pod("b", one.port, started=False))
    values = await running.until(
        lambda v: v.get(("pool_workers", "starting")) == 1 and ("pool_running_requests", "") in v
    )
    assert values["pool_signal_coverage_ratio", "running_requests"] == 1


async def test_an_expired_watch_is_followed_by_a_list(api, engines, running) -> None:
    one = await engines.start()
    await running.until(lambda v: api[0].events)
    api[0].pods["a"] = pod("a", one.port)
    for queue in api[0].events:
        queue.put_nowait({"type": "ERROR", "object": {"code": 410, "message": "too old", "metadata": {}}})
    await running.until(lambda v: v.get(("pool_workers", "ready")) == 1)
    assert api[0].lists >= 2


async def test_health_says_why(running) -> None:
    await running.until(lambda v: ("pool_desired_workers", "") in v)
    assert await running.get(0, "/healthz") == (200, "ok\n")
    assert await running.get(0, "/readyz") == (200, "ok\n")
    running.autoscaler._evaluated_at -= 1000
    assert running.autoscaler._why_dead() == running.autoscaler._why_unready() == "no evaluation for 1000 s"
