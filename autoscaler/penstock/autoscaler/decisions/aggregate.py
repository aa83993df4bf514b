"""Signals of a set of workers: value, age and coverage, where a worker that says nothing is not one that does nothing.

Every signal is made the same way. Each worker gives a reading or none; readings that are too old are set aside while
any fresh one is left, and held with their age when none is; the rest is summed or averaged. Coverage is the share of
the workers that are part of the value. Nothing measured at all is `UNKNOWN`.

Growth of counters is taken over a window that ends at a worker's last sample and not at the present, so that a worker
which stopped answering is held at what it last did and ages, instead of fading to zero.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from penstock.autoscaler.decisions.counters import increase
from penstock.autoscaler.decisions.observations import TimedSample, WorkerHistory
from penstock.core.fleet import UNKNOWN, Signal
from penstock.core.wire import EngineSample, Total


@dataclass(frozen=True, slots=True)
class Rules:
    """How samples become signals. Seconds."""

    window_s: float = 60.0
    """Over which rates and means are taken."""
    fresh_s: float = 15.0
    """A sample older than this is used only while no worker has a younger one."""


@dataclass(frozen=True, slots=True)
class LoadSignals:
    """How busy a set of workers is, and how well it serves."""

    running_requests: Signal
    waiting_requests: Signal
    kv_usage_ratio: Signal
    """Share of KV blocks in use, the mean of the workers."""
    finished_requests_per_second: Signal
    prompt_tokens_per_second: Signal
    generation_tokens_per_second: Signal
    ttft_mean_seconds: Signal
    """Mean over the requests whose first token came in the window."""
    tpot_mean_seconds: Signal
    """Mean over the requests that ended in the window."""
    prefix_hit_ratio: Signal
    """Share of the prompt tokens looked up in the window that the prefix cache held."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """One worker's part of one signal: a sum's term, or numerator and weight of a mean."""

    value: float
    weight: float
    at: float


_Read = Callable[[EngineSample], tuple[float | None, ...]]


def aggregate(workers: Sequence[WorkerHistory], now: float, rules: Rules) -> LoadSignals:
    """The signals of these workers together at `now`; the order of workers does not matter.

    `workers` are all that ought to answer, those without a sample included: they are what coverage is a share of.
    """

    def gauge(read: Callable[[EngineSample], float | None], *, mean: bool = False) -> Signal:
        return _combine((_last(w, read) for w in workers), len(workers), now, rules, mean=mean)

    def rate(read: Callable[[EngineSample], float | None]) -> Signal:
        return _combine((_rate(w, read, rules) for w in workers), len(workers), now, rules, mean=False)

    def ratio(read: _Read) -> Signal:
        return _combine((_growth(w, read, rules) for w in workers), len(workers), now, rules, mean=True)

    return LoadSignals(
        running_requests=gauge(lambda s: s.running),
        waiting_requests=gauge(lambda s: s.waiting),
        kv_usage_ratio=gauge(lambda s: s.kv_usage, mean=True),
        finished_requests_per_second=rate(lambda s: sum(s.finished.values()) if s.finished else None),
        prompt_tokens_per_second=rate(lambda s: s.prompt_tokens),
        generation_tokens_per_second=rate(lambda s: s.generation_tokens),
        ttft_mean_seconds=ratio(lambda s: _parts(s.ttft)),
        tpot_mean_seconds=ratio(lambda s: _parts(s.tpot)),
        prefix_hit_ratio=ratio(lambda s: (s.prefix_hits, s.prefix_queries)),
    )


def _combine(readings: Iterable[_Reading | None], workers: int, now: float, rules: Rules, *, mean: bool) -> Signal:
    known = [reading for reading in readings if reading is not None]
    used = [reading for reading in known if now - reading.at <= rules.fresh_s] or known
    if not used:
        return UNKNOWN
    value = math.fsum(reading.value for reading in used)
    if mean:
        weight = math.fsum(reading.weight for reading in used)
        # Nothing happened that could be averaged: measured, and yet there is no mean.
        value = value / weight if weight > 0 else math.nan
    return Signal(value, age=max(0.0, *(now - reading.at for reading in used)), coverage=len(used) / workers)


def _last(worker: WorkerHistory, read: Callable[[EngineSample], float | None]) -> _Reading | None:
    for timed in reversed(worker.samples):
        value = read(timed.sample)
        if value is not None and _usable(value):
            return _Reading(value, 1.0, timed.at)
    return None


def _rate(worker: WorkerHistory, read: Callable[[EngineSample], float | None], rules: Rules) -> _Reading | None:
    points = _points(worker, lambda sample: (read(sample),), rules)
    span = points[-1][0] - points[0][0] if points else 0.0
    if span <= 0:
        return None
    (grown,) = increase([values for _, values in points])
    return _Reading(grown / span, 1.0, points[-1][0])


def _growth(worker: WorkerHistory, read: _Read, rules: Rules) -> _Reading | None:
    points = _points(worker, read, rules)
    if len(points) < 2:
        return None
    value, weight = increase([values for _, values in points])
    return _Reading(value, weight, points[-1][0])


def _points(worker: WorkerHistory, read: _Read, rules: Rules) -> list[tuple[float, tuple[float, ...]]]:
    """The readable samples of the window that ends at the worker's last one, with their times."""
    points: list[tuple[float, tuple[float, ...]]] = []
    for timed in _windowed(worker.samples, rules.window_s):
        wanted = read(timed.sample)
        values = tuple(value for value in wanted if value is not None and _usable(value))
        if len(values) == len(wanted):
            points.append((timed.at, values))
    return points


def _windowed(samples: Sequence[TimedSample], window_s: float) -> list[TimedSample]:
    return [timed for timed in samples if timed.at >= samples[-1].at - window_s]


def _parts(total: Total | None) -> tuple[float | None, float | None]:
    return (total.sum, total.count) if total is not None else (None, None)


def _usable(value: float) -> bool:
    """A page may say anything; what is no count must not become a signal."""
    return math.isfinite(value) and value >= 0
