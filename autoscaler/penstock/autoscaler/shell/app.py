"""The autoscaler's loops: follow the cluster, follow the workers, evaluate and export, and scale."""

import asyncio
import contextlib
import logging
import socket
from collections import defaultdict
from collections.abc import Iterable, Sequence

from kubernetes_asyncio.client import ApiClient
from penstock.autoscaler.decisions import Rules, WorkerHistory, aggregate
from penstock.autoscaler.decisions.cycle import CycleTimes
from penstock.autoscaler.decisions.planners import find_planner
from penstock.autoscaler.shell.cluster import ClusterView
from penstock.autoscaler.shell.export import DeploymentState, PoolState, SignalCollector, Snapshot, WorkerCounts
from penstock.autoscaler.shell.kube import Kube
from penstock.autoscaler.shell.leader import Leader
from penstock.autoscaler.shell.limits_metrics import LimitsCollector
from penstock.autoscaler.shell.objects import Pool, PoolKey, Worker
from penstock.autoscaler.shell.policy_files import PlannerCollector, load_planners
from penstock.autoscaler.shell.scaling import Scaling
from penstock.autoscaler.shell.scaling_metrics import ScalingCollector
from penstock.autoscaler.shell.scraper import Scraper
from penstock.autoscaler.shell.servers import Servers
from penstock.autoscaler.shell.settings import Settings
from penstock.autoscaler.shell.views import Views
from penstock.core.records import Ring
from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry

log = logging.getLogger("penstock.autoscaler")

_STUCK_FACTOR = 6


class Autoscaler:
    """Puts the parts together; `run` ends when it is cancelled."""

    def __init__(self, settings: Settings, api: ApiClient) -> None:
        self._settings = settings
        self._planner_errors = load_planners(settings.policy_files)
        find_planner(settings.planner)
        times = cycle_times(settings)
        self._rules = Rules(settings.signal_window_s, times.fresh_s)
        self._dirty = asyncio.Event()
        self._view = ClusterView(api, settings.watch_namespaces, self._dirty.set)
        self._scraper = Scraper(
            interval_s=settings.scrape_interval_s,
            timeout_s=settings.scrape_timeout_s,
            window_s=settings.signal_window_s,
            at_once=settings.max_scrapes,
        )
        self.collector = SignalCollector()
        kube = Kube(api)
        identity = settings.identity or socket.gethostname()
        self._leader = Leader(kube, settings.namespace, identity) if settings.leader_election else None
        self.scaling = Scaling(
            self._view,
            self._scraper,
            Views(times.view, self._scraper.history),
            kube,
            self._leader,
            times.rules,
            identity,
            Ring(settings.record, "cycles") if settings.record else None,
        )
        registry = CollectorRegistry()
        for each in (
            self.collector,
            ScalingCollector(self.scaling),
            PlannerCollector(self._planner_errors),
            LimitsCollector(self.scaling),
            PROCESS_COLLECTOR,
            PLATFORM_COLLECTOR,
            GC_COLLECTOR,
        ):
            registry.register(each)
        self.servers = Servers(registry, self._before_export, self._why_dead, self._why_unready)
        self._evaluated_at = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Observe until cancelled."""
        settings = self._settings
        async with self._scraper, asyncio.TaskGroup() as group:
            await self.servers.start(settings.host, settings.health_port, settings.metrics_port)
            try:
                group.create_task(self._view.run())
                group.create_task(self._follow())
                group.create_task(self.scaling.run(settings.cycle_interval_s))
                if self._leader is not None:
                    group.create_task(self._leader.run())
                await self._evaluate_for_ever()
            finally:
                await self.servers.stop()

    async def _follow(self) -> None:
        """Hand the scraper every worker that has an address, as soon as the cluster changes."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            reachable = ((_name(w), w.metrics_url) for w in self._view.workers() if w.expected)
            self._scraper.follow((name, url) for name, url in reachable if url)
            # A burst of changes (a rollout, a first list) is taken together.
            await asyncio.sleep(0.1)

    async def _evaluate_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._evaluated_at = loop.time()
            if self._view.listed:
                self.collector.snapshot = evaluate(
                    self._view.workers(), self._view.pools(), self._scraper, self._evaluated_at, self._rules
                )
            await asyncio.sleep(min(1.0, self._settings.scrape_interval_s))

    def _before_export(self) -> None:
        self.collector.now = asyncio.get_running_loop().time()
        self.collector.scrapes = self._scraper.results

    def _why_dead(self) -> str:
        silent = asyncio.get_running_loop().time() - self._evaluated_at
        limit = max(30.0, _STUCK_FACTOR * self._settings.scrape_interval_s)
        return f"no evaluation for {silent:.0f} s" if silent > limit else ""

    def _why_unready(self) -> str:
        return self._why_dead() or ("" if self._view.listed else "the cluster has not been listed yet")


def cycle_times(settings: Settings) -> CycleTimes:
    """The times of a cycle, from the settings."""
    return CycleTimes(
        settings.scrape_interval_s,
        settings.signal_window_s,
        settings.scale_in_window_s,
        settings.time_scale,
        settings.planner,
    )


def evaluate(workers: Sequence[Worker], pools: Iterable[Pool], scraper: Scraper, now: float, rules: Rules) -> Snapshot:
    """The state of every pool and every deployment at `now`."""
    desired = {pool.key: pool.desired for pool in pools}
    members: dict[PoolKey, list[Worker]] = defaultdict(list, {key: [] for key in desired})
    for worker in workers:
        members[worker.pool].append(worker)
    histories = {_name(w): scraper.history(_name(w)) for w in workers if w.expected}
    pool_states = [
        PoolState(key, aggregate(_of(members[key], histories), now, rules), _count(members[key]), desired.get(key))
        for key in sorted(members)
    ]
    return Snapshot(now, tuple(pool_states), _deployments(members, histories, now, rules))


def _deployments(
    members: dict[PoolKey, list[Worker]], histories: dict[str, WorkerHistory], now: float, rules: Rules
) -> tuple[DeploymentState, ...]:
    groups: dict[tuple[str, str, str], list[Worker]] = defaultdict(list)
    for key, group in members.items():
        groups[key.namespace, key.deployment, key.model] += group
    return tuple(
        DeploymentState(*identity, aggregate(_of(group, histories), now, rules))
        for identity, group in sorted(groups.items())
    )


def _of(workers: Iterable[Worker], histories: dict[str, WorkerHistory]) -> list[WorkerHistory]:
    return [histories[_name(worker)] for worker in workers if worker.expected]


def _count(workers: Sequence[Worker]) -> WorkerCounts:
    living = [worker for worker in workers if not worker.terminating]
    return WorkerCounts(
        ready=sum(w.ready for w in living),
        starting=sum(not w.started and not w.ready for w in living),
        unready=sum(w.started and not w.ready for w in living),
        terminating=len(workers) - len(living),
    )


def _name(worker: Worker) -> str:
    return f"{worker.namespace}/{worker.name}"


async def run_until(task: asyncio.Task[None], stop: asyncio.Event) -> None:
    """Run `task` until it fails or `stop` is set; a failure is raised."""
    stopped = asyncio.get_running_loop().create_task(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return
    task.result()
