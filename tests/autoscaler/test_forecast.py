"""Demand by conservation, and the forecast made of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.autoscaler.decisions import TimedSample, WorkerHistory
from penstock.autoscaler.decisions.demand import NOTHING_KNOWN, DemandRules, TokenMix, measure
from penstock.autoscaler.decisions.forecast import ForecastRules, Look, Point, forecast, slope
from penstock.core.wire import EngineSample, Total

RULES = DemandRules(window_s=60, recent_s=15, fresh_s=15)


def sample(at: float, ended: float, running: float, waiting: float = 0.0) -> TimedSample:
    return TimedSample(
        at,
        EngineSample(
            running=running,
            waiting=waiting,
            finished={"stop": ended},
            prompt_tokens=ended * 1000,
            cached_prompt_tokens=ended * 400,
            prompt_length=Total(ended * 1000, ended),
            output_length=Total(ended * 50, ended),
        ),
    )


def worker(*samples: TimedSample) -> WorkerHistory:
    return WorkerHistory("w", samples)


def test_a_growing_queue_is_demand() -> None:
    """The engine ends 2 a second whatever comes; 5 a second came."""
    history = worker(*(sample(float(t), 2.0 * t, 8.0, 3.0 * t) for t in range(0, 61, 5)))
    demand = measure([history], 60.0, RULES)
    assert demand.arrivals.value == pytest.approx(5.0)
    assert [(look.span_s, look.rate) for look in demand.looks] == [(span, pytest.approx(5.0)) for span in (60, 30, 15)]
    assert demand.waiting.value == 180


def test_a_restarted_engine_is_no_negative_demand() -> None:
    history = worker(sample(0, 1000, 5), sample(30, 1010, 5), sample(60, 4, 5))
    assert measure([history], 60.0, RULES).arrivals.value == pytest.approx(14 / 60)


def test_a_new_worker_is_not_extrapolated() -> None:
    old = worker(*(sample(float(t), 2.0 * t, 5) for t in range(0, 61, 5)))
    new = worker(sample(55, 0, 0), sample(60, 10, 0))
    assert measure([old, new], 60.0, RULES).arrivals.value == pytest.approx((120 + 10) / 60)


def test_silence_ages_and_covers_less() -> None:
    answering = worker(*(sample(float(t), 2.0 * t, 5) for t in range(0, 61, 5)))
    silent = worker(*(sample(float(t), 2.0 * t, 5) for t in range(0, 31, 5)))
    demand = measure([answering, silent], 60.0, RULES)
    assert (demand.arrivals.value, demand.arrivals.coverage) == (pytest.approx(2.0), 0.5)
    held = measure([silent], 90.0, RULES)
    assert (held.arrivals.value, held.arrivals.age) == (pytest.approx(2.0), 60.0)
    assert measure([worker()], 60.0, RULES) == NOTHING_KNOWN


def test_the_mix_is_of_requests_that_ended() -> None:
    history = worker(sample(0, 0, 5), sample(60, 10, 5))
    mix = measure([history], 60.0, RULES).mix
    assert mix == TokenMix(prompt=1000, computed=pytest.approx(600), output=50)
    assert measure([worker(sample(0, 5, 1), sample(60, 5, 1))], 60.0, RULES).mix is None


@given(st.floats(0.0, 4.9), st.floats(0.1, 20.0), st.integers(1, 8))
def test_when_a_worker_is_scraped_does_not_change_what_came(phase: float, rate: float, workers: int) -> None:
    """The same even flow, looked at by scrapes at other times, and by each worker at its own."""
    histories = [
        worker(*(sample(at, rate * at, 3.0) for at in (phase * number / workers + 5.0 * n for n in range(14))))
        for number in range(1, workers + 1)
    ]
    demand = measure(histories, 70.0, RULES)
    assert [look.span_s for look in demand.looks] == [60.0, 30.0, 15.0]
    assert all(look.rate == pytest.approx(workers * rate) for look in demand.looks)


def test_a_window_that_begins_between_two_scrapes_takes_its_part_of_what_came_between_them() -> None:
    """10 came between 40 s and 50 s; the last 15 s begin at 45 s."""
    history = worker(sample(0, 0, 0), sample(40, 0, 0), sample(50, 10, 0), sample(60, 16, 0))
    assert [look.rate for look in measure([history], 60.0, RULES).looks] == [16 / 60, 16 / 30, (5 + 6) / 15]


def series(*values: float, every: float = 5.0) -> list[Point]:
    return [Point(at * every, value) for at, value in enumerate(values)]


def at(slow: float, recent: float, history: list[Point] | None = None, ahead: float = 30.0) -> tuple[float, float]:
    points = history if history is not None else series(*[slow] * 24)
    made = forecast(points, len(points) * 5.0, [Look(slow, 60.0), Look(recent, 15.0)], ahead)
    return made.level, made.upper


def test_a_step_is_seen_in_the_short_window() -> None:
    level, _ = at(slow=4.0, recent=16.0)
    assert level == pytest.approx(16.0, rel=0.1)


def test_quiet_noise_does_not_raise_the_level() -> None:
    level, _ = at(slow=4.0, recent=4.4)
    assert level == 4.0


def test_a_fall_waits_for_the_long_window() -> None:
    assert at(slow=16.0, recent=4.0)[0] == 16.0


def test_a_ramp_is_met_where_it_will_be_but_a_step_is_no_ramp() -> None:
    ramp = [Point(t * 5.0, 10 + 0.05 * t * 5.0) for t in range(24)]
    assert at(16.0, 16.0, ramp, ahead=30.0)[0] == pytest.approx(17.5, rel=0.02)
    steep = [Point(t * 5.0, 1.0 * t) for t in range(24)]
    assert at(24.0, 24.0, steep, ahead=600.0)[0] == pytest.approx(24.0 * 1.3)


def test_one_outlier_bends_no_slope() -> None:
    assert slope(series(*[5.0] * 10, 50.0, *[5.0] * 10)) == 0.0


def test_a_step_is_taken_for_what_the_short_look_says_with_its_doubt() -> None:
    level, upper = at(slow=4.0, recent=16.0)
    assert level == 16.0
    # One standard deviation of what 15 s of independent arrivals do, at the 95 % quantile.
    assert upper == pytest.approx(16.0 + 1.6449 * (16.0 / 15.0) ** 0.5, rel=1e-3)
    # Two deviations above, half of it is believed; one above, nothing.
    assert at(slow=4.0, recent=5.172)[0] == pytest.approx(4.0 + 1.172 / 2, rel=1e-3)
    assert at(slow=4.0, recent=4.55)[0] == pytest.approx(4.0, rel=1e-3)


@given(st.floats(0.1, 50.0), st.floats(0.0, 100.0), st.floats(0.0, 0.01))
def test_a_little_more_in_the_short_look_never_changes_much(slow: float, recent: float, more: float) -> None:
    """No threshold that one request more or less could cross: three looks, any step."""
    quiet = series(*[slow] * 24)

    def upper(rate: float) -> float:
        return forecast(quiet, 120.0, [Look(slow, 60), Look((slow + rate) / 2, 30), Look(rate, 15)], 30.0).upper

    before, after = upper(recent), upper(recent + more)
    assert after >= before - 1e-9
    assert after - before <= 6 * more + 1e-6


@given(st.floats(0.0, 50.0), st.lists(st.floats(0.0, 100.0), min_size=1, max_size=3))
def test_what_surely_comes_is_no_more_than_is_expected_and_no_less_than_nothing(
    slow: float, rates: list[float]
) -> None:
    looks = [Look(slow, 60.0), *(Look(rate, 30.0 / 2**number) for number, rate in enumerate(rates))]
    made = forecast(series(*[slow] * 24), 120.0, looks, 30.0)
    assert 0.0 <= made.sure <= made.level <= made.upper


def test_a_forecast_without_a_look_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one look"):
        forecast([], 0.0, [], 30.0)


@given(st.floats(0, 1e4), st.floats(0, 1e4), st.floats(1, 10))
def test_more_load_never_means_a_lower_forecast(slow: float, recent: float, factor: float) -> None:
    quiet = series(*[slow] * 10)
    loud = series(*[slow * factor] * 10)
    assert at(slow, recent, quiet)[1] <= at(slow * factor, max(1.0, recent * factor), loud)[1] + 1e-6 or recent < 0.1


@given(st.floats(0.5, 0.99), st.floats(0.5, 0.99))
def test_a_higher_quantile_is_never_lower(one: float, two: float) -> None:
    low, high = sorted((one, two))
    points = series(3, 5, 4, 6, 5, 4, 5)

    def upper(quantile: float) -> float:
        return forecast(points, 35.0, [Look(5.0, 60), Look(5.0, 15)], 30.0, ForecastRules(quantile=quantile)).upper

    assert upper(low) <= upper(high)
