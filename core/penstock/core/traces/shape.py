"""Changing a trace without changing what it says: faster, shorter, without artefacts of how it was recorded."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from penstock.core.traces.requests import Trace, TraceRequest

SLOT_S = 3.0
"""The Mooncake conversation trace stamps its arrivals on a grid of about 3 s."""


def scale_rate(trace: Trace, factor: float) -> Trace:
    """The trace with `factor` times its arrival rate: every arrival time divided by it.

    Raises ValueError unless factor is above 0 and finite.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"a rate scale of {factor} is not possible; give a number above 0")
    return _with(trace, (replace(r, arrival_s=r.arrival_s / factor) for r in trace.requests))


def limit_duration(trace: Trace, seconds: float) -> Trace:
    """Only the requests that arrive before `seconds`."""
    return _with(trace, (r for r in trace.requests if r.arrival_s < seconds))


def drop_over_context(trace: Trace, max_context_tokens: int) -> tuple[Trace, int]:
    """The requests whose prompt and output together fit the model's context, and how many did not."""
    kept = tuple(r for r in trace.requests if r.input_tokens + r.output_tokens <= max_context_tokens)
    return Trace(kept, trace.block_tokens), len(trace.requests) - len(kept)


def needs_spreading(trace: Trace) -> bool:
    """Whether the arrivals stand on a recording grid: fewer than half of their times differ."""
    return len({r.arrival_s for r in trace.requests}) * 2 < len(trace.requests)


def spread_slots(trace: Trace, seed: int, slot_s: float = SLOT_S) -> Trace:
    """Spread requests that share one stamp over the time to the next stamp, at most `slot_s` seconds.

    Uniform and seeded; the number of arrivals in each slot and the order of slots stay as recorded. Without
    it up to 28 requests of the Mooncake conversation trace arrive in the same instant, which is how the trace
    was stamped and not how users behave; tails of TTFT depend on it.
    """
    if not trace.requests:
        return trace
    times = np.array([r.arrival_s for r in trace.requests])
    stamps, slot_of = np.unique(times, return_inverse=True)
    widths = np.minimum(np.diff(stamps, append=np.inf), slot_s)
    shifted = times + widths[slot_of] * np.random.default_rng(seed).random(len(times))
    moved = (replace(r, arrival_s=float(t)) for r, t in zip(trace.requests, shifted, strict=True))
    return Trace(tuple(sorted(moved, key=lambda r: r.arrival_s)), trace.block_tokens)


def _with(trace: Trace, requests: Iterable[TraceRequest]) -> Trace:
    return Trace(tuple(requests), trace.block_tokens)
