"""How much work arrives at a role's workers, measured so that a full queue hides nothing.

A saturated engine finishes requests at its own pace, whatever arrives. What arrived is therefore counted by
conservation: requests that ended in a window, plus what more is running or waiting at its end than at its start.
A worker that is new adds what it took; it is not extrapolated to the whole window, or every scale-out would look like
growing load.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from penstock.autoscaler.decisions.counters import increase
from penstock.autoscaler.decisions.forecast import Look
from penstock.autoscaler.decisions.observations import TimedSample, WorkerHistory
from penstock.core.fleet import UNKNOWN, Signal
from penstock.core.wire import EngineSample, Total

_APART = 1.25
"""A look that is nearly as long as the whole window would say nothing new."""


@dataclass(frozen=True, slots=True)
class TokenMix:
    """Mean tokens of a request."""

    prompt: float
    computed: float
    """Prompt tokens that no cache held, and so had to be computed."""
    output: float


@dataclass(frozen=True, slots=True)
class DemandRules:
    """Over which times demand is measured. Seconds."""

    window_s: float = 60.0
    recent_s: float = 12.5
    """The shortest look, which sees a step in the load early: it must hold a few scrapes."""
    fresh_s: float = 15.0
    """A sample older than this is used only while no worker has a younger one."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What arrives at the workers of one role."""

    arrivals: Signal
    """Requests per second over the window."""
    running: Signal
    waiting: Signal
    mix: TokenMix | None
    """None where no request ended in the window."""
    looks: tuple[Look, ...] = ()
    """The same rate over the window and over ever shorter parts of it, the longest first."""


NOTHING_KNOWN = Demand(UNKNOWN, UNKNOWN, UNKNOWN, None)


@dataclass(frozen=True, slots=True)
class _Flow:
    """One worker's part."""

    at: float
    span: float
    came: Sequence[tuple[float, float]]
    running: float
    waiting: float


def measure(workers: Sequence[WorkerHistory], now: float, rules: DemandRules) -> Demand:
    """Demand on these workers together at `now`; `workers` are all that ought to answer."""
    flows = [flow for worker in workers if (flow := _flow(worker.samples, rules)) is not None]
    used = [flow for flow in flows if now - flow.at <= rules.fresh_s] or flows
    if not used:
        return NOTHING_KNOWN
    age, coverage = max(0.0, *(now - flow.at for flow in used)), len(used) / len(workers)
    looks = _looks(used, rules)

    def signal(values: Iterable[float]) -> Signal:
        return Signal(math.fsum(values), age, coverage)

    return Demand(
        arrivals=Signal(looks[0].rate, age, coverage) if looks else UNKNOWN,
        running=signal(flow.running for flow in used),
        waiting=signal(flow.waiting for flow in used),
        mix=token_mix(workers),
        looks=looks,
    )


def token_mix(workers: Iterable[WorkerHistory]) -> TokenMix | None:
    """Mean tokens per request that ended in the workers' windows; None where none did."""
    ends = [_ends(worker.samples) for worker in workers]
    sums = [math.fsum(column) for column in zip(*(end for end in ends if end is not None), strict=True)]
    if not sums:
        return None
    prompt, requests, output, looked_up, cached = sums
    if requests <= 0:
        return None
    missed = 1.0 - min(1.0, cached / looked_up) if looked_up > 0 else 1.0
    return TokenMix(prompt / requests, prompt / requests * missed, output / requests)


def _looks(flows: Sequence[_Flow], rules: DemandRules) -> tuple[Look, ...]:
    """Rates over the shortest look, its double, and so on, and over the window or what there is of it."""
    longest = min(rules.window_s, max(flow.span for flow in flows))
    if longest <= 0:
        return ()
    spans, span = [longest], rules.recent_s
    while span <= longest / _APART:
        spans.insert(1, span)
        span *= 2
    return tuple(Look(math.fsum(_arrived(flow.came, span) for flow in flows) / span, span) for span in spans)


def _flow(samples: Sequence[TimedSample], rules: DemandRules) -> _Flow | None:
    usable = [timed for timed in samples if _countable(timed.sample)]
    if not usable:
        return None
    last, came = usable[-1], _came(usable)
    return _Flow(
        at=last.at,
        span=last.at - usable[0].at,
        came=came,
        running=last.sample.running or 0.0,
        waiting=last.sample.waiting or 0.0,
    )


def _countable(sample: EngineSample) -> bool:
    values = (sample.running, sample.waiting, *sample.finished.values())
    return all(value is not None and math.isfinite(value) and value >= 0 for value in values)


def _came(samples: Sequence[TimedSample]) -> list[tuple[float, float]]:
    """Requests that came since the first sample, at the time of each: ended, plus what more is inside than then."""
    before, ended, made = samples[0].sample, 0.0, []
    for timed in samples:
        now = timed.sample
        ended += increase([(_ended(before),), (_ended(now),)])[0]
        made.append((timed.at, ended + _inside(now) - _inside(samples[0].sample)))
        before = now
    return made


def _arrived(came: Sequence[tuple[float, float]], span_s: float) -> float:
    """Requests that came in the last `span_s`.

    A worker is scraped when it is: between two scrapes its requests are taken to have come evenly, so that every
    worker is looked at over the same time, whatever its rhythm.
    """
    start, total = came[-1][0] - span_s, came[-1][1]
    for (at, earlier), (next_at, later) in pairwise(came):
        if next_at > start:
            share = min(1.0, max(0.0, start - at) / (next_at - at))
            return max(0.0, total - earlier - share * (later - earlier))
    return 0.0


def _ended(sample: EngineSample) -> float:
    return math.fsum(value or 0.0 for value in sample.finished.values())


def _inside(sample: EngineSample) -> float:
    return (sample.running or 0.0) + (sample.waiting or 0.0)


def _ends(samples: Sequence[TimedSample]) -> tuple[float, ...] | None:
    """Growth of (prompt tokens, requests, output tokens, tokens looked up, tokens cached) over the samples."""
    points = [point for timed in samples if (point := _lengths(timed.sample)) is not None]
    return increase(points) if len(points) >= 2 else None


def _lengths(sample: EngineSample) -> tuple[float, ...] | None:
    prompt, output = sample.prompt_length, sample.output_length
    if not isinstance(prompt, Total) or not isinstance(output, Total):
        return None
    cached = (sample.prompt_tokens or 0.0, sample.cached_prompt_tokens or 0.0)
    values = (prompt.sum, prompt.count, output.sum, *cached)
    return values if all(math.isfinite(value) and value >= 0 for value in values) else None
