"""The search for a split finds the best one, and asks for limits only where they can matter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.simulator.capacity import Verdict
from penstock.simulator.splits import best_split


def plays_of(best: float, peak: float, slope: float, asked: list | None = None):
    """A cluster whose capacity falls off on both sides of the best share."""

    def plays(share: float, rate: float) -> Verdict:
        if asked is not None:
            asked.append((share, rate))
        return Verdict(rate <= peak * max(0.05, 1.0 - slope * abs(share - best)))

    return plays


@given(st.floats(0.05, 0.95), st.floats(20, 150), st.floats(0.5, 3.0))
def test_the_best_share_is_found_within_a_step_and_the_tolerance(best: float, peak: float, slope: float) -> None:
    found = best_split(plays_of(best, peak, slope), 1.0, 200.0, tolerance=0.02, step=0.1, fine=0.02)
    assert found.rate <= peak
    bears = peak * max(0.05, 1.0 - slope * abs(found.share - best))
    reachable = peak * (1.0 - slope * 0.02)  # The nearest share of the second round lies this close at worst.
    assert bears >= reachable / 1.02**3
    assert found.rate * 1.02 >= bears / 1.02


def test_a_split_that_bears_less_costs_one_run() -> None:
    asked: list[tuple[float, float]] = []
    best_split(plays_of(0.5, 100.0, 2.0, asked), 10.0, 200.0, step=0.2, fine=0.2)
    assert [sum(share == other for share, _ in asked) for other in (0.3, 0.7)] == [2, 2]  # Once in each round.


def test_where_nothing_holds_the_rate_is_zero() -> None:
    found = best_split(lambda share, rate: Verdict(False), 10.0, 200.0)
    assert (found.share, found.rate) == (0.5, 0.0)


def test_where_everything_holds_the_rate_is_the_bound() -> None:
    found = best_split(lambda share, rate: Verdict(True), 10.0, 200.0)
    assert (found.share, found.rate) == (0.5, 200.0)


@pytest.mark.parametrize(("step", "fine"), [(0.5, 0.1), (0.1, 0.2), (0.1, 0.0)])
def test_steps_that_make_no_sense_are_refused(step: float, fine: float) -> None:
    with pytest.raises(ValueError, match="fine <= step"):
        best_split(lambda share, rate: Verdict(True), 1.0, 2.0, step=step, fine=fine)
