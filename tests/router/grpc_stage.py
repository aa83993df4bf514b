"""A gRPC server on a real socket over workers that need not exist: `Pick` never talks to them."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from penstock.core.fleet import Fleet, Worker
from penstock.router.decisions import find_policy
from penstock.router.decisions.explain import ExplainLog
from penstock.router.shell.discovery.static import install
from penstock.router.shell.metrics import Counters
from penstock.router.shell.models import ModelTable
from penstock.router.shell.prompts import Prompts
from penstock.router.shell.rpc.server import RpcServer
from penstock.router.shell.settings import Settings


@dataclasses.dataclass
class Stage:
    """A server, what it decides over, and its address."""

    server: RpcServer
    fleet: Fleet
    models: ModelTable
    counters: Counters
    prompts: Prompts
    address: str


@asynccontextmanager
async def serving(workers: int = 3, policy: str = "LeastLoaded", **changes: object) -> AsyncIterator[Stage]:
    """A server over so many workers of model `m`; `changes` are settings."""
    settings = dataclasses.replace(Settings(host="127.0.0.1", grpc_port=0), **changes)  # type: ignore[arg-type]
    fleet, models, counters = Fleet(max_in_flight=settings.max_in_flight), ModelTable(), Counters()
    known = [Worker(f"ns/w{i}", "10.0.0.1", 8000 + i, "m", deployment="d", pool="serve") for i in range(workers)]
    install(known, fleet, models, find_policy(policy), 1)
    prompts = Prompts(settings, fleet, asyncio.get_running_loop().time)
    server = RpcServer(settings, fleet, models, counters, ExplainLog(fleet, settings.explain_picks), prompts)
    port = await server.start()
    try:
        yield Stage(server, fleet, models, counters, prompts, f"127.0.0.1:{port}")
    finally:
        await server.stop(0)
        await prompts.close()
