"""Workloads made like a trace: its lengths under other arrivals, its burstiness, its course over time, its sharing.

`like` draws recorded pairs of prompt and output, because the two hang together. Prefix blocks are left out there: who
shares what depends on the order in which a trace has it, and drawing at random would make up hits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator.workloads.arrivals import Rate
from penstock.simulator.workloads.sessions import SessionShape
from penstock.simulator.workloads.shares import Tenant
from penstock.simulator.workloads.source import Columns

__all__ = [
    "Burstiness", "LengthShape", "fit_burstiness", "fit_lengths", "fit_rate", "fit_sessions", "fit_tenants", "like",
    "stream_like",
]  # fmt: skip

_SALT = 0x6C656E  # Lengths and arrivals of one seed must not be drawn from one stream.


@dataclass(frozen=True, slots=True)
class Burstiness:
    """A steady process like a trace's arrivals."""

    rate: float
    """Requests a second."""
    cv: float
    """Standard deviation of the gaps over their mean; about 1 for users who know nothing of each other."""


@dataclass(frozen=True, slots=True)
class LengthShape:
    """Log-normal prompts and outputs, drawn independently. Means in tokens, sigmas of the logarithm."""

    input_tokens: float = 1024.0
    output_tokens: float = 256.0
    input_sigma: float = 0.8
    output_sigma: float = 0.8
    max_tokens: int = 32_768
    """No prompt and no output is longer than this."""

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens", "max_tokens"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"lengths: {name} is {getattr(self, name)}; give at least 1")
        for name in ("input_sigma", "output_sigma"):
            if not 0 <= getattr(self, name) <= 5:
                raise ValueError(f"lengths: {name} is {getattr(self, name)}; give 0 to 5")

    def draw(self, times: npt.NDArray[np.float64], seed: int = 0) -> Trace:
        """One request at each of `times` (seconds, sorted)."""
        rng = np.random.default_rng((seed, _SALT))
        prompts = self._spread(rng, self.input_tokens, self.input_sigma, len(times))
        outputs = self._spread(rng, self.output_tokens, self.output_sigma, len(times))
        rows = zip(times.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
        return Trace(tuple(TraceRequest(at, prompt, output) for at, prompt, output in rows))

    def _spread(self, rng: np.random.Generator, mean: float, sigma: float, size: int) -> npt.NDArray[np.int64]:
        drawn = rng.lognormal(math.log(mean) - sigma**2 / 2, sigma, size)
        return np.clip(np.rint(drawn), 1, self.max_tokens).astype(np.int64)


def like(trace: Trace, times: npt.NDArray[np.float64], seed: int = 0) -> Trace:
    """One request at each of `times` (seconds, sorted), lengths drawn from `trace`. ValueError for an empty one."""
    drawn = _draw(trace, len(times), seed)
    requests = (
        TraceRequest(float(at), trace.requests[index].input_tokens, trace.requests[index].output_tokens)
        for at, index in zip(times, drawn, strict=True)
    )
    return Trace(tuple(requests), trace.block_tokens)


def stream_like(trace: Trace, times: npt.NDArray[np.float64], seed: int = 0) -> Columns:
    """What `like` makes, as columns: the same requests in a fraction of the memory."""
    drawn = _draw(trace, len(times), seed)
    inputs = np.array([request.input_tokens for request in trace.requests], dtype=np.int32)
    outputs = np.array([request.output_tokens for request in trace.requests], dtype=np.int32)
    return Columns(np.asarray(times, dtype=np.float64), inputs[drawn], outputs[drawn])


def fit_burstiness(trace: Trace) -> Burstiness:
    """Rate and coefficient of variation of a trace's gaps. ValueError for fewer than three arrivals or no time."""
    gaps = np.diff(_times(trace))
    if len(gaps) < 2 or not gaps.sum() > 0:
        raise ValueError("burstiness needs a trace of at least three requests that do not all arrive at once")
    return Burstiness(float(1.0 / gaps.mean()), float(gaps.std() / gaps.mean()))


def fit_rate(trace: Trace, interval_s: float = 60.0) -> Rate:
    """The course of a trace's rate, constant within each interval, over and over again from its start."""
    if not (math.isfinite(interval_s) and interval_s > 0):
        raise ValueError(f"an interval of {interval_s} s is not possible; give more than 0")
    times = _times(trace)
    if not len(times):
        raise ValueError("an empty trace has no rate")
    cells = max(1, math.ceil(float(times[-1]) / interval_s))
    counts = np.bincount(np.minimum((times / interval_s).astype(np.int64), cells - 1), minlength=cells)
    rates = counts / interval_s
    return lambda at: rates[(at / interval_s).astype(np.int64) % cells]


def fit_lengths(trace: Trace) -> LengthShape:
    """Log-normal lengths with the trace's means and the spread of its logarithms. ValueError for an empty one."""
    if not trace.requests:
        raise ValueError("an empty trace has no lengths to fit")
    inputs = np.array([request.input_tokens for request in trace.requests], dtype=np.float64)
    outputs = np.array([request.output_tokens for request in trace.requests], dtype=np.float64)
    return LengthShape(
        float(inputs.mean()),
        float(outputs.mean()),
        min(5.0, float(np.log(inputs).std())),
        min(5.0, float(np.log(outputs).std())),
        int(max(inputs.max(), outputs.max())),
    )


def fit_tenants(trace: Trace) -> tuple[Tenant, ...]:
    """A trace's tenants with their shares and most frequent priority, by name. Those without a name are left out."""
    seen: dict[str, Counter[int]] = {}
    for request in trace.requests:
        if request.tenant:
            seen.setdefault(request.tenant, Counter())[request.priority] += 1
    return tuple(
        Tenant(name, float(counts.total()), min(counts, key=lambda priority: (-counts[priority], priority)))
        for name, counts in sorted(seen.items())
    )


def fit_sessions(trace: Trace) -> SessionShape:
    """Conversations as a trace's prefix blocks show them: a request whose blocks begin with all whole blocks of an
    earlier one is that one's next turn.

    What comes between two turns counts as the answer and new input; a turn's time as thinking. Raises ValueError where
    no request goes on from another.
    """
    turns = list(_turns(trace))
    if not turns:
        raise ValueError("no request of the trace goes on from another one: it shows no conversations")
    conversations = len(trace.requests) - len(turns)
    added = [later.input_tokens - earlier.input_tokens - earlier.output_tokens for earlier, later in turns]
    thought = [later.arrival_s - earlier.arrival_s for earlier, later in turns]
    outputs = np.array([request.output_tokens for request in trace.requests], dtype=np.float64)
    return SessionShape(
        turns=len(trace.requests) / conversations,
        input_tokens=max(1.0, float(np.mean([max(1, tokens) for tokens in added]))),
        output_tokens=max(1.0, float(outputs.mean())),
        think_s=max(1e-3, float(np.mean(thought))),
        sigma=min(5.0, float(np.log(outputs).std())),
        system_prompts=_first_blocks(trace),
        system_tokens=trace.block_tokens,
        block_tokens=trace.block_tokens,
        max_context=max(trace.longest_tokens, 2),
    )


def _turns(trace: Trace) -> Iterable[tuple[TraceRequest, TraceRequest]]:
    """Pairs of a request and the later one that goes on from it. One shared block is a system prompt, not a turn."""
    open_ends: dict[int, TraceRequest] = {}
    for request in trace.requests:
        whole = request.prefix_blocks[: request.input_tokens // trace.block_tokens]
        # A block's name says all that stands before it, so the last shared block is enough.
        earlier = next((open_ends.pop(block) for block in reversed(whole[1:]) if block in open_ends), None)
        if earlier is not None and earlier.input_tokens < request.input_tokens:
            yield earlier, request
        if len(whole) > 1:
            open_ends[whole[-1]] = request


def _first_blocks(trace: Trace) -> int:
    return max(1, len({request.prefix_blocks[0] for request in trace.requests if request.prefix_blocks}))


def _times(trace: Trace) -> npt.NDArray[np.float64]:
    return np.array([request.arrival_s for request in trace.requests], dtype=np.float64)


def _draw(trace: Trace, count: int, seed: int) -> npt.NDArray[np.int64]:
    if not trace.requests:
        raise ValueError("an empty trace has no lengths to draw from")
    return np.random.default_rng((seed, _SALT)).integers(0, len(trace.requests), count)
