"""How loaded a worker is, in tokens it still owes.

Our own reservations are exact and immediate. What others send to the same worker (another router, a direct
client) is seen only through the worker's own counters, seconds later: `foreign` requests. They are turned
into tokens at the size of an average request of ours.

When data is missing it is not zero. A worker never scraped, or scraped too long ago, is given the mean of
the workers that were: it neither attracts nor repels. With nobody scraped, reservations alone decide.
"""

import math

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from penstock.core.fleet import FleetView, Scores, Slots

MAX_SAMPLE_AGE = 30.0
"""Seconds after which a worker's own counters no longer say anything about now."""


def outstanding_tokens(view: FleetView, slots: Slots, now: float) -> Scores:
    """Tokens each worker still owes, ours and (as far as known) others', shape like `slots`."""
    ours = view.outstanding_tokens[slots]
    foreign = foreign_requests(view, slots, now)
    if isinstance(foreign, float):
        return ours
    load: Scores = ours + foreign * view.mean_request_tokens
    return load


def foreign_requests(view: FleetView, slots: Slots | slice, now: float) -> NDArray[np.float64] | float:
    """Requests at each worker that are not ours, shape like `slots`; plain 0.0 when there are none, or nobody was
    sampled lately."""
    if not view.sampled:
        return 0.0
    # Reports come seldom beside requests, and mostly all are fresh: what they come to is kept until the next one.
    kept = view.memo.get("reports")
    if kept is None or kept.samples != view.samples or kept.slots is not slots:
        kept = view.memo["reports"] = _reports(view, slots)
    if now - kept.oldest <= MAX_SAMPLE_AGE:  # NaN (never sampled) compares false
        return kept.foreign
    fresh = now - view.sampled_at[slots] <= MAX_SAMPLE_AGE
    known = np.count_nonzero(fresh)
    if not known:
        return 0.0
    foreign = view.foreign_requests[slots]
    return foreign if known == fresh.size else np.where(fresh, foreign, foreign[fresh].mean())


class _Reports(Struct, frozen=True, eq=False):
    """The reports of some workers together."""

    slots: Slots | slice
    samples: int
    """Of the view, when they were read."""
    oldest: float
    """When the oldest was made; NaN when one is missing."""
    foreign: NDArray[np.float64] | float
    """Requests that are not ours, shape like `slots`; plain 0.0 when nobody has any."""


def _reports(view: FleetView, slots: Slots | slice) -> _Reports:
    foreign = view.foreign_requests[slots]
    oldest = float(view.sampled_at[slots].min(initial=math.inf))
    return _Reports(slots, view.samples, oldest, foreign.copy() if foreign.any() else 0.0)


def predicted_ttft_ms(view: FleetView, slot: int, prompt_tokens: int) -> float | None:
    """Milliseconds the profile says this prompt takes alone on this worker; `None` without a profile.

    prefill ms = a + b*T + c*S with T tokens and S the sum of squares. Queueing is not in it.
    """
    if not view.profiled:
        return None
    a, b, c = view.prefill_ms[slot].tolist()
    predicted: float = a + b * prompt_tokens + c * prompt_tokens * prompt_tokens
    return None if math.isnan(predicted) else predicted
