"""A run of the twin: the router's own life of a request, over workers whose clock is virtual.

The router sees the workers as in life: its own reservations at once, their load as it was at the last look, a crash
only when an attempt fails or the readiness probe has. `requests` carries out what lives ask for, `pulls` moves KV
between workers, `disturbances` lets things go wrong; here they are put together and the clock is turned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from penstock.core.engine import BlockEvent, Finished, Transfer
from penstock.core.fleet import Fleet, Role, Worker
from penstock.core.reports import Outcome, Verdict
from penstock.core.traces import Trace, TraceRequest
from penstock.router.decisions.kv_index import KVIndex
from penstock.simulator.blocks import block_hashes
from penstock.simulator.disturbances import Disturbances
from penstock.simulator.events import ARRIVAL, READY, SAMPLE, EventQueue
from penstock.simulator.hearing import Hearing
from penstock.simulator.outcomes import Outcomes
from penstock.simulator.placement import nodes_of, plan_workers
from penstock.simulator.policies import find_twin_policy
from penstock.simulator.power_domains import DomainUse, PowerMeters
from penstock.simulator.pulls import KvMoved, KvPulls
from penstock.simulator.reach import Reach
from penstock.simulator.report import Resources, account
from penstock.simulator.requests import Requests
from penstock.simulator.scaling import Scaled, Scaling
from penstock.simulator.scenario import Scenario, WorkerSpec
from penstock.simulator.timeline import Sample, Timeline, look
from penstock.simulator.transfers import transfer_ms_per_token
from penstock.simulator.worker import TwinWorker
from penstock.simulator.workloads.source import Workload, as_workload

__all__ = ["Result", "Twin", "simulate"]

_TICK_EVENTS = 1024
_OBSERVER = -1  # Its place among those that take samples.


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to."""

    outcomes: Outcomes
    """In the order of the trace, or of the workload's numbers."""
    resources: Resources
    end_s: float
    events: int
    steps: int
    """Engine steps, those of a run counted one by one."""
    timeline: tuple[Sample, ...] = ()
    """The cluster over the run; at most some hundred samples at equal intervals, and one at the end."""
    kv_moved: KvMoved = field(default_factory=KvMoved)
    """What went from prefill to decode workers."""
    continued: int = 0
    """Answers that broke after their first token and were continued elsewhere, or could have been."""
    scaling: Scaled | None = None
    """What the autoscaler did, where there is one."""
    power: tuple[DomainUse, ...] = ()


def simulate(scenario: Scenario, trace: Trace | Workload, progress: Callable[[int, int], None] | None = None) -> Result:
    """Play a trace, or any workload, through a cluster; `progress(done, all)` is called now and then.

    The same scenario and trace give the same result. Raises `Impossible` when no worker can be, ValueError for an
    unknown policy.
    """
    return Twin(scenario, trace).run(progress)


class Twin:
    """One run. Public attributes are there for tests; `run` may be called once."""

    def __init__(self, scenario: Scenario, trace: Trace | Workload, numbers: Iterator[int] | None = None) -> None:
        """`numbers` are `EventQueue`'s."""
        self.scenario, self.workload = scenario, as_workload(trace)
        self.events = EventQueue(numbers)
        policy = find_twin_policy(scenario.policy)
        self.specs = plan_workers(scenario, self.workload)
        self.fleet = Fleet(len(self.specs), scenario.max_in_flight)
        self.workers = [self._add(number, spec) for number, spec in enumerate(self.specs)]
        self.outcomes = Outcomes(self.workload.total)
        self.timeline = Timeline()
        self._coming = self.workload.opening()
        self._asked: dict[int, TraceRequest] = {}  # Requests that are expected or live, by number.
        self._block_size = self.specs[0].config.block_size
        self.index: KVIndex | None = None
        if scenario.prefix_caching and self.workload.shares_prefixes:
            self.index = KVIndex(scenario.index_bytes)
            self.fleet.index_by(scenario.model.name, self.index, self._block_size)
        self._hearing = Hearing(self.index)
        self.reach = Reach()
        self.pulls = KvPulls(scenario, self.events)
        by_slot = self._by_slot = {worker.slot: worker for worker in self.workers}
        roles = {spec.role for spec in self.specs} | {pool.role for pool in scenario.pools}
        apart = roles != {Role.PREFILL_DECODE}
        self.requests = Requests(
            scenario, self.events, self.fleet, policy, by_slot, self.pulls, self.reach,
            split=scenario.split if apart else None, before_pick=self._catch_up, settle=self._settled,
        )  # fmt: skip
        self._disturbances = Disturbances(
            scenario, self.events, self.fleet, self.workers, self.requests, self.pulls, self.reach, self._hearing
        )
        self.scaling = None if scenario.autoscaling is None else Scaling(scenario, self.workload, self.events, self)
        nodes = nodes_of(scenario.groups) if self.scaling is None else self.scaling.inventory.nodes
        self._meters = PowerMeters(scenario.power, nodes, self.workers, self.events, scenario.power_interval_s)

    def run(self, progress: Callable[[int, int], None] | None = None) -> Result:
        """Play the whole trace."""
        total, scenario = self.workload.total, self.scenario
        self._begin()
        tick = None if progress is None else lambda: progress(len(self.outcomes), total)
        until = 0.0 if scenario.autoscaling is None else scenario.autoscaling.until_s
        more = (lambda: self._asked or self.events.now < until) if until else self._asked.__len__
        self.events.run(more, _TICK_EVENTS, tick)
        if progress is not None:
            progress(len(self.outcomes), total)
        end = self.events.now
        return Result(
            self.outcomes,
            account(self.workers, end),
            end,
            self.events.handled,
            sum(worker.steps for worker in self.workers),
            self.timeline.end(self._look(end)),
            self.pulls.moved(),
            self.requests.continued,
            None if self.scaling is None else self.scaling.report(),
            self._meters.end(end),
        )

    @property
    def left(self) -> int:
        """How many requests have no outcome yet."""
        return self.workload.total - len(self.outcomes)

    def _add(self, number: int, spec: WorkerSpec) -> TwinWorker:
        scenario = self.scenario
        slot = self.fleet.add(
            Worker(
                name=spec.name,
                host=spec.node,
                port=8000,
                model=scenario.model.name,
                role=spec.role,
                accelerator=spec.accelerator.name,
                domain=scenario.topology.domain_of(spec.nodes[0]),
                pool=spec.pool,
                prefill_ms=spec.profile.prefill,
                decode_ms=spec.profile.decode,
                experts_ms=spec.profile.experts,
                transfer_ms=transfer_ms_per_token(scenario, spec),
                price_per_hour=spec.accelerator.price_per_hour * spec.parallelism.accelerators,
                kv_capacity_tokens=spec.config.num_blocks * spec.config.block_size,
            )
        )
        return TwinWorker(number, slot, spec, self.events, self, walk=scenario.walk)

    # Workers that come and go

    def add_worker(self, spec: WorkerSpec, now: float) -> TwinWorker:
        """A worker has its accelerators; its engine is not up."""
        worker = self._add(len(self.workers), spec)
        worker.alive, worker.born_s = False, now
        self.workers.append(worker)
        self._by_slot[worker.slot] = worker
        self._look_at(worker, now + self.scenario.scrape_interval_s)
        return worker

    def worker_up(self, worker: TwinWorker, now: float) -> None:
        """Its first readiness probe passes."""
        self._disturbances.ready(now, worker.number)

    def withdraw(self, worker: TwinWorker) -> None:
        """No new picks for it."""
        self.fleet.withdraw(worker.slot)

    def reachable(self, worker: TwinWorker) -> bool:
        """Whether what it says arrives."""
        return worker.number not in self.reach.lost

    def remove_worker(self, worker: TwinWorker, now: float) -> int:
        """It is gone; how many sequences went with it."""
        lost = worker.crash(now)
        worker.gone_s = now
        self._hearing.vacate(worker.slot)
        self.pulls.worker_lost(worker, now)
        self.requests.lost(worker, lost, now)
        del self._by_slot[worker.slot]
        self.fleet.remove(worker.slot)
        return len(lost)

    def _begin(self) -> None:
        scenario, interval = self.scenario, self.scenario.scrape_interval_s
        for worker in self.workers:
            ready = scenario.start_up.seconds if scenario.cold else 0.0
            self.events.at(ready, READY, worker.number, self._disturbances.ready, worker.number)
            self._look_at(worker, interval * (worker.number + 1) / len(self.workers))
        self._disturbances.begin()
        if self.scaling is not None:
            self.scaling.begin(list(self.workers))
        if scenario.power:
            self._meters.begin()
        self.events.at(0.0, SAMPLE, _OBSERVER, self._observe)
        self._await_next()

    # What is seen of workers

    def _look_at(self, worker: TwinWorker, at: float) -> None:
        if self.scenario.scrape_interval_s > 0:
            self.events.at(at, SAMPLE, worker.number, self._sample, worker.number)

    def _sample(self, now: float, number: int) -> None:
        worker = self.workers[number]
        if worker.gone_s <= now:
            return
        self.events.at(now + self.scenario.scrape_interval_s, SAMPLE, number, self._sample, number)
        if worker.alive and number not in self.reach.lost:
            worker.settle(now)
            load = worker.engine.load()
            foreign = load.running + load.waiting - int(self.fleet.in_flight[worker.slot])
            self.fleet.sample(worker.slot, foreign, load.kv_usage, now)

    def _observe(self, now: float, _: int) -> None:
        self.events.at(self.timeline.add(self._look(now)), SAMPLE, _OBSERVER, self._observe)

    def _look(self, now: float) -> Sample:
        return look(self.workers, int(self.fleet.ready.sum()), now)

    # What workers say

    def began(self, sequence_id: str, now: float) -> None:
        """The first token of a sequence is out."""
        self.requests.began(sequence_id, now)

    def ended(self, finished: Finished, now: float) -> None:
        """The last token of a sequence is out."""
        self.requests.ended(finished, now)

    def cached(self, slot: int, events: tuple[BlockEvent, ...]) -> None:
        """A worker tells the index what its cache holds and what it lost."""
        self._hearing.hear(slot, events)

    def wanted(self, worker: TwinWorker, transfer: Transfer, now: float) -> None:
        """A decode worker has blocks for a prompt that another worker computed."""
        stream = self.requests.streams.get(transfer.id)
        if stream is None:  # The router has given it up and cannot say so: whence the KV was to come is forgotten.
            worker.remote(transfer.id, False, now)
        else:
            self.pulls.pull(stream, transfer, now)

    def aborted(self, worker: TwinWorker, sequence_id: str, now: float) -> None:
        """A worker has ended a sequence that nobody waits for."""
        self.pulls.drop(worker, sequence_id, now)

    def _catch_up(self, now: float) -> None:
        """Let the index hear of the blocks that were overwritten up to now, within runs too."""
        if self.index is not None:
            for worker in self.workers:
                if worker.forgetting:
                    worker.settle(now)

    # What happens to requests

    def _await_next(self) -> None:
        """Expect the next request that comes by itself; one at a time, so that a long workload fills no memory."""
        coming = next(self._coming, None)
        if coming is not None:
            self._asked[coming[0]] = coming[1]
            self.events.at(coming[1].arrival_s, ARRIVAL, coming[0], self._arrive_by_itself, coming[0])

    def _arrive_by_itself(self, now: float, index: int) -> None:
        self._await_next()
        self._arrive(now, index)

    def _arrive(self, now: float, index: int) -> None:
        asked = self._asked[index]
        hashes: tuple[int, ...] = ()
        if asked.prefix_blocks:
            hashes = block_hashes(asked, self.workload.block_tokens, self._block_size)
        self.requests.arrive(now, index, asked, hashes)

    def _settled(self, outcome: Outcome) -> None:
        index = outcome.index
        asked = self._asked.pop(index)
        self.outcomes.put(outcome, asked.tenant, asked.model)
        for number, following in self.workload.after(index, self.events.now, outcome.verdict is Verdict.COMPLETED):
            self._asked[number] = following
            self.events.at(following.arrival_s, ARRIVAL, number, self._arrive, number)
