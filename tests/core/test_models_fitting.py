"""Profiles fitted from a run: what was put in comes out, and what a run cannot tell is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.models import LatencyProfile, ProfileSource
from penstock.core.models.fitting import Observed, fit_profile, non_negative_least_squares

TRUE = LatencyProfile((15.0, 0.12, 5e-6), (25.0, 0.4, 3e-4), ProfileSource.BENCHMARK, "made up")


def alone(count: int, seed: int = 0) -> list[Observed]:
    """Requests that never meet, on an engine that is exactly its profile."""
    rng = np.random.default_rng(seed)
    made, now = [], 0.0
    for _ in range(count):
        prompt, output = int(rng.integers(20, 3000)), int(rng.integers(2, 60))
        first = now + TRUE.prefill_ms(prompt) / 1e3
        last = first + sum(TRUE.decode_ms(1, prompt + k) for k in range(output - 1)) / 1e3
        made.append(Observed(now, first, last, prompt, output))
        now = last + 0.01
    return made


def crowds(begin: float, seed: int = 0) -> list[Observed]:
    """Groups of requests that are decoded together from the same instant on."""
    rng = np.random.default_rng(seed)
    made, now = [], begin
    for size in (2, 3, 5, 8, 13, 21):
        prompts, output = rng.integers(50, 1500, size), int(rng.integers(10, 50))
        first = now + 1.0
        passes = (TRUE.decode_ms(size, int(prompts.sum()) + size * k) for k in range(output - 1))
        last = first + sum(passes) / 1e3
        made += [Observed(now, first, last, int(prompt), output) for prompt in prompts]
        now = last + 0.01
    return made


def run(seed: int = 0) -> list[Observed]:
    lone = alone(60, seed)
    return [*lone, *crowds(lone[-1].last_s + 1.0, seed)]


def test_what_was_put_in_comes_out() -> None:
    fit = fit_profile(run(), "test")
    for n in (100, 1000, 2500):
        assert fit.profile.prefill_ms(n) == pytest.approx(TRUE.prefill_ms(n), rel=0.005)
        for batch in (1, 4, 32):
            assert fit.profile.decode_ms(batch, batch * n) == pytest.approx(TRUE.decode_ms(batch, batch * n), rel=0.02)
    assert fit.prefill.r_squared > 0.99 and fit.decode.median_error < 0.01
    assert fit.profile.provenance == "test" and fit.profile.source is ProfileSource.BENCHMARK


def test_a_noisier_run_reports_a_larger_error() -> None:
    rng = np.random.default_rng(1)
    noisy = []
    for one in run():
        shift = (one.first_s - one.sent_s) * float(rng.normal(0, 0.2))
        noisy.append(Observed(one.sent_s - shift, one.first_s, one.last_s, one.prompt_tokens, one.output_tokens))
    assert fit_profile(noisy, "").prefill.median_error > 5 * fit_profile(run(), "").prefill.median_error


def test_a_machine_that_stood_still_for_once_moves_nothing_but_the_reported_error() -> None:
    stalled = run()
    one = stalled[20]
    stalled[20] = Observed(one.sent_s - 5.0, one.first_s, one.last_s, one.prompt_tokens, one.output_tokens)
    lone = [o for o in stalled if o is stalled[20] or not (one.sent_s - 5.0 < o.last_s and o.sent_s < one.sent_s)]
    fit = fit_profile(lone, "")
    assert fit.profile.prefill_ms(1000) == pytest.approx(TRUE.prefill_ms(1000), rel=0.01)
    assert fit.prefill.r_squared < 0.9


@pytest.mark.parametrize(
    ("observed", "sentence"),
    [
        ([], "found the worker idle"),
        ([Observed(0, 1, 2, 10, 5)] * 20, "found the worker idle"),
        ([Observed(i, i + 0.1, i + 0.1, 10 + i, 1) for i in range(20)], "more than one output token"),
        ([Observed(i, i + 0.1, i + 0.2, 10, 5) for i in range(20)], "fewer than 3 lengths"),
        (alone(20), "send requests one by one and others together"),
    ],
)
def test_what_a_run_cannot_tell_is_said(observed: list[Observed], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fit_profile(observed, "")


@given(st.lists(st.floats(0, 10), min_size=3, max_size=3), st.integers(0, 1000))
def test_least_squares_find_what_is_there_and_nothing_below_zero(truth: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.uniform(0, 1, (20, 3)) * np.array([1.0, 1e3, 1e6])
    found = non_negative_least_squares(rows, rows @ np.array(truth))
    assert found == pytest.approx(truth, rel=1e-6, abs=1e-6)
    pulled = non_negative_least_squares(rows, -rows @ (np.array(truth) + 1.0))
    assert (pulled == 0).all()
