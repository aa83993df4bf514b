"""Workers that come up, die, slow down or cannot be reached, at the times a scenario says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from penstock.core.fleet import Fleet
from penstock.simulator.events import FAULT, READY, EventQueue
from penstock.simulator.faults import Crash, Fault, LostEvents, Partition, Slow, Throttle
from penstock.simulator.hearing import Hearing
from penstock.simulator.pulls import KvPulls
from penstock.simulator.reach import Reach
from penstock.simulator.requests import Requests
from penstock.simulator.scenario import Impossible, Scenario
from penstock.simulator.worker import TwinWorker

__all__ = ["Disturbances"]


class Disturbances:
    """Every fault of a run, and the readiness of workers."""

    def __init__(
        self,
        scenario: Scenario,
        events: EventQueue,
        fleet: Fleet,
        workers: list[TwinWorker],
        requests: Requests,
        pulls: KvPulls,
        reach: Reach,
        hearing: Hearing,
    ) -> None:
        """Raises `Impossible` for a fault of a worker that there is not."""
        self._scenario, self._events, self._fleet, self._workers = scenario, events, fleet, workers
        self._requests, self._pulls, self._reach, self._hearing = requests, pulls, reach, hearing
        self._faults: tuple[Fault, ...] = (*scenario.crashes, *scenario.faults)
        self._slowed: dict[int, list[Slow | Throttle]] = {}
        self._lasting: list[Fault] = []
        for fault in self._faults:
            _check(fault, len(workers))

    def begin(self) -> None:
        """Put every fault, and every end of one, into the queue; those of one instant happen in their order here."""
        for number, fault in enumerate(self._faults):
            key = 2 * (number - len(self._faults))
            if isinstance(fault, Crash):
                self._at(fault.at_s, key, partial(self._crash, fault.worker))
            else:
                self._at(fault.at_s, key, partial(self._break, fault))
                self._at(fault.until_s, key + 1, partial(self._mend, fault))

    def ready(self, now: float, number: int) -> None:
        """A worker passes its readiness probe, with an empty cache; one that was deleted meanwhile never does."""
        worker = self._workers[number]
        if worker.gone_s > now:
            worker.restart(now)
            self._fleet.set_ready(worker.slot, True)

    def _at(self, time: float, key: int, what: Callable[[float], None]) -> None:
        self._events.at(time, FAULT, key, lambda now, _: what(now))

    def _crash(self, number: int, now: float) -> None:
        worker, scenario = self._workers[number], self._scenario
        if not worker.alive:
            return
        lost = worker.crash(now)
        self._hearing.forget(worker.slot)
        self._events.at(now + scenario.readiness_delay_s, FAULT, number, self._unready, number)
        self._events.at(now + scenario.start_up.restart_seconds, READY, number, self.ready, number)
        self._pulls.worker_lost(worker, now)
        self._requests.lost(worker, lost, now)

    def _unready(self, now: float, number: int) -> None:
        worker = self._workers[number]
        if not worker.alive and worker.gone_s > now:
            self._fleet.set_ready(worker.slot, False)

    def _break(self, fault: Fault, now: float) -> None:
        worker = self._workers[fault.worker]
        if worker.gone_s <= now:
            return
        self._lasting.append(fault)
        if isinstance(fault, Slow | Throttle):
            self._slowed.setdefault(fault.worker, []).append(fault)
            self._set_speed(worker, now)
        elif isinstance(fault, LostEvents):
            self._hearing.lose(worker.slot, replayed=fault.replayed)
        elif isinstance(fault, Partition):
            if fault.router:
                worker.settle(now)
                self._reach.cut(worker.number)
                self._hearing.lose(worker.slot, replayed=True)
                self._requests.cut_off(worker, now)
            if fault.peers:
                self._pulls.cut(fault.worker, fault.peer, now)

    def _mend(self, fault: Fault, now: float) -> None:
        worker = self._workers[fault.worker]
        if fault not in self._lasting:
            return
        self._lasting.remove(fault)
        if isinstance(fault, Slow | Throttle):
            self._slowed[fault.worker].remove(fault)
            self._set_speed(worker, now)
        elif isinstance(fault, LostEvents):
            self._regain(worker, now)
        elif isinstance(fault, Partition):
            if fault.peers:
                self._pulls.heal(fault.worker, fault.peer, now)
            if fault.router:
                self._regain(worker, now)
                for saying in self._reach.heal(worker.number):
                    saying(now)

    def _regain(self, worker: TwinWorker, now: float) -> None:
        if worker.gone_s > now:
            self._hearing.regain(worker.slot)

    def _set_speed(self, worker: TwinWorker, now: float) -> None:
        """Everything that slows it down now: factors multiply, of clocks the lowest counts."""
        slowdown, clock = 1.0, 1.0
        for fault in self._slowed[worker.number]:
            if isinstance(fault, Slow):
                slowdown *= fault.factor
            else:
                clock = min(clock, fault.clock)
        worker.set_speed(slowdown, clock, now)


def _check(fault: Fault, workers: int) -> None:
    said = f"{type(fault).__name__} at {fault.at_s:g} s"
    named = [fault.worker]
    if isinstance(fault, Partition) and fault.peer is not None:
        named.append(fault.peer)
    for number in named:
        if not 0 <= number < workers:
            raise Impossible(f"{said}: there is no worker {number}; there are {workers}, from 0")
    if not fault.at_s >= 0.0:
        raise Impossible(f"{said}: a run begins at 0 s; give a time from then on")
