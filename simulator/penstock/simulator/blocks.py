"""The block hashes of a request, from the prefix blocks its trace names."""

from __future__ import annotations

from itertools import chain

from penstock.core.traces import TraceRequest

__all__ = ["block_hashes"]


def block_hashes(request: TraceRequest, block_tokens: int, block_size: int) -> tuple[int, ...]:
    """One number for each whole block of `block_size` prompt tokens that the trace's blocks of `block_tokens` cover;
    equal numbers exactly for equal prefixes. `block_size` must divide `block_tokens`."""
    whole = request.input_tokens // block_size
    if block_size == block_tokens:
        return request.prefix_blocks[:whole]
    parts = block_tokens // block_size
    runs = [range(first, first + parts) for first in map(parts.__mul__, request.prefix_blocks)]
    return tuple(chain.from_iterable(runs))[:whole]
