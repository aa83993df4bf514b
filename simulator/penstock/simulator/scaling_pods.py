"""Workers that come and go: what operator, ReplicaSet, scheduler and kubelet do with a wish for replicas.

A wish becomes pods at once. A pod finds its node when the scheduler has looked, or when one is free; then image,
weights and engine take their time before it is ready. Who is deleted is chosen as a ReplicaSet chooses: without a
node, then not ready, then by deletion cost, then the youngest. A deleted worker is withdrawn from the router, ends when
it has had no work for a while, and holds its accelerators until then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from penstock.autoscaler.decisions.observations import TimedSample
from penstock.core.fleet import Role
from penstock.simulator.events import DRAIN, READY, EventQueue
from penstock.simulator.inventory import Inventory, Wanting
from penstock.simulator.placement import Layout, Taken, worker_of_pool
from penstock.simulator.scaling_rules import Drain
from penstock.simulator.scenario import PoolSpec, Scenario, WorkerSpec
from penstock.simulator.worker import TwinWorker

__all__ = ["Host", "Pod", "Pods"]

_POD_KEYS = 1 << 32  # Behind the keys of all workers.


@dataclass(slots=True, eq=False)
class Pod:
    """One worker's pod, from its making to its end. Times in seconds."""

    name: str
    pool: PoolSpec
    number: int
    """Of its making, over all pools."""
    created_s: float
    taken: Taken | None = None
    """Its accelerators; None while it waits for a node."""
    worker: TwinWorker | None = None
    started_s: float | None = None
    """When its engine was up for the first time."""
    deleted_s: float | None = None
    samples: deque[TimedSample] = field(default_factory=deque)
    idle_since: float = 0.0
    ended: int = 0
    """Sequences that had ended at the last look of its drain."""
    overdue: bool = False
    """Whether SIGTERM found it at work."""

    @property
    def ready_since(self) -> float | None:
        """None while it is not ready."""
        return None if self.worker is None else self.worker.ready_since

    @property
    def started(self) -> bool:
        """Whether its engine is up: from now on silence is missing data."""
        worker = self.worker
        return worker is not None and self.started_s is not None and (worker.alive or not worker.life)

    @property
    def accelerators(self) -> int:
        """Those it holds."""
        return self.pool.parallelism.accelerators if self.taken is not None else 0


class Host(Protocol):
    """Who runs workers: the twin."""

    def add_worker(self, spec: WorkerSpec, now: float) -> TwinWorker:
        """A worker has its accelerators; its engine is not up."""
        ...

    def worker_up(self, worker: TwinWorker, now: float) -> None:
        """Its first readiness probe passes."""
        ...

    def withdraw(self, worker: TwinWorker) -> None:
        """No new picks for it."""
        ...

    def reachable(self, worker: TwinWorker) -> bool:
        """Whether what it says arrives."""
        ...

    def remove_worker(self, worker: TwinWorker, now: float) -> int:
        """It is gone; how many sequences went with it."""
        ...


class Pods:
    """Every pod that is there, oldest first."""

    def __init__(
        self, scenario: Scenario, events: EventQueue, host: Host, layout: Layout, inventory: Inventory, drain: Drain
    ) -> None:
        self._scenario, self._events, self._host, self._layout = scenario, events, host, layout
        self._inventory, self._drain = inventory, drain
        self.pods: list[Pod] = []
        self._made = 0
        self._made_of: dict[str, int] = {pool.name: 0 for pool in scenario.pools}
        self.on_start: Callable[[Pod, float], None] = lambda pod, now: None
        """Told of each pod whose engine is up."""
        self.overdue = self.lost = 0
        """Workers that SIGTERM found at work; sequences that ended with them."""

    def adopt(self, workers: list[TwinWorker]) -> None:
        """The pods of the workers that are there from the start."""
        start = self._scenario.start_up
        cold = self._scenario.cold
        for worker, taken in zip(workers, self._layout.taken, strict=True):
            pool = next(pool for pool in self._scenario.pools if pool.name == worker.spec.pool)
            pod = self._make(pool, 0.0 if cold else -start.seconds)
            pod.taken, pod.worker = taken, worker
            if cold:
                worker.alive = False
            at = start.seconds - start.warm_up if cold else 0.0
            self._events.at(at, READY, _POD_KEYS + pod.number, partial(self._engine_up, pod))

    def of(self, pool: str) -> list[Pod]:
        """Pods of a pool, terminating ones included."""
        return [pod for pod in self.pods if pod.pool.name == pool]

    def scale(self, pool: PoolSpec, replicas: int, now: float, cost: Callable[[Pod], int]) -> None:
        """Make pods, or delete some, so that as many live as are wished for."""
        living = [pod for pod in self.of(pool.name) if pod.deleted_s is None]
        for _ in range(replicas - len(living)):
            pod = self._make(pool, now)
            at = now + self._scenario.start_up.schedule
            self._events.at(at, READY, _POD_KEYS + pod.number, lambda time, _: self.place_waiting(time))
        living.sort(key=lambda pod: _rank(pod, cost))
        for pod in living[: max(0, len(living) - replicas)]:
            self._delete(pod, now)

    def place_waiting(self, now: float) -> None:
        """Give nodes to those that wait, oldest first; order nodes for the rest."""
        looked = now - self._scenario.start_up.schedule
        waiting = []
        for pod in [pod for pod in self.pods if pod.taken is None and pod.created_s <= looked + 1e-9]:
            wanting = Wanting(pod.pool.accelerator, pod.pool.parallelism)
            taken = self._inventory.place(wanting)
            if taken is None:
                waiting.append(wanting)
            else:
                self._start(pod, taken, now)
        if waiting:
            self._inventory.order_for(waiting, now)

    def _make(self, pool: PoolSpec, created_s: float) -> Pod:
        number = self._made_of[pool.name]
        self._made_of[pool.name] = number + 1
        pod = Pod(f"{pool.name}-{number}", pool, self._made, created_s)
        self._made += 1
        self.pods.append(pod)
        return pod

    def _start(self, pod: Pod, taken: Taken, now: float) -> None:
        layout, start = self._layout, self._scenario.start_up
        spec = worker_of_pool(self._scenario, pod.pool, pod.name, taken, layout.context, layout.block_size)
        pod.taken, pod.worker = taken, self._host.add_worker(spec, now)
        up = now + start.image + start.weights + start.engine
        self._events.at(up, READY, _POD_KEYS + pod.number, partial(self._engine_up, pod))
        self._events.at(up + start.warm_up, READY, _POD_KEYS + pod.number, partial(self._ready, pod), 1)

    def _engine_up(self, pod: Pod, now: float, _: int) -> None:
        if pod in self.pods:
            pod.started_s = now
            self.on_start(pod, now)

    def _ready(self, pod: Pod, now: float, _: int) -> None:
        if pod.worker is not None and pod in self.pods:
            self._host.worker_up(pod.worker, now)

    def _delete(self, pod: Pod, now: float) -> None:
        pod.deleted_s = pod.idle_since = now
        if pod.worker is None or pod.ready_since is None:
            self._end(pod, now)  # Nothing runs there, so nothing is waited for.
            return
        self._host.withdraw(pod.worker)
        self._look(pod, now)

    def _look(self, pod: Pod, now: float, _: int = 0) -> None:
        """One look of the drain: go on waiting, or end."""
        worker, deleted = pod.worker, pod.deleted_s
        assert worker is not None and deleted is not None
        working = self._working(pod, worker, now)
        if now >= deleted + self._drain.deadline_s and working and not pod.overdue:
            pod.overdue = True
            self.overdue += 1
        idle = now - pod.idle_since >= (0.0 if pod.overdue else self._idle_s(pod.pool))
        if (idle and not working and self._host.reachable(worker)) or now >= deleted + self._drain.grace_s:
            self._end(pod, now)
        else:
            self._events.at(now + self._drain.poll_s, DRAIN, pod.number, partial(self._look, pod))

    def _working(self, pod: Pod, worker: TwinWorker, now: float) -> bool:
        worker.settle(now)
        stats = worker.engine.stats()
        ended, before = sum(stats.finished.values()), pod.ended
        working = bool(stats.running or stats.waiting or stats.held)
        if working or ended != before:
            pod.idle_since, pod.ended = now, ended
        return working

    def _idle_s(self, pool: PoolSpec) -> float:
        """Blocks on lease are work that no gauge shows: where KV moves, a lease must have passed."""
        if pool.role is Role.PREFILL_DECODE:
            return self._drain.idle_s
        return min(max(self._drain.idle_s, self._scenario.split.lease), self._drain.deadline_s)

    def _end(self, pod: Pod, now: float) -> None:
        self.pods.remove(pod)
        if pod.worker is not None:
            self.lost += self._host.remove_worker(pod.worker, now)
        if pod.taken is not None:
            self._inventory.give_back(pod.taken)
            self.place_waiting(now)


def _rank(pod: Pod, cost: Callable[[Pod], int]) -> tuple[bool, bool, int, float, int]:
    """Whom a ReplicaSet deletes first, least first."""
    ready = pod.ready_since
    return pod.taken is not None, ready is not None, cost(pod), -(ready or 0.0), -pod.number
