"""Health, metrics and explanations, on ports of their own so that traffic cannot starve them of connections."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from penstock.router.decisions.explain import ExplainLog
from penstock.router.shell.metrics import Collector
from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector as PrometheusCollector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

_EXPLAIN = "/penstock/v1/explain/{request_id:path}"


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the process that owns it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class AdminServers:
    """The servers of /healthz, /readyz, /metrics and explanations."""

    def __init__(
        self, host: str, why_not_ready: Callable[[], str], collector: Collector, explanations: ExplainLog
    ) -> None:
        """`why_not_ready` gives the reason, or nothing when ready."""
        self._explanations = explanations
        self._host = host
        self._why_not_ready = why_not_ready
        self._registry = CollectorRegistry()
        for each in (collector, PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            self._registry.register(each)
        self._servers: list[tuple[_Server, asyncio.Task[None]]] = []

    def show(self, collector: PrometheusCollector) -> None:
        """Add families to the metrics page."""
        self._registry.register(collector)

    def start(self, health_port: int, metrics_port: int) -> None:
        """Listen on both ports; 0 leaves one out."""
        if health_port:
            self._serve(health_port, [Route("/healthz", self._alive), Route("/readyz", self._ready)])
        if metrics_port:
            self._serve(metrics_port, [Route("/metrics", self._metrics), Route(_EXPLAIN, self._explain)])

    async def stop(self) -> None:
        """Stop listening."""
        for server, task in self._servers:
            server.should_exit = True
            await asyncio.gather(task, return_exceptions=True)

    def _serve(self, port: int, routes: list[Route]) -> None:
        # Bound here, so that a port in use is an error now and not a line in some log later.
        listening = socket.create_server((self._host, port), backlog=64)
        config = uvicorn.Config(Starlette(routes=routes), log_config=None, access_log=False, lifespan="off")
        server = _Server(config)
        self._servers.append((server, asyncio.create_task(server.serve(sockets=[listening]))))

    async def _alive(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _ready(self, request: Request) -> Response:
        reason = self._why_not_ready()
        return PlainTextResponse(f"{reason or 'ok'}\n", status_code=503 if reason else 200)

    async def _explain(self, request: Request) -> Response:
        """The picks of one request. Here and not at the gateway: it names workers, which is no client's business."""
        wanted = request.path_params["request_id"]
        known = self._explanations.find(wanted)
        if known:
            return JSONResponse({"picks": [each.as_dict() for each in known]})
        kept = len(self._explanations)
        message = f"request {wanted[:128]!r} is not among the last {kept} picks of this router; ask sooner, or another"
        return JSONResponse({"error": {"code": "NotRemembered", "message": message}}, status_code=404)

    async def _metrics(self, request: Request) -> Response:
        return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
