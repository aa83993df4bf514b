"""Which columns a fleet has: their types, shapes, and what an empty slot holds."""

import math
from enum import IntEnum
from typing import Any

import numpy as np

_NEVER = math.nan


class Breaker(IntEnum):
    """Whether a worker is trusted to take connections."""

    CLOSED = 0
    """Trusted."""
    OPEN = 1
    """Ejected: not picked until its time is up."""
    HALF_OPEN = 2
    """Its time is up: one request may try it."""
    PROBING = 3
    """That one request is on its way; nobody else is sent."""


TRUSTED = (Breaker.CLOSED, Breaker.HALF_OPEN)


LAYOUT: dict[str, tuple[type, Any, tuple[int, ...]]] = {
    "used": (np.bool_, False, ()),
    "ready": (np.bool_, False, ()),
    "withdrawn": (np.bool_, False, ()),
    "breaker": (np.int8, Breaker.CLOSED, ()),
    "generation": (np.int64, 0, ()),
    "model": (np.int32, -1, ()),
    "role": (np.int8, 0, ()),
    "accelerator": (np.int32, -1, ()),
    "domain": (np.int32, -1, ()),
    "in_flight": (np.int64, 0, ()),
    "outstanding_tokens": (np.int64, 0, ()),
    "last_pick": (np.int64, 0, ()),
    "foreign_requests": (np.float64, _NEVER, ()),
    "kv_usage": (np.float64, _NEVER, ()),
    "sampled_at": (np.float64, _NEVER, ()),
    "failures": (np.int32, 0, ()),
    "retrial_at": (np.float64, math.inf, ()),
    "prefill_ms": (np.float64, _NEVER, (3,)),
    "kv_capacity": (np.float64, _NEVER, ()),
    "decode_ms": (np.float64, _NEVER, (3,)),
    "experts_ms": (np.float64, 0.0, (2,)),
    "transfer_ms": (np.float64, _NEVER, ()),
    "price": (np.float64, _NEVER, ()),
    # Whole numbers, exact below 2**53: requests not yet prefilled, their uncached tokens, their attention work.
    "pending": (np.float64, 0.0, (3,)),
    "name_hash": (np.uint64, 0, ()),
    "context_tokens": (np.int64, 0, ()),
    # ms and squared ms of each pass, from prompts to come (see `stalls`); exact as well.
    "stalls": (np.float64, 0.0, (2,)),
}
"""Column: type, the value of an empty slot, shape of one entry. Unknown floats are NaN, never 0."""
