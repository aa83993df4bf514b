"""The router process: assembles fleet, gateway, discovery, health and metrics, and ends them in order."""

import asyncio
import gc
import logging
import signal
from collections.abc import Coroutine
from typing import TYPE_CHECKING

from penstock.core.fleet import Fleet
from penstock.router.shell.admin import AdminServers
from penstock.router.shell.discovery.static import install, parse_workers
from penstock.router.shell.gateway import Gateway, unix_now
from penstock.router.shell.kv_event_metrics import KvEventCollector
from penstock.router.shell.kv_events import KvEvents
from penstock.router.shell.metrics import Collector
from penstock.router.shell.models import ModelTable
from penstock.router.shell.policy_files import WrittenPolicies
from penstock.router.shell.prompts import EngineEvents, Prompts
from penstock.router.shell.recording import policies
from penstock.router.shell.scrape import LoadScraper
from penstock.router.shell.settings import Settings
from penstock.router.shell.tokens import TokenCollector

if TYPE_CHECKING:
    from penstock.router.shell.discovery.cluster import ClusterDiscovery
    from penstock.router.shell.rpc.server import RpcServer

log = logging.getLogger("penstock.router")


class Router:
    """One router process."""

    def __init__(self, settings: Settings) -> None:
        """Assemble; nothing listens yet."""
        self.settings = settings
        self.fleet = Fleet(max_in_flight=settings.max_in_flight)
        self.models = ModelTable()
        self.gateway = Gateway(settings, self.fleet, self.models)
        self._written = WrittenPolicies(self.gateway.counters.policy_errors)
        self._not_ready = "starting"
        self._scraping: list[asyncio.Task[None]] = []
        self._discovery: ClusterDiscovery | None = None
        self._rpc: RpcServer | None = None
        self._prompts: Prompts | None = None
        self._events: KvEvents | None = None
        collector = Collector(self.gateway.counters, self.fleet, self._gauges)
        self._admin = AdminServers(settings.host, self.why_not_ready, collector, self.gateway.explanations)

    def why_not_ready(self) -> str:
        """Reason why no traffic should come here, empty when it should."""
        return self._not_ready

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`, then leave as gently as the settings allow."""
        settings = self.settings
        self._written.load(settings.policy_file)
        self._admin.start(settings.health_port, settings.metrics_port)
        try:
            if not await _unless(stop, self._discover()):
                return
            self._read_prompts()
            port = await self.gateway.start()
            await self._listen_for_rpc()
            if settings.scrape_interval:
                sizes = self._prompts.learned_block_size if self._prompts is not None else None
                scraper = LoadScraper(self.fleet, settings.scrape_interval, self.gateway.loop.time, sizes)
                self._scraping.append(asyncio.create_task(scraper.run()))
            if settings.adapter_interval:
                self._scraping.append(asyncio.create_task(self.gateway.adapters.run(settings.adapter_interval)))
            _calm_the_collector()
            self._not_ready = ""
            log.info("serving", extra={"port": port, "models": self.models.names(), "workers": len(self.fleet)})
            await stop.wait()
            await self._leave()
        finally:
            for task in self._scraping:
                task.cancel()
            if self._rpc is not None:
                await self._rpc.stop()
            await self.gateway.close()
            if self._prompts is not None and self._events is not None:
                await self._prompts.close()
            if self._events is not None:
                await self._events.close()
            if self._discovery is not None:
                await self._discovery.stop()
            await self._admin.stop()
            self._written.withdraw()

    def _read_prompts(self) -> None:
        """Follow the engines' KV events and make tokens, for the policies that read prompts."""
        self._events = KvEvents(self.fleet, self.settings.kv_index_bytes, clock=self.gateway.loop.time)
        events = EngineEvents(self._events)
        self._prompts = self.gateway.prompts = Prompts(self.settings, self.fleet, self.gateway.loop.time, events)
        self._admin.show(KvEventCollector(self._events))
        self._admin.show(TokenCollector(self._prompts.tokens.counts, self._prompts.books))

    def _gauges(self) -> dict[str, float]:
        return self.gateway.gauges() | (self._rpc.gauges() if self._rpc is not None else {})

    async def _listen_for_rpc(self) -> None:
        """Open the gRPC port, if there is to be one."""
        if not self.settings.grpc_port:
            return
        # gRPC takes 20 MB to import: only those who serve it pay.
        from penstock.router.shell.rpc.server import RpcServer

        gateway = self.gateway
        self._rpc = RpcServer(
            self.settings,
            self.fleet,
            self.models,
            gateway.counters,
            gateway.explanations,
            self._prompts,
            gateway.adapters,
        )
        log.info("serving gRPC", extra={"port": await self._rpc.start()})

    async def _discover(self) -> None:
        """Learn of workers, from the command line or else from Kubernetes."""
        find = policies(self.settings.record)
        policy = find(self.settings.policy)
        if self.settings.workers:
            install(parse_workers(self.settings.workers), self.fleet, self.models, policy, unix_now())
            return
        self._not_ready = "waiting for the first list of pods"
        # The Kubernetes client takes more than a second and 60 MB to import: only those who need it pay.
        from penstock.router.shell.discovery.cluster import ClusterDiscovery, connect

        namespaces = [n.strip() for n in self.settings.watch_namespaces.split(",") if n.strip()]
        self._discovery = ClusterDiscovery(await connect(), self.gateway, namespaces, policy, find)
        await self._discovery.start()

    async def _leave(self) -> None:
        """Unready first, so that others stop sending; then refuse; then wait for what runs."""
        self._not_ready = "draining"
        log.info("draining", extra={"requests": len(self.gateway.exchanges)})
        if self._rpc is not None:
            await self._rpc.drain()
        await asyncio.sleep(self.settings.drain_lag)
        if await self.gateway.drain(self.settings.drain_grace):
            log.info("drained")
        else:
            log.warning("grace ended with requests running", extra={"requests": len(self.gateway.exchanges)})


def _calm_the_collector() -> None:
    """What exists now lives for ever, and requests free themselves by reference counts: collect seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def _unless(stop: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Finish `work` and say True, or give it up when told to stop first."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        return False
    working.result()
    return True


async def serve(settings: Settings) -> None:
    """Run a router until SIGTERM or SIGINT; a second signal ends it at once."""
    stop = asyncio.Event()
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()

    def ask() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)
    await Router(settings).run(stop)
