"""The operator process: parts put together, run until a signal, ended in order."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

from penstock.operator.shell.feed import Feed
from penstock.operator.shell.kube import Kube
from penstock.operator.shell.leader import Leader
from penstock.operator.shell.logs import set_up_logging
from penstock.operator.shell.metrics import Metrics
from penstock.operator.shell.queue import Key, WorkQueue
from penstock.operator.shell.reconciler import Reconciler
from penstock.operator.shell.recorder import Recorder
from penstock.operator.shell.serving import serve_health, serve_metrics
from penstock.operator.shell.settings import Settings, parse
from penstock.operator.shell.store import Kind, Store
from penstock.operator.shell.sweeper import Sweeper

SETTLE_S = 0.05
"""A burst of events about one deployment becomes one reconcile."""

log = logging.getLogger(__name__)


class Operator:
    """All parts of one operator process, on one event loop."""

    def __init__(self, settings: Settings, kube: Kube) -> None:
        loop = asyncio.get_running_loop()
        dice = random.Random().random
        self._settings = settings
        self._metrics = metrics = Metrics()
        self._queue = queue = WorkQueue(clock=loop.time, random=dice)
        self._store = store = Store(self._touch)
        who = settings.identity
        self._leader = Leader(kube, namespace=settings.namespace, identity=who, random=dice, won=self._won)
        names = settings.watch_namespaces
        self._sweeper = Sweeper(kube=kube, store=store, queue=queue, metrics=metrics, namespaces=names, random=dice)
        kube.unreachable = self._sweeper.soon
        self._feed = Feed(
            self._saw, namespaces=names, known=self._sweeper.sweep, restarted=self._restarted, random=dice
        )
        self._recorder = Recorder(kube, metrics, instance=settings.identity, clock=loop.time)
        self._reconciler = Reconciler(
            kube=kube,
            store=store,
            queue=queue,
            recorder=self._recorder,
            metrics=metrics,
            holds=self._holds,
            endpoint=settings.endpoint,
            sidecar_image=settings.sidecar_image,
            more_policies=settings.routing_policies,
        )
        self._elected = self._leader.elected if settings.leader_election else asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then hand over: writes end first, then the lease goes, then the watches."""
        settings = self._settings
        async with AsyncExitStack() as stack:
            health = await serve_health(settings.health_port, self._not_ready, self._not_alive)
            stack.push_async_callback(health.cleanup)
            metrics = await serve_metrics(settings.metrics_port, self._metrics, self._refresh)
            stack.push_async_callback(metrics.cleanup)
            tasks = [asyncio.create_task(self._work(), name="work")]
            if settings.leader_election:
                tasks.append(asyncio.create_task(self._leader.run(), name="leader"))
            else:
                self._elected.set()
            waiting = asyncio.create_task(stop.wait(), name="stop")
            try:
                await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (waiting, *tasks):
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
                await self._feed.stop()
            for result in ended:
                if isinstance(result, Exception):
                    raise result

    async def _work(self) -> None:
        await self._sweeper.first()
        log.info("the cluster is known; %d deployments", len(self._store.deployments()))
        self._feed.start()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sweeper.run(), name="sweeper")
            group.create_task(self._recorder.run(), name="recorder")
            for number in range(self._settings.workers):
                group.create_task(self._reconciler.run(self._elected), name=f"reconciler {number}")

    def _won(self) -> None:
        """A new leader trusts no memory: it lists, then looks at everything."""
        self._sweeper.soon()
        self._sweeper.resync()

    def _saw(self, kind: Kind, what: str | None, stored: object) -> None:
        if not isinstance(stored, dict):
            return
        if what == "DELETED":
            self._store.remove(kind, stored)
        else:
            self._store.put(kind, stored)

    def _touch(self, key: Key) -> None:
        self._queue.add(key, SETTLE_S)

    def _restarted(self) -> None:
        self._metrics.watch_restarts.inc()
        self._sweeper.soon()

    def _holds(self) -> bool:
        return self._leader.holds() if self._settings.leader_election else True

    def _not_ready(self) -> str:
        return "" if self._sweeper.synced.is_set() else "the cluster was not listed yet"

    def _not_alive(self) -> str:
        return "the watching thread has ended" if self._feed.dead else ""

    def _refresh(self) -> None:
        self._metrics.leader.set(self._holds())
        self._metrics.depth.set(len(self._queue))


async def serve(settings: Settings) -> None:
    """Run an operator until SIGTERM or SIGINT."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Kube() as kube:
        await Operator(settings, kube).run(stop)
    log.info("ended")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m penstock.operator`; gives the exit status."""
    settings = parse(sys.argv[1:] if arguments is None else arguments)
    set_up_logging(settings.log_level)
    asyncio.run(serve(settings))
    return 0
