"""Figures of a run from its columns of outcomes: what users saw, how that bends with the objectives, and its course.

Attainment as one number says little: most published ratios depend on one objective. So it is given as a curve over
objectives that are scaled together from half to four times.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from penstock.core.reports import Summary, Verdict
from penstock.simulator.outcomes import Outcomes
from penstock.simulator.timeline import Sample

__all__ = ["SCALES", "Group", "Interval", "Point", "Seen", "attainment_curve", "groups", "intervals", "quantiles"]

SCALES = tuple(0.5 + 0.25 * step for step in range(15))
"""Of the objectives, 0.5 to 4."""
_MOST_INTERVALS = 100

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Seen:
    """What users saw, one entry for each outcome. Times in seconds, NaN where a request never got so far."""

    __slots__ = ("completed", "e2e", "outcomes", "output_tokens", "sent", "tpot", "ttft")

    def __init__(self, outcomes: Outcomes) -> None:
        self.outcomes = outcomes
        self.sent, self.ttft, self.e2e = (outcomes.times(name) for name in ("sent_s", "ttft_s", "e2e_s"))
        self.completed = outcomes.ended(Verdict.COMPLETED)
        self.output_tokens = outcomes.counts("output_tokens")
        gaps = np.where(self.output_tokens > 1, self.output_tokens - 1, 1)
        self.tpot: Floats = np.where(self.output_tokens > 1, (self.e2e - self.ttft) / gaps, np.nan)
        """Seconds per output token after the first; NaN for a single token, which has no objective to miss."""

    def meets(self, ttft_s: float, tpot_s: float) -> Mask:
        """Which outcomes completed within both objectives, as `Outcome.meets` says it."""
        single = (self.output_tokens >= 0) & (self.output_tokens < 2)
        return np.asarray(self.completed & (self.ttft <= ttft_s) & (single | (self.tpot <= tpot_s)))

    def summary(self, times: Floats, among: Mask | None = None) -> Summary:
        """Mean and percentiles of these times over the completed outcomes that have one."""
        mask = self.completed if among is None else self.completed & among
        chosen = times[mask]
        return Summary.of(chosen[~np.isnan(chosen)])


@dataclass(frozen=True, slots=True)
class Point:
    """Shares of all requests sent that met scaled objectives; None when none was sent."""

    scale: float
    attainment: float | None
    ttft: float | None
    """That met the first one, whatever the second."""
    tpot: float | None


def attainment_curve(seen: Seen, ttft_s: float, tpot_s: float, scales: Sequence[float] = SCALES) -> tuple[Point, ...]:
    """Attainment under both objectives times each scale; it never falls as the scale grows."""
    endless = float("inf")

    def share(ttft: float, tpot: float) -> float | None:
        return float(seen.meets(ttft, tpot).mean()) if len(seen.sent) else None

    return tuple(
        Point(
            scale,
            share(ttft_s * scale, tpot_s * scale),
            share(ttft_s * scale, endless),
            share(endless, tpot_s * scale),
        )
        for scale in scales
    )


def quantiles(seen: Seen) -> dict[str, list[float]]:
    """TTFT, TPOT and E2E in seconds, at each percent from 0 to 100, of the completed requests; empty for none."""
    found = {}
    for name, times in (("ttft_s", seen.ttft), ("tpot_s", seen.tpot), ("e2e_s", seen.e2e)):
        known = times[seen.completed & ~np.isnan(times)]
        found[name] = np.percentile(known, np.arange(101)).tolist() if len(known) else []
    return found


@dataclass(frozen=True, slots=True)
class Group:
    """What the requests of one tenant, or for one model, saw."""

    requests: int
    completed: int
    attainment: float
    ttft_seconds: Summary
    tpot_seconds: Summary


def groups(seen: Seen, kind: str, ttft_s: float, tpot_s: float) -> dict[str, Group]:
    """Figures by `tenant` or `model`; empty where nobody has a name."""
    labels = seen.outcomes.labels(kind)
    if set(labels) <= {""}:
        return {}
    met = seen.meets(ttft_s, tpot_s)
    return {
        name: Group(
            int(mask.sum()),
            int((seen.completed & mask).sum()),
            float(met[mask].mean()),
            seen.summary(seen.ttft, mask),
            seen.summary(seen.tpot, mask),
        )
        for name, mask in sorted(labels.items())
    }


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of a run. Requests count where they were sent, but for the completed, which count where they ended."""

    start_s: float
    end_s: float
    sent_per_s: float
    completed_per_s: float
    in_flight: float
    """Mean number of requests sent and not ended."""
    ttft_p50_s: float | None
    """Of the requests sent in it; None when none of them had a first token."""
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    attainment: float | None
    workers_ready: int
    """At its end, as are the four below."""
    running: int
    waiting: int
    kv_usage: float
    utilisation: float | None
    """Share of the workers' time in passes; None without workers."""
    watts: float
    """Mean draw of all accelerators."""


def intervals(seen: Seen, timeline: Sequence[Sample], ttft_s: float, tpot_s: float) -> tuple[Interval, ...]:
    """The course of a run between samples of its timeline, at most a hundred stretches; empty for a run of no length.

    What was not answered until the end of a run counts as in flight up to then.
    """
    step = max(1, -(-(len(timeline) - 1) // _MOST_INTERVALS))
    marks = [*timeline[: len(timeline) - 1 : step], timeline[-1]] if timeline else []
    edges = np.array([mark.at_s for mark in marks])
    if len(edges) < 2:
        return ()
    ended = np.where(np.isnan(seen.e2e), np.inf, seen.sent + seen.e2e)
    course = _Course(seen, ended, edges, seen.meets(ttft_s, tpot_s))
    return tuple(course.interval(at, before, after) for at, (before, after) in enumerate(itertools.pairwise(marks)))


class _Course:
    """Outcomes sorted into stretches by when they were sent."""

    def __init__(self, seen: Seen, ended: Floats, edges: Floats, met: Mask) -> None:
        self._seen, self._met = seen, met
        order = np.argsort(seen.sent, kind="stable")
        self._order = order
        self._bounds = np.searchsorted(seen.sent[order], edges)
        # The last stretch is closed: what came at the very end belongs to it.
        self._bounds[-1] = len(order)
        finished = np.sort(ended[seen.completed])
        self._completed = np.diff(np.searchsorted(finished, edges, side="right"))
        self._alive = _time_alive(seen.sent, ended, edges)

    def interval(self, at: int, before: Sample, after: Sample) -> Interval:
        seconds, held = after.at_s - before.at_s, after.held_s - before.held_s
        mine = self._order[self._bounds[at] : self._bounds[at + 1]]
        ttft, tpot = self._seen.ttft[mine], self._seen.tpot[mine]
        return Interval(
            start_s=before.at_s,
            end_s=after.at_s,
            sent_per_s=len(mine) / seconds,
            completed_per_s=float(self._completed[at]) / seconds,
            in_flight=float(self._alive[at]) / seconds,
            ttft_p50_s=_percentile(ttft, 50),
            ttft_p99_s=_percentile(ttft, 99),
            tpot_p50_s=_percentile(tpot, 50),
            attainment=float(self._met[mine].mean()) if len(mine) else None,
            workers_ready=after.workers_ready,
            running=after.running,
            waiting=after.waiting,
            kv_usage=after.kv_usage,
            utilisation=(after.busy_s - before.busy_s) / held if held else None,
            watts=(after.joules - before.joules) / seconds,
        )


def _time_alive(sent: Floats, ended: Floats, edges: Floats) -> Floats:
    """Seconds that requests were under way in each stretch, all together.

    What one request spends before a moment t is min(t, end) - min(t, start); so sums over sorted times are enough.
    """
    return np.asarray(np.diff(_before(sent, edges) - _before(ended, edges)))


def _before(times: Floats, edges: Floats) -> Floats:
    """For each edge t: the sum over all times of t - min(t, time)."""
    ordered = np.sort(times[np.isfinite(times)])
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    count = np.searchsorted(ordered, edges, side="right")
    return np.asarray(count * edges - sums[count])


def _percentile(values: Floats, which: float) -> float | None:
    known = values[~np.isnan(values)]
    return float(np.percentile(known, which)) if len(known) else None
