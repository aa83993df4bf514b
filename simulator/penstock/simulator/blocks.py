"""The block hashes of a request, from the prefix blocks its trace names."""

from __future__ import annotations

from penstock.core.traces import TraceRequest

__all__ = ["as_bytes", "block_hashes"]


def block_hashes(request: TraceRequest, block_tokens: int, block_size: int) -> tuple[int, ...]:
    """One number for each whole block of `block_size` prompt tokens that the trace's blocks of `block_tokens` cover;
    equal numbers exactly for equal prefixes. `block_size` must divide `block_tokens`."""
    whole = request.input_tokens // block_size
    if block_size == block_tokens:
        return request.prefix_blocks[:whole]
    parts = block_tokens // block_size
    return tuple(block * parts + part for block in request.prefix_blocks for part in range(parts))[:whole]


def as_bytes(hashes: tuple[int, ...]) -> tuple[bytes, ...]:
    """The same hashes as a request carries them; the router reads them as the integers they were."""
    return tuple([number.to_bytes(8, "big") for number in hashes])
