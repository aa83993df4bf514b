"""A run of the twin: the router's own life of a request, over workers whose clock is virtual.

The router sees the workers as in life: its own reservations at once, their load as it was at the last look, a crash
only when an attempt fails or the readiness probe has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from penstock.core.engine import BlockEvent, BlockStored, Finished, Sequence
from penstock.core.engine import BlockRemoved as Removed
from penstock.core.fleet import Failure, Fleet, Request, Reservation, Worker
from penstock.core.reports import Outcome, Verdict
from penstock.core.traces import Trace, TraceRequest
from penstock.router.decisions.kv_index import KVIndex
from penstock.router.decisions.life import (
    Answered,
    Attempt,
    Cut,
    Ended,
    Event,
    Failed,
    Life,
    PassOn,
    Pause,
    Refuse,
    Resumed,
    live,
)
from penstock.router.decisions.policies import find_policy
from penstock.simulator.blocks import as_bytes, block_hashes
from penstock.simulator.events import ARRIVAL, FAULT, READY, RESUMED, SAMPLE, EventQueue
from penstock.simulator.placement import plan_workers
from penstock.simulator.outcomes import Outcomes
from penstock.simulator.report import Resources, account
from penstock.simulator.scenario import Scenario, WorkerSpec
from penstock.simulator.timeline import Sample, Timeline, look
from penstock.simulator.worker import TwinWorker
from penstock.simulator.workloads.source import Workload, as_workload

__all__ = ["Result", "Twin", "simulate"]

_OK = 200
_TICK_EVENTS = 1024
_SEED_STRIDE = 1_000_003
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
        self.policy = find_policy(scenario.policy)
        self.specs = plan_workers(scenario, self.workload)
        self.fleet = Fleet(len(self.specs), scenario.max_in_flight)
        self.workers = [self._add(number, spec) for number, spec in enumerate(self.specs)]
        self._by_slot = {worker.slot: worker for worker in self.workers}
        self.outcomes = Outcomes(self.workload.total)
        self.timeline = Timeline()
        self._coming = self.workload.opening()
        self._asked: dict[int, TraceRequest] = {}  # Requests that are expected or live, by number.
        self._lives: dict[int, Life] = {}
        self._places: dict[int, Reservation] = {}  # Of requests that wait for their first token.
        self._block_size = self.specs[0].config.block_size
        self._hashes: dict[int, tuple[int, ...]] = {}  # Of requests that live, where their trace names blocks.
        self.index: KVIndex | None = None
        if scenario.prefix_caching and self.workload.shares_prefixes:
            self.index = KVIndex(scenario.index_bytes)
            self.fleet.index_by(scenario.model.name, self.index, self._block_size)

    def run(self, progress: Callable[[int, int], None] | None = None) -> Result:
        """Play the whole trace."""
        total = self.workload.total
        self._begin()
        tick = None if progress is None else lambda: progress(len(self.outcomes), total)
        self.events.run(lambda: bool(self._asked), _TICK_EVENTS, tick)
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
        )

    @property
    def left(self) -> int:
        """How many requests have no outcome yet."""
        return self.workload.total - len(self.outcomes)

    def _add(self, number: int, spec: WorkerSpec) -> TwinWorker:
        slot = self.fleet.add(
            Worker(
                name=spec.name,
                host=spec.node,
                port=8000,
                model=self.scenario.model.name,
                role=spec.role,
                accelerator=spec.accelerator.name,
                prefill_ms=spec.profile.prefill,
                decode_ms=spec.profile.decode,
                experts_ms=spec.profile.experts,
                price_per_hour=spec.accelerator.price_per_hour * spec.parallelism.accelerators,
                kv_capacity_tokens=spec.config.num_blocks * spec.config.block_size,
            )
        )
        return TwinWorker(number, slot, spec, self.events, self, walk=self.scenario.walk)

    def _begin(self) -> None:
        scenario, interval = self.scenario, self.scenario.scrape_interval_s
        for worker in self.workers:
            ready = scenario.start_up.seconds if scenario.cold else 0.0
            self.events.at(ready, READY, worker.number, self._ready, worker.number)
            if interval > 0:
                share = (worker.number + 1) / len(self.workers)
                self.events.at(interval * share, SAMPLE, worker.number, self._sample, worker.number)
        for crash in scenario.crashes:
            self.events.at(crash.at_s, FAULT, crash.worker, self._crash, crash.worker)
        self.events.at(0.0, SAMPLE, _OBSERVER, self._observe)
        self._await_next()

    # What happens to workers

    def _ready(self, now: float, number: int) -> None:
        self.workers[number].restart()
        self.fleet.set_ready(self.workers[number].slot, True)

    def _sample(self, now: float, number: int) -> None:
        worker = self.workers[number]
        self.events.at(now + self.scenario.scrape_interval_s, SAMPLE, number, self._sample, number)
        if worker.alive:
            worker.settle(now)
            stats = worker.engine.stats()
            foreign = stats.running + stats.waiting - int(self.fleet.in_flight[worker.slot])
            self.fleet.sample(worker.slot, foreign, stats.kv_usage, now)

    def _observe(self, now: float, _: int) -> None:
        self.events.at(self.timeline.add(self._look(now)), SAMPLE, _OBSERVER, self._observe)

    def _look(self, now: float) -> Sample:
        return look(self.workers, int(self.fleet.ready.sum()), now)

    def _crash(self, now: float, number: int) -> None:
        worker, scenario = self.workers[number], self.scenario
        if not worker.alive:
            return
        lost = worker.crash(now)
        if self.index is not None:
            self.index.clear(worker.slot)
        self.events.at(now + scenario.readiness_delay_s, FAULT, number, self._unready, number)
        self.events.at(now + scenario.start_up.restart_seconds, READY, number, self._ready, number)
        for sequence in lost:
            self._tell(int(sequence), Failed(now, Failure.RESET), now)

    def _unready(self, now: float, number: int) -> None:
        worker = self.workers[number]
        if not worker.alive:
            self.fleet.set_ready(worker.slot, False)

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
        if self.index is not None:
            self._catch_up(now)
        one = self._asked[index]
        request = Request(
            str(index),
            self.scenario.model.name,
            one.input_tokens,
            one.output_tokens,
            priority=one.priority,
            exact_tokens=True,
            block_hashes=self._named(index),
            ttft_ms=self.scenario.ttft_s * 1e3,
            tpot_ms=self.scenario.tpot_s * 1e3,
        )
        seed = self.scenario.seed * _SEED_STRIDE + index
        life = live(request, self.fleet, self.policy, self.scenario.retries, now, seed)
        self._lives[index] = life
        self._act(index, next(life), now)

    def _named(self, index: int) -> tuple[bytes, ...]:
        """The block hashes of a request that arrives; kept as numbers for the engine."""
        one = self._asked[index]
        if not one.prefix_blocks:
            return ()
        hashes = self._hashes[index] = block_hashes(one, self.workload.block_tokens, self._block_size)
        return as_bytes(hashes)

    def _catch_up(self, now: float) -> None:
        """Let the index hear of the blocks that were overwritten up to now, within runs too."""
        for worker in self.workers:
            if worker.forgetting:
                worker.settle(now)

    def _resume(self, now: float, index: int) -> None:
        if self.index is not None:
            self._catch_up(now)
        self._tell(index, Resumed(now), now)

    def began(self, sequence_id: str, now: float) -> None:
        """The first token of a request is out."""
        place = self._places.pop(int(sequence_id), None)
        if place is not None:
            self.fleet.prefilled(place)
        self._tell(int(sequence_id), Answered(now, _OK), now)

    def cached(self, slot: int, events: tuple[BlockEvent, ...]) -> None:
        """A worker tells the index what its cache holds and what it lost."""
        if self.index is None:
            return
        for event in events:
            if type(event) is BlockStored:
                self.index.store(slot, event.hashes, event.parent)
            elif type(event) is Removed:
                self.index.remove(slot, (event.hash,))
            else:
                self.index.clear(slot)

    def ended(self, finished: Finished, now: float) -> None:
        """The last token of a request is out."""
        index = int(finished.id)
        arrived = self._asked[index].arrival_s
        first = finished.timing.first_token
        outcome = Outcome(
            index, Verdict.COMPLETED, arrived, 0.0,
            ttft_s=None if first is None else first - arrived,
            e2e_s=now - arrived,
            prompt_tokens=finished.prompt_tokens,
            cached_tokens=finished.cached_tokens,
            output_tokens=finished.output_tokens,
            asked_tokens=self._asked[index].output_tokens,
        )  # fmt: skip
        self._tell(index, Ended(now), now)
        self._settle(index, outcome)

    def _tell(self, index: int, event: Event, now: float) -> None:
        try:
            action = self._lives[index].send(event)
        except StopIteration:
            del self._lives[index]
            return
        self._act(index, action, now)

    def _act(self, index: int, action: object, now: float) -> None:
        if type(action) is PassOn:
            return
        if type(action) is Attempt:
            self._attempt(index, action, now)
        elif type(action) is Pause:
            self.events.at(now + action.seconds, RESUMED, index, self._resume, index)
        elif type(action) is Refuse:
            self._lost(index, Verdict.REJECTED, action.rejection.reason, action.rejection.message, now)
        elif type(action) is Cut:
            self._lost(index, Verdict.FAILED, action.failure, f"cut by worker {action.worker.name}", now)
        else:
            raise TypeError(f"request {index}: the twin cannot do {action!r}")

    def _attempt(self, index: int, attempt: Attempt, now: float) -> None:
        worker, one = self._by_slot[attempt.reservation.slot], self._asked[index]
        if not worker.alive:
            self._tell(index, Failed(now, Failure.CONNECT_REFUSED), now)
            return
        hashes = self._hashes.get(index, ())
        sequence = Sequence(str(index), one.input_tokens, one.output_tokens, block_hashes=hashes, arrival=now)
        self._places[index] = attempt.reservation
        try:
            worker.submit(sequence, now)
        except ValueError as error:
            # The engine's answer to what can never fit is a client error, which no retry helps.
            self._lives.pop(index).close()
            self._lost(index, Verdict.FAILED, "Http400", str(error), now)

    def _lost(self, index: int, verdict: Verdict, error: str, detail: str, now: float) -> None:
        self._end_life(index)
        arrived, one = self._asked[index].arrival_s, self._asked[index]
        self._settle(
            index,
            Outcome(
                index, verdict, arrived, 0.0, e2e_s=now - arrived, asked_tokens=one.output_tokens, error=str(error),
                detail=detail,
            ),
        )  # fmt: skip

    def _end_life(self, index: int) -> None:
        life = self._lives.pop(index, None)
        if life is not None:
            life.close()

    def _settle(self, index: int, outcome: Outcome) -> None:
        asked = self._asked.pop(index)
        self.outcomes.put(outcome, asked.tenant, asked.model)
        self._hashes.pop(index, None)
        self._places.pop(index, None)
        for number, following in self.workload.after(index, self.events.now, outcome.verdict is Verdict.COMPLETED):
            self._asked[number] = following
            self.events.at(following.arrival_s, ARRIVAL, number, self._arrive, number)
