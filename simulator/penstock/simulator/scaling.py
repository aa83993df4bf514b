"""The autoscaler in the twin's loop: the cluster's own cycle on the virtual clock.

What it sees is as old as its scrapes are, what it wants becomes pods with all that this takes. Between the two stand
the very functions that the autoscaler's process runs: observe, plan, guard, remember.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from penstock.autoscaler.decisions.capacity import Objectives, WorkerModel
from penstock.autoscaler.decisions.cycle import Decided, Looked, Outcome, conclude, decide, in_order
from penstock.autoscaler.decisions.guard import Guarded
from penstock.autoscaler.decisions.history import History
from penstock.autoscaler.decisions.observations import WorkerHistory
from penstock.autoscaler.decisions.observe import Memory, Times, observe
from penstock.autoscaler.decisions.report import deletion_costs, scaled
from penstock.autoscaler.decisions.seen import SeenDeployment, SeenPool, SeenWorker
from penstock.autoscaler.decisions.snapshot import ClusterSnapshot, Key
from penstock.core.traces import Trace
from penstock.simulator.events import CYCLE, EventQueue
from penstock.simulator.inventory import Inventory
from penstock.simulator.placement import Layout, lay_out, worker_of_pool
from penstock.simulator.scaling_pages import Scrapes
from penstock.simulator.scaling_pods import Host, Pod, Pods
from penstock.simulator.scaling_rules import Autoscaling, Bounds
from penstock.simulator.scenario import Impossible, PoolSpec, Scenario, WorkerSpec
from penstock.simulator.worker import TwinWorker
from penstock.simulator.workloads.source import Workload

__all__ = ["Change", "Scaled", "Scaling"]

KEY: Key = ("twin", "simulated")
_ALWAYS_BUSY = 1_000_000


@dataclass(frozen=True, slots=True)
class Change:
    """Replicas of a pool were written."""

    at_s: float
    pool: str
    before: int
    after: int
    why: str


@dataclass(frozen=True, slots=True)
class Look:
    """The pools as one cycle found them; the sequences go by pool, in the scenario's order."""

    at_s: float
    replicas: tuple[int, ...]
    ready: tuple[int, ...]
    pods: tuple[int, ...]
    """Every pod object, terminating ones included."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """What the autoscaler did in a run."""

    pools: tuple[str, ...]
    changes: tuple[Change, ...]
    looks: tuple[Look, ...]
    refusals: dict[str, int]
    """Cycles in which the guard refused something, by reason."""
    most_accelerators: int
    """The most that pods held at one time, at the looks of cycles."""
    overdue: int
    """Workers that SIGTERM found at work, at the end of their grace."""
    lost: int
    """Sequences that ended with their worker."""
    nodes_ordered: dict[str, int]
    nodes_added: dict[str, int]


class Scaling:
    """Runs cycles from the first event to the last. Attributes are there for tests and the report."""

    def __init__(self, scenario: Scenario, workload: Trace | Workload, events: EventQueue, host: Host) -> None:
        """Raises `Impossible` for a scenario whose pools cannot be scaled so."""
        autoscaling = scenario.autoscaling
        assert autoscaling is not None
        _check(scenario, autoscaling)
        self._scenario, self._rules, self._events, self._host = scenario, autoscaling, events, host
        layout = lay_out(scenario, workload)
        self.inventory = Inventory(layout.nodes, autoscaling.provisioning, events, self._node_came)
        self.pods = Pods(scenario, events, host, layout, self.inventory, autoscaling.drain)
        times = autoscaling.times
        self._scrapes = Scrapes(events, times.scrape_interval_s, times.signal_window_s, scenario.seed, self._answers)
        self.pods.on_start = self._scrapes.follow
        self._models = {pool.name: _worker_model(scenario, pool, layout) for pool in scenario.pools}
        self.replicas = {pool.name: pool.replicas for pool in scenario.pools}
        self._memory: Memory = {}
        self.history = History(since=0.0)
        self.last: tuple[Looked, Outcome] | None = None
        """What the last cycle knew and decided."""
        self._changes: list[Change] = []
        self._looks: list[Look] = []
        self._refusals: Counter[str] = Counter()
        self._most = 0

    def begin(self, workers: list[TwinWorker]) -> None:
        """Take these workers as those of the start, and run cycles."""
        self.pods.adopt(workers)
        self._events.at(self._rules.cycle_interval_s, CYCLE, 0, self._cycle)

    def report(self) -> Scaled:
        """Everything up to now."""
        return Scaled(
            tuple(pool.name for pool in self._scenario.pools),
            tuple(self._changes),
            tuple(self._looks),
            dict(sorted(self._refusals.items())),
            self._most,
            self.pods.overdue,
            self.pods.lost,
            self.inventory.ordered(),
            self.inventory.added(),
        )

    def _cycle(self, now: float, _: int) -> None:
        self._events.at(now + self._rules.cycle_interval_s, CYCLE, 0, self._cycle)
        self._note(now)
        rules = self._rules.times.rules
        looked = Looked(self._look(now), self._look(now), self.history)
        outcome = decide(looked, rules)
        self.last = looked, outcome
        done = [self._act(each, now) for each in outcome.joined(looked.fresh)]
        self.history = conclude(looked, outcome, done, rules)

    def _act(self, decided: Decided, now: float) -> Guarded:
        self._refusals.update(str(refusal.refused) for refusal in decided.guarded.refusals)
        if self._rules.mode != "Auto":
            return decided.nothing_done()
        for name in in_order(decided):
            pool, view, wanted = self._pool(name), decided.view.pool(name), decided.guarded.moves[name]
            self._changes.append(
                Change(now, name, view.replicas, wanted, scaled(view, wanted, decided.plan, decided.guarded))
            )
            self.replicas[name] = wanted
            self.pods.scale(pool, wanted, now, _deletion_cost)
        return replace(decided.guarded, moves={pool.name: self.replicas[pool.name] for pool in decided.view.pools})

    # What is seen

    def _look(self, now: float) -> ClusterSnapshot:
        rules, scenario = self._rules, self._scenario
        seen = SeenDeployment(
            key=KEY,
            mode=rules.mode,
            objectives=Objectives(scenario.ttft_s, scenario.tpot_s, rules.attainment),
            pools=tuple(sorted((self._seen(pool) for pool in scenario.pools), key=lambda pool: pool.name)),
            ranges={pool.name: (bounds.least, bounds.most) for pool, bounds in self._bounded()},
            max_accelerators=rules.max_accelerators,
            max_cost=rules.max_cost,
            model=scenario.model.name,
        )
        limits, times = self.inventory.limits(), Times(now, now)
        snapshot, self._memory = observe([seen], limits, self._memory, self.history, times, rules.times.view)
        return snapshot

    def _seen(self, pool: PoolSpec) -> SeenPool:
        spec, model = self._models[pool.name]
        bounds = next(bounds for each, bounds in self._bounded() if each is pool)
        accelerators = pool.parallelism.accelerators
        return SeenPool(
            name=pool.name,
            pool=pool.name,
            role=pool.role.api_name,
            accelerator=pool.accelerator,
            accelerators=accelerators,
            cost_per_hour=spec.accelerator.price_per_hour * accelerators,
            worker=model,
            replicas=self.replicas[pool.name],
            least=bounds.least,
            most=bounds.most,
            workers=tuple(_seen_worker(pod) for pod in self.pods.of(pool.name)),
            startup_s=self._scenario.start_up.seconds,
            provision_s=self.inventory.provision_s(pool.accelerator),
        )

    def _bounded(self) -> list[tuple[PoolSpec, Bounds]]:
        given = {bounds.pool: bounds for bounds in self._rules.bounds}
        return [
            (pool, given.get(pool.name) or Bounds(pool.name, pool.replicas, pool.replicas))
            for pool in self._scenario.pools
        ]

    def _answers(self, pod: Pod) -> bool:
        return pod.worker is not None and self._host.reachable(pod.worker)

    def _note(self, now: float) -> None:
        pools = [(pool, self.pods.of(pool.name)) for pool in self._scenario.pools]
        self._most = max(self._most, sum(pod.accelerators for pod in self.pods.pods))
        self._looks.append(
            Look(
                now,
                tuple(self.replicas[pool.name] for pool, _ in pools),
                tuple(sum(p.ready_since is not None and p.deleted_s is None for p in pods) for _, pods in pools),
                tuple(len(pods) for _, pods in pools),
            )
        )

    def _node_came(self, now: float) -> None:
        self.pods.place_waiting(now)

    def _pool(self, name: str) -> PoolSpec:
        return next(pool for pool in self._scenario.pools if pool.name == name)


def _seen_worker(pod: Pod) -> SeenWorker:
    return SeenWorker(
        history=WorkerHistory(pod.name, tuple(pod.samples) if pod.started else ()),
        scheduled=pod.taken is not None,
        started=pod.started,
        ready=pod.ready_since is not None,
        terminating=pod.deleted_s is not None,
        created=pod.created_s,
        ready_since=pod.ready_since,
    )


def _deletion_cost(pod: Pod) -> int:
    """As the autoscaler hints it: requests at the last look; one that does not answer is thought to be busy."""
    if not pod.samples:
        return _ALWAYS_BUSY if pod.ready_since is not None else 0
    last = pod.samples[-1].sample
    return deletion_costs({pod.name: (last.running or 0.0) + (last.waiting or 0.0)})[pod.name]


def _worker_model(scenario: Scenario, pool: PoolSpec, layout: Layout) -> tuple[WorkerSpec, WorkerModel]:
    """What a worker of a pool would be, and what that can do. Raises `Impossible` where the model does not fit."""
    nodes = [node for node in layout.nodes if node.accelerator.name == pool.accelerator]
    if not nodes:
        raise Impossible(f"pool {pool.name}: no node has {pool.accelerator}, so nothing says what a worker there does")
    taken = ((nodes[0], pool.parallelism.accelerators),)
    spec = worker_of_pool(scenario, pool, pool.name, taken, layout.context, layout.block_size)
    tokens = spec.config.num_blocks * spec.config.block_size
    return spec, WorkerModel(spec.profile, tokens, spec.config.max_num_seqs)


def _check(scenario: Scenario, autoscaling: Autoscaling) -> None:
    if not scenario.pools:
        raise Impossible("an autoscaler needs pools: name them, with their replicas at the start")
    names = {pool.name for pool in scenario.pools}
    for bounds in autoscaling.bounds:
        if bounds.pool not in names:
            raise Impossible(f"autoscaler: there is no pool {bounds.pool}; there is {', '.join(sorted(names))}")
