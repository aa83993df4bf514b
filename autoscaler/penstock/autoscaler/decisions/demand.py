"""How much work arrives at a role's workers, measured so that a full queue hides nothing.

A saturated engine finishes requests at its own pace, whatever arrives. What arrived is therefore counted by
conservation: requests that ended in a window, plus what more is running or waiting at its end than at its start.
A worker that is new adds what it took; it is not extrapolated to the whole window, or every scale-out would look like
growing load.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from penstock.autoscaler.decisions.counters import increase
from penstock.autoscaler.decisions.observations import TimedSample, WorkerHistory
from penstock.core.fleet import UNKNOWN, Signal
from penstock.core.wire import EngineSample, Total


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
    recent_s: float = 15.0
    """A second, shorter look that sees a step in the load early."""
    fresh_s: float = 15.0
    """A sample older than this is used only while no worker has a younger one."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What arrives at the workers of one role."""

    arrivals: Signal
    """Requests per second over the window."""
    recent: Signal
    """Requests per second over the recent part of it."""
    running: Signal
    waiting: Signal
    mix: TokenMix | None
    """None where no request ended in the window."""
    span_s: float = 0.0
    """Seconds that `arrivals` was measured over: the window, or less after a start."""
    recent_span_s: float = 0.0


NOTHING_KNOWN = Demand(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, None)


@dataclass(frozen=True, slots=True)
class _Flow:
    """One worker's part."""

    at: float
    span: float
    arrived: float
    recent_span: float
    recent: float
    running: float
    waiting: float


def measure(workers: Sequence[WorkerHistory], now: float, rules: DemandRules) -> Demand:
    """Demand on these workers together at `now`; `workers` are all that ought to answer."""
    flows = [flow for worker in workers if (flow := _flow(worker.samples, rules)) is not None]
    used = [flow for flow in flows if now - flow.at <= rules.fresh_s] or flows
    if not used:
        return NOTHING_KNOWN
    age, coverage = max(0.0, *(now - flow.at for flow in used)), len(used) / len(workers)
    span, recent_span = max(flow.span for flow in used), max(flow.recent_span for flow in used)

    def signal(values: Iterable[float]) -> Signal:
        return Signal(math.fsum(values), age, coverage)

    def rate(values: Iterable[float], over: float) -> Signal:
        return signal(value / over for value in values) if over > 0 else UNKNOWN

    return Demand(
        arrivals=rate((flow.arrived for flow in used), span),
        recent=rate((flow.recent for flow in used), recent_span),
        running=signal(flow.running for flow in used),
        waiting=signal(flow.waiting for flow in used),
        mix=token_mix(workers),
        span_s=span,
        recent_span_s=recent_span,
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


def _flow(samples: Sequence[TimedSample], rules: DemandRules) -> _Flow | None:
    usable = [timed for timed in samples if _countable(timed.sample)]
    if not usable:
        return None
    last = usable[-1]
    whole = [timed for timed in usable if timed.at >= last.at - rules.window_s]
    recent = [timed for timed in usable if timed.at >= last.at - rules.recent_s]
    return _Flow(
        at=last.at,
        span=last.at - whole[0].at,
        arrived=_arrived(whole),
        recent_span=last.at - recent[0].at,
        recent=_arrived(recent),
        running=last.sample.running or 0.0,
        waiting=last.sample.waiting or 0.0,
    )


def _countable(sample: EngineSample) -> bool:
    values = (sample.running, sample.waiting, *sample.finished.values())
    return all(value is not None and math.isfinite(value) and value >= 0 for value in values)


def _arrived(samples: Sequence[TimedSample]) -> float:
    """Requests that came while these samples were taken: ended, plus what more is inside at the end."""
    if len(samples) < 2:
        return 0.0
    (ended,) = increase([(math.fsum(timed.sample.finished.values()),) for timed in samples])
    return max(0.0, ended + _inside(samples[-1].sample) - _inside(samples[0].sample))


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
