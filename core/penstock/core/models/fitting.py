"""A latency profile from a benchmark: six coefficients from when requests were sent, began and ended.

The engine's own passes need not be seen. Of requests to one worker that speaks vLLM's protocol it is known when each
was sent, when its first token came and when its last, and so who was decoding when. With T, S, B and C as in
`latency`, two kinds of equations follow, both linear in what is sought (a, b, c of prefill; d, e, f of decode):

    TTFT of a request that found the worker idle = a + b*T + c*S
    first token to last, n further ones          = d*(n - m) + e*sum(B) + f*sum(C) + m*a + b*sum(T) + c*sum(S)

where m prompts of others were computed meanwhile, each in place of one pass that would only have read the weights, and
the sums of B and C run over the request's n passes, taken to lie evenly between its first token and its last. All of
them are solved at once by least squares of relative errors, no coefficient below 0.

What identifies what: idle arrivals of several lengths give prefill, so a benchmark needs a quiet part; several levels
of load give e and f apart. Prompts so short that their pass only read the weights lie on no line: they are left out of
the second of two fits. A prompt that took more than one pass, and passes that hold several prompts, are errors of the
model and show in the residuals, which `Fit` reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from penstock.core.models.fitting_solve import (
    LEAST,
    Array,
    Fit,
    Quality,
    non_negative_least_squares,
    quality,
    solve_relative,
)
from penstock.core.models.latency import LatencyProfile, ProfileSource, attention_work

__all__ = ["Fit", "Observed", "Quality", "fit_profile", "non_negative_least_squares"]

_CLEAR = 1.2  # Times the floor from which a prompt's pass is surely longer than reading the weights.
_TOLD_APART = 1.5  # Times the smallest batch that the largest one must have.


@dataclass(frozen=True, slots=True)
class Observed:
    """One completed request to the worker, seconds from the start of the run."""

    sent_s: float
    first_s: float
    last_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0

    @property
    def computed(self) -> tuple[float, float]:
        """(T, S) of its prefill."""
        new = self.prompt_tokens - self.cached_tokens
        return float(new), attention_work(new, self.cached_tokens)


def fit_profile(observed: Sequence[Observed], provenance: str) -> Fit:
    """Fit a worker's profile. Raises ValueError, saying what to measure, when the run cannot tell."""
    line = sorted(observed, key=lambda one: one.sent_s)
    idle = [one for one in _found_idle(line) if one.prompt_tokens > one.cached_tokens]
    lasting = [one for one in line if one.output_tokens > 1]
    for what, count, hint in (
        ("requests that found the worker idle", len(idle), "send some with long gaps"),
        ("requests with more than one output token", len(lasting), "send longer ones"),
    ):
        if count < LEAST:
            raise ValueError(f"the run has {count} {what}, {LEAST} are needed to fit a profile; {hint}")
    if len({one.prompt_tokens - one.cached_tokens for one in idle}) < 3:
        raise ValueError("requests that found the worker idle have fewer than 3 lengths of prompt; vary them")
    decode_rows = _decode_rows(line, lasting)
    decode_times = np.array([one.last_s - one.first_s for one in lasting]) * 1e3
    batches = decode_rows[:, 4] / np.array([one.output_tokens - 1 for one in lasting])
    if batches.max() < _TOLD_APART * batches.min():
        raise ValueError(
            f"every batch of the run had about {batches.mean():.1f} sequences, so what one costs cannot be told; send "
            "requests one by one and others together"
        )
    prefill_rows = np.array([(1.0, *one.computed, 0.0, 0.0, 0.0) for one in idle])
    prefill_times = np.array([one.first_s - one.sent_s for one in idle]) * 1e3
    found = _joint(prefill_rows, prefill_times, decode_rows, decode_times)
    above = prefill_rows[:, :3] @ found[:3] > (found[3] + found[4]) * _CLEAR
    if above.sum() >= LEAST and not above.all():
        found = _joint(prefill_rows[above], prefill_times[above], decode_rows, decode_times)
    a, b, c, d, e, f = (float(value) for value in found)
    profile = LatencyProfile((a, b, c), (d, e, f), ProfileSource.BENCHMARK, provenance)
    predicted = profile.prefill_ms(prefill_rows[:, 1], prefill_rows[:, 2])
    return Fit(profile, quality(predicted, prefill_times), quality(decode_rows @ found, decode_times))


def _joint(prefill_rows: Array, prefill_times: Array, decode_rows: Array, decode_times: Array) -> Array:
    """The six coefficients that both kinds of equations agree on best."""
    return solve_relative(np.vstack([prefill_rows, decode_rows]), np.concatenate([prefill_times, decode_times]))


def _found_idle(line: list[Observed]) -> list[Observed]:
    """Requests that nobody else's life reaches into between their sending and their first token."""
    return [
        one
        for one in line
        if not any(other is not one and other.sent_s < one.first_s and other.last_s > one.sent_s for other in line)
    ]


def _decode_rows(line: list[Observed], lasting: list[Observed]) -> Array:
    """Coefficients of (a, b, c, d, e, f) in each request's time from its first token to its last."""
    first, last = np.array([o.first_s for o in line]), np.array([o.last_s for o in line])
    prompts, steps = np.array([o.prompt_tokens for o in line]), np.array([max(o.output_tokens - 1, 0) for o in line])
    work = np.array([o.computed for o in line])
    rows = []
    for one in lasting:
        passes, span = one.output_tokens - 1, one.last_s - one.first_s
        begin, end = np.maximum(first, one.first_s), np.minimum(last, one.last_s)
        shared = np.clip(end - begin, 0.0, None)
        # How far each of the others had come, on average over the time that both decoded.
        middle = np.clip((0.5 * (begin + end) - first) / np.maximum(last - first, 1e-9), 0.0, 1.0)
        batch = float((shared / span).sum())
        context = float((shared / span * (prompts + middle * steps)).sum())
        between = (first > one.first_s) & (first <= one.last_s)
        count = float(between.sum())
        tokens, squares = work[between].sum(axis=0)
        rows.append((count, tokens, squares, max(passes - count, 0.0), passes * batch, passes * context))
    return np.array(rows)
