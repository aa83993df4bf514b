"""The two small HTTP servers: health for the kubelet, metrics for Prometheus."""

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_Handler = Callable[[web.Request], Awaitable[web.Response]]


class Servers:
    """Serves /healthz and /readyz on one port, /metrics on another."""

    def __init__(
        self,
        registry: CollectorRegistry,
        before_export: Callable[[], None],
        why_dead: Callable[[], str],
        why_unready: Callable[[], str],
    ) -> None:
        """The two `why` functions give a reason, or nothing when all is well."""
        self._registry, self._before_export = registry, before_export
        self._why_dead, self._why_unready = why_dead, why_unready
        self._runners: list[web.AppRunner] = []
        self.ports: list[int] = []
        """The ports listened on, health first; chosen by the system where 0 was asked for."""

    async def start(self, host: str, health_port: int, metrics_port: int) -> None:
        """Listen. Raises OSError when a port is taken."""
        health = {"/healthz": _probe(self._why_dead), "/readyz": _probe(self._why_unready)}
        await self._listen(host, health_port, health)
        await self._listen(host, metrics_port, {"/metrics": self._metrics})

    async def stop(self) -> None:
        """Stop listening."""
        for runner in self._runners:
            await runner.cleanup()

    async def _listen(self, host: str, port: int, routes: dict[str, _Handler]) -> None:
        app = web.Application()
        app.add_routes([web.get(path, handler) for path, handler in routes.items()])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, host, port, backlog=64).start()
        self.ports.append(runner.addresses[0][1])

    async def _metrics(self, request: web.Request) -> web.Response:
        self._before_export()
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _probe(why: Callable[[], str]) -> _Handler:
    async def answer(request: web.Request) -> web.Response:
        reason = why()
        return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

    return answer
