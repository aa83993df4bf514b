"""The search for the highest rate that holds, and the interval over its seeds."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.simulator.capacity import BeyondBounds, Verdict, capacities, capacity, interval, verdict


def holds_below(limit: float, rate: float, seed: int) -> Verdict:
    return Verdict(rate <= limit + seed)


@given(limit=st.floats(0.11, 99), tolerance=st.sampled_from([0.01, 0.05, 0.3]))
def test_the_answer_holds_and_a_little_more_does_not(limit: float, tolerance: float) -> None:
    found = capacity(partial(holds_below, limit), 0.1, 100, tolerance)
    assert found <= limit < found * (1 + tolerance) * (1 + 1e-12)


def test_bounds_that_do_not_enclose_the_limit_are_told() -> None:
    assert capacity(partial(holds_below, 0.5), 1.0, 8.0) == 0.0
    with pytest.raises(BeyondBounds, match=r"8\.0 requests per second hold still"):
        capacity(partial(holds_below, 9.0), 1.0, 8.0)
    for low, high in ((0.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="give 0 < low < high"):
            capacity(partial(holds_below, 9.0), low, high)


def test_seeds_in_parallel_are_seeds_one_after_the_other() -> None:
    run = partial(holds_below, 3.0)
    alone = capacities(run, (4, 0, 2), 0.5, 50.0, processes=1)
    assert alone == capacities(run, (4, 0, 2), 0.5, 50.0, processes=2)
    assert alone == tuple(capacity(run, 0.5, 50.0, seed=seed) for seed in (4, 0, 2))
    assert alone[1] < alone[2] < alone[0]


def test_a_verdict_names_the_first_limit_that_does_not_hold() -> None:
    assert verdict(0.99, [("P99 TBT ms", 285.0, 285.0)]) == Verdict(True)
    assert "98.9%" in verdict(0.989, []).why
    assert verdict(1.0, [("a", 1, 2), ("b", 3, 2), ("c", 9, 2)]).why == "b is 3, above 2"
    assert not verdict(1.0, [("never measured", math.nan, 1.0)]).holds


def test_the_interval_is_students() -> None:
    """Worked by hand: mean 12, deviation sqrt(2.5), t of 4 degrees 2.7764."""
    mean, low, high = interval([10, 11, 12, 13, 14])
    assert (mean, high - mean) == (12.0, pytest.approx(2.7764 * math.sqrt(2.5 / 5), rel=1e-4))
    assert mean - low == pytest.approx(high - mean)
    assert interval([7.0]) == (7.0, -math.inf, math.inf)
    with pytest.raises(ValueError, match="at least one seed"):
        interval([])


@pytest.mark.parametrize("count", [2, 5, 20, 31, 40, 120])
def test_the_interval_covers_the_mean_as_often_as_it_says(count: int) -> None:
    draws = np.random.default_rng(count).normal(3.0, 2.0, (4000, count))
    covered = sum(low <= 3.0 <= high for _, low, high in map(interval, draws.tolist()))
    assert 0.935 < covered / 4000 < 0.965
