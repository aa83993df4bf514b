"""The twin of a cluster whose running requests move whole between workers, as Llumnix has it.

A request that moves stands still from the end of the step it is in until its KV is at the other worker, over the
scenario's link; it keeps its place with the client, and its reservation goes with it. Llumnix goes on decoding
meanwhile and stands still for some 20 ms only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from penstock.core.engine import Finished, Sequence
from penstock.core.engine.active import Active, Phase
from penstock.core.traces import Trace
from penstock.simulator.events import CYCLE, EventQueue
from penstock.simulator.lending.rules import check_scenario
from penstock.simulator.policies.llumnix_moves import Holder, Move, Running, plan_moves
from penstock.simulator.requests import Held
from penstock.simulator.scenario import Scenario, WorkerSpec
from penstock.simulator.twin import Twin
from penstock.simulator.worker import TwinWorker
from penstock.simulator.workloads.source import Workload

__all__ = ["MovingRules", "MovingTwin"]


@dataclass(frozen=True, slots=True)
class MovingRules:
    """Llumnix's own defaults."""

    period_s: float = 0.05
    least_steps: float = 3.0
    """A worker whose free blocks last fewer steps sends requests away."""

    def __post_init__(self) -> None:
        if not self.period_s > 0 or not self.least_steps >= 0:
            raise ValueError(f"moving: a period of {self.period_s} s and {self.least_steps} steps cannot be")


class _MovingWorker(TwinWorker):
    """A worker that can be told to let a sequence go."""

    __slots__ = ("_twin",)

    def __init__(self, number: int, slot: int, spec: WorkerSpec, events: EventQueue, twin: MovingTwin) -> None:
        super().__init__(number, slot, spec, events, twin)
        self._twin = twin

    def _abort_now(self, now: float) -> None:
        leaving, self._aborts = self._aborts, []
        there = {active.id: active for active in self.engine.scheduler.running}
        for name in leaving:
            active = there.get(name)
            if active is not None and active.decodes:
                self.engine.abort(name, now)
                self._twin.left_worker(self, active, now)
            else:
                self._twin.stays(name)

    def holder(self, coming: int, leaving: bool) -> Holder:
        """What the rescheduler sees of it; `settle` it first. One request leaves at a time."""
        queues, size = self.engine.scheduler, self.spec.config.block_size
        head = queues.waiting.head()
        decoding = [active for active in queues.running if active.decodes and not leaving]
        shortest = min(decoding, key=lambda active: (active.capacity, active.rank), default=None)
        return Holder(
            queues.pool.free - coming,
            len(queues.running),
            0 if head is None else -(-head.total // size),
            None if shortest is None else Running(shortest.id, shortest.capacity // size + 1),
        )


class MovingTwin(Twin):
    """Engines are those of `scenario`; nothing but requests moves."""

    def __init__(
        self, scenario: Scenario, trace: Trace | Workload, rules: MovingRules, numbers: Iterator[int] | None = None
    ) -> None:
        """Raises `Impossible` for a scenario that moving is not modelled with, and as `Twin` does."""
        check_scenario(scenario)
        self.rules = rules
        self.movers: list[_MovingWorker] = []
        super().__init__(scenario, trace, numbers)
        self._leaving: dict[str, tuple[Move, int]] = {}  # With the blocks it needs there.
        self._incoming: dict[str, tuple[Move, int]] = {}
        self.moved = 0
        """Requests that went to another worker, each time counted."""

    def _add(self, number: int, spec: WorkerSpec) -> TwinWorker:
        alone = super()._add(number, spec)
        worker = _MovingWorker(number, alone.slot, spec, self.events, self)
        self.movers.append(worker)
        return worker

    def _begin(self) -> None:
        super()._begin()
        self.events.at(self.rules.period_s, CYCLE, 0, self._reschedule)

    def _reschedule(self, now: float, _: int) -> None:
        self.events.at(now + self.rules.period_s, CYCLE, 0, self._reschedule)
        self._forget_arrived()
        for worker in self.movers:
            worker.settle(now)
        going = {move.source for move, _ in self._leaving.values()}
        coming = [0] * len(self.movers)
        for move, blocks in (*self._leaving.values(), *self._incoming.values()):
            coming[move.target] += blocks
        holders = [one.holder(coming[one.number], one.number in going) for one in self.movers]
        for move in plan_moves(holders, self.rules.least_steps):
            shortest = holders[move.source].shortest
            assert shortest is not None
            self._leaving[move.id] = move, shortest.blocks
            self.movers[move.source].abort(move.id, now)

    def _forget_arrived(self) -> None:
        """Those that have blocks at their new worker count there by themselves."""
        for name, (move, _) in list(self._incoming.items()):
            there = self.movers[move.target].engine.living()
            if not any(one.id == name and one.phase is Phase.WAITING for one in there):
                del self._incoming[name]

    def stays(self, name: str) -> None:
        """It ended, or was preempted, before it could leave."""
        self._leaving.pop(name, None)

    def left_worker(self, worker: TwinWorker, active: Active, now: float) -> None:
        """A sequence is out of its old worker: have the new one go on with it."""
        move, blocks = self._leaving.pop(active.id)
        target, stream = self.movers[move.target], self.requests.streams[active.id]
        stream.lived.given += active.generated
        stream.lived.cached = stream.lived.cached or 0
        left = active.end_at - active.generated
        self.fleet.release(stream.reservation)
        stream.reservation = self.fleet.reserve(target.slot, active.total, left, cached_tokens=active.total)
        stream.source = Held(worker, worker.life, "", active.computed, leased=False)
        stream.worker = target
        self._incoming[active.id] = move, blocks
        self.moved += 1
        target.submit(Sequence(active.id, active.total, left, arrival=now), now, active.computed)

    # What workers say

    def began(self, sequence_id: str, now: float) -> None:
        """As in `Listener`; the client has long had the first token of one that moved."""
        stream = self.requests.streams.get(sequence_id)
        if stream is None or not stream.begun:
            super().began(sequence_id, now)

    def ended(self, finished: Finished, now: float) -> None:
        """As in `Listener`; the life of one that moved knows its first reservation only."""
        stream = self.requests.streams.get(finished.id)
        super().ended(finished, now)
        if stream is not None:
            self.fleet.release(stream.reservation)
