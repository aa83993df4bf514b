"""Power domains: what the accelerators under each part of a tree draw, against its budget.

A domain is metered as a rack's meter does it: the mean draw over each interval. Every accelerator of its nodes counts,
one that no worker holds at its idle draw; servers, fans and switches do not. Nothing is done about a draw above the
budget here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.models.power import Phase, watts
from penstock.simulator.events import SAMPLE, EventQueue
from penstock.simulator.placement import Node
from penstock.simulator.scaling_rules import PowerDomain
from penstock.simulator.scenario import Impossible
from penstock.simulator.worker import TwinWorker

__all__ = ["DomainUse", "PowerMeters"]

_KEY = -2  # Its place among those that take samples.


@dataclass(frozen=True, slots=True)
class DomainUse:
    """What a domain drew over a run."""

    name: str
    budget_w: float | None
    peak_w: float
    """The largest mean over an interval."""
    mean_w: float
    over_s: float
    """Time in intervals whose mean lay above the budget."""
    longest_over_s: float
    """The longest of it at a stretch."""


@dataclass(slots=True)
class _Reading:
    """A domain while it is metered."""

    domain: PowerDomain
    nodes: frozenset[int]
    idle_w: float
    """Of all its accelerators, were nothing to run."""
    joules: float = 0.0
    """Above idle, up to the last reading."""
    total: float = 0.0
    peak_w: float = 0.0
    over_s: float = 0.0
    stretch_s: float = 0.0
    longest_s: float = 0.0


class PowerMeters:
    """Reads every domain each `interval_s`, from 0 s on."""

    def __init__(
        self,
        domains: Sequence[PowerDomain],
        nodes: Sequence[Node],
        workers: Sequence[TwinWorker],
        events: EventQueue,
        interval_s: float,
    ) -> None:
        """`workers` may grow meanwhile. Raises `Impossible` for a tree that is none."""
        _check(domains, len(nodes))
        self._workers, self._events, self._interval_s, self._at = workers, events, interval_s, 0.0
        self._readings = [_reading(domain, domains, nodes) for domain in domains]

    def begin(self) -> None:
        """Read on."""
        self._events.at(self._interval_s, SAMPLE, _KEY, self._tick)

    def end(self, now: float) -> tuple[DomainUse, ...]:
        """What each domain drew, in the order they were given."""
        self._read(now)
        return tuple(
            DomainUse(
                reading.domain.name,
                reading.domain.budget_w,
                reading.peak_w,
                reading.total / now if now else reading.idle_w,
                reading.over_s,
                reading.longest_s,
            )
            for reading in self._readings
        )

    def _tick(self, now: float, _: int) -> None:
        self._events.at(now + self._interval_s, SAMPLE, _KEY, self._tick)
        self._read(now)

    def _read(self, now: float) -> None:
        seconds, self._at = now - self._at, now
        if seconds <= 0:
            return
        spent = [(worker, _above_idle(worker, now)) for worker in self._workers]
        for reading in self._readings:
            joules = sum(_share(worker, reading.nodes) * above for worker, above in spent)
            _take(reading, reading.idle_w + (joules - reading.joules) / seconds, seconds)
            reading.joules = joules


def _take(reading: _Reading, draw: float, seconds: float) -> None:
    reading.total += draw * seconds
    reading.peak_w = max(reading.peak_w, draw)
    budget = reading.domain.budget_w
    if budget is not None and draw > budget:
        reading.over_s += seconds
        reading.stretch_s += seconds
        reading.longest_s = max(reading.longest_s, reading.stretch_s)
    else:
        reading.stretch_s = 0.0


def _above_idle(worker: TwinWorker, now: float) -> float:
    """Joules that a worker's passes took beyond what its accelerators draw anyway."""
    _, joules = worker.spent(now)
    return joules - worker.meter.idle_watts * worker.held_seconds(now)


def _share(worker: TwinWorker, nodes: frozenset[int]) -> float:
    """How much of a worker stands on these nodes."""
    return sum(node in nodes for node in worker.spec.nodes) / len(worker.spec.nodes)


def _reading(domain: PowerDomain, domains: Sequence[PowerDomain], nodes: Sequence[Node]) -> _Reading:
    below = frozenset(_nodes_below(domain, domains))
    idle = sum(watts(nodes[number].accelerator, Phase.IDLE) * nodes[number].size for number in sorted(below))
    return _Reading(domain, below, idle)


def _nodes_below(domain: PowerDomain, domains: Sequence[PowerDomain]) -> set[int]:
    children = [child for child in domains if child.parent == domain.name]
    return set(domain.nodes).union(*(_nodes_below(child, domains) for child in children))


def _check(domains: Sequence[PowerDomain], nodes: int) -> None:
    parents = {domain.name: domain.parent for domain in domains}
    if len(parents) < len(domains):
        raise Impossible("two power domains have one name; give each its own")
    for domain in domains:
        if domain.parent and domain.parent not in parents:
            raise Impossible(f"power domain {domain.name}: there is no domain {domain.parent} to be its parent")
        for number in domain.nodes:
            if not 0 <= number < nodes:
                raise Impossible(f"power domain {domain.name}: there is no node {number}; there are {nodes}, from 0")
        seen, above = {domain.name}, domain.parent
        while above:
            if above in seen:
                raise Impossible(f"power domain {domain.name} lies within itself, by way of {above}")
            seen.add(above)
            above = parents[above]
    owned = [number for domain in domains for number in domain.nodes]
    twice = sorted({number for number in owned if owned.count(number) > 1})
    if twice:
        raise Impossible(f"node {twice[0]} stands in two power domains; nest them instead")
