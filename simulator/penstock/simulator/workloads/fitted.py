"""A trace's lengths under other arrivals: as many requests as wanted, each with the lengths of one that was recorded.

Prompt and output are drawn together, because they hang together. Prefix blocks are left out: who shares what depends on
the order in which a trace has it, and drawing at random would make up hits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from penstock.core.traces import Trace, TraceRequest

__all__ = ["like"]

_SALT = 0x6C656E  # Lengths and arrivals of one seed must not be drawn from one stream.


def like(trace: Trace, times: npt.NDArray[np.float64], seed: int = 0) -> Trace:
    """One request at each of `times` (seconds, sorted), lengths drawn from `trace`. ValueError for an empty one."""
    if not trace.requests:
        raise ValueError("an empty trace has no lengths to draw from")
    drawn = np.random.default_rng((seed, _SALT)).integers(0, len(trace.requests), len(times))
    requests = (
        TraceRequest(float(at), trace.requests[index].input_tokens, trace.requests[index].output_tokens)
        for at, index in zip(times, drawn, strict=True)
    )
    return Trace(tuple(requests), trace.block_tokens)
