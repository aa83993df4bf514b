"""Probes and metrics over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from penstock.operator.shell.metrics import Metrics
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

Handler = Callable[[web.Request], web.Response]


async def serve_health(port: int, ready: Callable[[], str], alive: Callable[[], str]) -> web.AppRunner:
    """`/healthz` and `/readyz`; each callback gives what is wrong, or nothing when all is well."""

    def probe(check: Callable[[], str]) -> Handler:
        def answer(_: web.Request) -> web.Response:
            wrong = check()
            return web.Response(status=503 if wrong else 200, text=(wrong or "ok") + "\n")

        return answer

    return await _serve(port, {"/healthz": probe(alive), "/readyz": probe(ready)})


async def serve_metrics(port: int, metrics: Metrics, refresh: Callable[[], None]) -> web.AppRunner:
    """`/metrics` in Prometheus' text form."""

    def answer(_: web.Request) -> web.Response:
        refresh()
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return await _serve(port, {"/metrics": answer})


async def _serve(port: int, routes: dict[str, Handler]) -> web.AppRunner:
    application = web.Application()
    for path, handler in routes.items():
        application.router.add_get(path, _coroutine(handler))
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", port).start()
    return runner


def _coroutine(handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        return handler(request)

    return answer
