"""The gRPC server: port, credentials, limits, health and reflection around the service."""

import asyncio
import contextlib
import logging
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from penstock.core.fleet import Fleet
from penstock.router.decisions import SplitLimits
from penstock.router.decisions.explain import ExplainLog
from penstock.router.shell.adapters import Adapters
from penstock.router.shell.metrics import Counters
from penstock.router.shell.models import ModelTable
from penstock.router.shell.prompts import Prompts
from penstock.router.shell.rpc.auth import BearerAuth, Tokens, server_credentials
from penstock.router.shell.rpc.reading import CarefulServer
from penstock.router.shell.rpc.service import Limits, RouterService
from penstock.router.shell.settings import Settings
from penstock.router.v1 import router_pb2, router_pb2_grpc

log = logging.getLogger("penstock.router.rpc")

SERVICE = router_pb2.DESCRIPTOR.services_by_name["Router"].full_name
_EXPIRE_SECONDS = 0.25
_MAX_METADATA = 16 * 1024
_MAX_STREAMS_PER_CONNECTION = 1024


class RpcServer:
    """`penstock.router.v1.Router` on a port."""

    def __init__(
        self,
        settings: Settings,
        fleet: Fleet,
        models: ModelTable,
        counters: Counters,
        explanations: ExplainLog,
        prompts: Prompts | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        """Assemble; `OSError` or `ValueError` when tokens cannot be read. Without `prompts` picks go by load."""
        limits = Limits(
            leases=settings.max_leases,
            streams=settings.grpc_max_streams,
            split=SplitLimits(min_tokens=settings.split_tokens, lease=settings.kv_lease),
            lease_seconds=settings.lease_seconds,
            max_lease_seconds=settings.max_lease_seconds,
        )
        loop = asyncio.get_running_loop()
        self.service = RouterService(fleet, models, counters, explanations, limits, loop.time, prompts, adapters)
        self._health = health.aio.HealthServicer()
        self._expiring: asyncio.Task[None] | None = None
        self._settings = settings
        auth = [BearerAuth(Tokens(Path(settings.grpc_token_file)))] if settings.grpc_token_file else []
        self._server = grpc.aio.server(
            interceptors=auth, options=_options(settings), maximum_concurrent_rpcs=settings.grpc_max_calls
        )
        careful = CarefulServer(self._server)
        router_pb2_grpc.add_RouterServicer_to_server(self.service, careful)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self) -> int:
        """Listen; returns the port. `OSError` when it cannot be had."""
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        try:
            if settings.grpc_tls_cert:
                client_ca = Path(settings.grpc_client_ca) if settings.grpc_client_ca else None
                made = server_credentials(Path(settings.grpc_tls_cert), Path(settings.grpc_tls_key), client_ca)
                port: int = self._server.add_secure_port(address, made)
            else:
                port = self._server.add_insecure_port(address)
        except RuntimeError as problem:
            raise OSError(f"the gRPC port {address} cannot be had: {problem}") from None
        await self._server.start()
        await self._say(health_pb2.HealthCheckResponse.SERVING)
        self._expiring = asyncio.create_task(self._expire())
        if settings.grpc_token_file and not settings.grpc_tls_cert:
            log.warning("tokens travel unencrypted: --grpc-token-file is set and --grpc-tls-cert is not")
        return port

    async def drain(self) -> None:
        """Say that we go, and take no new picks; releases are still welcome."""
        self.service.draining = True
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace: float = 0.5) -> None:
        """Stop listening, end what runs after `grace` seconds, give every lease back."""
        if self._expiring is not None:
            self._expiring.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._expiring
        await self._server.stop(grace)
        self.service.leases.clear()

    def gauges(self) -> dict[str, float]:
        """Momentary numbers, for metrics."""
        return {"leases": len(self.service.leases), "rpc_streams": self.service.streams}

    async def _say(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_SECONDS)
            self.service.expire()


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.grpc_max_message_bytes),
        ("grpc.max_send_message_length", settings.grpc_max_message_bytes),
        ("grpc.max_metadata_size", _MAX_METADATA),
        ("grpc.max_concurrent_streams", _MAX_STREAMS_PER_CONNECTION),
        # Two routers on one port would share its callers at random, and neither would know all reservations.
        ("grpc.so_reuseport", 0),
        # A caller that vanished without a word is noticed within half a minute.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
