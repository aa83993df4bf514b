"""What a cluster looked like over a run: samples at equal intervals, never more of them than fit a picture.

How long a run lasts is known only when it is over. So sampling begins fine; each time there are too many samples every
second one goes and the interval doubles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.simulator.worker import TwinWorker

__all__ = ["Sample", "Timeline", "look"]

_FIRST_INTERVAL_S = 1.0
_MOST = 400


@dataclass(frozen=True, slots=True)
class Sample:
    """All workers together at one moment. Energy and time in passes are sums since 0 s."""

    at_s: float
    workers_ready: int
    running: int
    """Sequences in the engines' batches."""
    waiting: int
    """Sequences in the engines' queues."""
    kv_usage: float
    """Mean share of KV blocks in use, over the workers that are there; 0 when none is."""
    busy_s: float
    joules: float
    held_s: float = 0.0
    """How long workers have held accelerators, all of them together."""


class Timeline:
    """Samples of a run, at most `most` and the last one."""

    __slots__ = ("_most", "interval_s", "samples")

    def __init__(self, interval_s: float = _FIRST_INTERVAL_S, most: int = _MOST) -> None:
        self.interval_s, self._most = interval_s, most
        self.samples: list[Sample] = []

    def add(self, sample: Sample) -> float:
        """Keep a sample; the time of the next one, in seconds."""
        self.samples.append(sample)
        if len(self.samples) > self._most:
            del self.samples[1::2]
            self.interval_s *= 2
        return self.samples[-1].at_s + self.interval_s

    def end(self, sample: Sample) -> tuple[Sample, ...]:
        """All samples and this last one."""
        kept = [one for one in self.samples if one.at_s < sample.at_s]
        return (*kept, sample)


def look(workers: Sequence[TwinWorker], ready: int, now: float) -> Sample:
    """The workers as they are at `now`; changes nothing."""
    alive = [worker.engine.load() for worker in workers if worker.alive]
    spent = [worker.spent(now) for worker in workers]
    return Sample(
        at_s=now,
        workers_ready=ready,
        running=sum([load.running for load in alive]),
        waiting=sum([load.waiting for load in alive]),
        kv_usage=sum([load.kv_usage for load in alive]) / len(alive) if alive else 0.0,
        busy_s=sum(busy for busy, _ in spent),
        joules=sum(joules for _, joules in spent),
        held_s=sum(worker.held_seconds(now) for worker in workers),
    )
