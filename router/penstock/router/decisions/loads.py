"""How loaded a worker is, in tokens it still owes.

Our own reservations are exact and immediate. What others send to the same worker (another router, a direct
client) is seen only through the worker's own counters, seconds later: `foreign` requests. They are turned
into tokens at the size of an average request of ours.

When data is missing it is not zero. A worker never scraped, or scraped too long ago, is given the mean of
the workers that were: it neither attracts nor repels. With nobody scraped, reservations alone decide.
"""

import math

import numpy as np
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
    """Requests at each worker that are not ours, shape like `slots`; plain 0.0 when nobody was sampled lately."""
    if not view.sampled:
        return 0.0
    fresh = now - view.sampled_at[slots] <= MAX_SAMPLE_AGE  # NaN (never sampled) compares false
    known = np.count_nonzero(fresh)
    if not known:
        return 0.0
    foreign = view.foreign_requests[slots]
    return foreign if known == fresh.size else np.where(fresh, foreign, foreign[fresh].mean())


def predicted_ttft_ms(view: FleetView, slot: int, prompt_tokens: int) -> float | None:
    """Milliseconds the profile says this prompt takes alone on this worker; `None` without a profile.

    prefill ms = a + b*T + c*S with T tokens and S the sum of squares. Queueing is not in it.
    """
    if not view.profiled:
        return None
    a, b, c = view.prefill_ms[slot].tolist()
    predicted: float = a + b * prompt_tokens + c * prompt_tokens * prompt_tokens
    return None if math.isnan(predicted) else predicted
