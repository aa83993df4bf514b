"""Missing data is not zero: it lowers coverage, ages, and never moves a value that others still measure."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.autoscaler.decisions import Rules, TimedSample, WorkerHistory, aggregate, increase
from penstock.core.fleet import UNKNOWN
from penstock.core.wire import EngineSample, Total

RULES = Rules(window_s=60, fresh_s=15)


def history(name: str, *samples: tuple[float, EngineSample]) -> WorkerHistory:
    return WorkerHistory(name, tuple(TimedSample(at, sample) for at, sample in samples))


def busy(running: float, kv: float = 0.5) -> EngineSample:
    return EngineSample(running=running, waiting=0.0, kv_usage=kv)


def counted(tokens: float, ttft: tuple[float, float] = (0, 0), hits: tuple[float, float] = (0, 0)) -> EngineSample:
    return EngineSample(
        generation_tokens=tokens,
        prompt_tokens=tokens,
        finished={"stop": tokens, "length": tokens},
        ttft=Total(*ttft),
        prefix_hits=hits[0],
        prefix_queries=hits[1],
    )


def test_sums_and_means_of_fresh_workers() -> None:
    signals = aggregate([history("a", (95, busy(3, 0.2))), history("b", (98, busy(5, 0.6)))], 100, RULES)
    assert (signals.running_requests.value, signals.running_requests.age) == (8, 5)
    assert signals.kv_usage_ratio.value == pytest.approx(0.4)
    assert signals.running_requests.coverage == 1.0


def test_a_worker_that_never_answered_lowers_coverage_only() -> None:
    signals = aggregate([history("a", (99, busy(3, 0.2))), history("b")], 100, RULES)
    assert (signals.running_requests.value, signals.running_requests.coverage) == (3, 0.5)
    assert signals.kv_usage_ratio.value == pytest.approx(0.2)


def test_a_stale_worker_is_set_aside_while_another_is_fresh() -> None:
    signals = aggregate([history("a", (99, busy(3))), history("b", (10, busy(50)))], 100, RULES)
    assert (signals.running_requests.value, signals.running_requests.age) == (3, 1)
    assert signals.running_requests.coverage == 0.5


def test_when_all_are_stale_the_last_values_are_held_with_their_age() -> None:
    signals = aggregate([history("a", (20, busy(3))), history("b", (10, busy(5)))], 100, RULES)
    assert (signals.running_requests.value, signals.running_requests.age) == (8, 90)
    assert not signals.running_requests.fresh(15)


def test_nothing_measured_is_unknown() -> None:
    for workers in ([], [history("a")]):
        signals = aggregate(workers, 100, RULES)
        assert signals.running_requests == UNKNOWN
        assert signals.generation_tokens_per_second == UNKNOWN


def test_one_sample_gives_no_rate() -> None:
    signals = aggregate([history("a", (99, counted(500)))], 100, RULES)
    assert not signals.generation_tokens_per_second.known


def test_rates_are_growth_over_the_time_between_samples() -> None:
    signals = aggregate([history("a", (80, counted(100)), (90, counted(150)), (100, counted(300)))], 100, RULES)
    assert signals.generation_tokens_per_second.value == pytest.approx(10)
    assert signals.finished_requests_per_second.value == pytest.approx(20)


def test_a_restarted_worker_does_not_give_a_negative_rate() -> None:
    signals = aggregate([history("a", (80, counted(1000)), (90, counted(1100)), (100, counted(40)))], 100, RULES)
    assert signals.generation_tokens_per_second.value == pytest.approx((100 + 40) / 20)


def test_means_weigh_workers_by_their_requests() -> None:
    workers = [
        history("a", (90, counted(0, (0, 0))), (100, counted(0, (9, 9)))),
        history("b", (90, counted(0, (50, 10))), (100, counted(0, (53, 11)))),
    ]
    assert aggregate(workers, 100, RULES).ttft_mean_seconds.value == pytest.approx((9 + 3) / 10)


def test_no_request_in_the_window_is_no_mean_and_not_a_mean_of_zero() -> None:
    idle = history("a", (90, counted(5, (7, 7), (1, 2))), (100, counted(5, (7, 7), (1, 2))))
    signals = aggregate([idle], 100, RULES)
    assert math.isnan(signals.ttft_mean_seconds.value) and not signals.ttft_mean_seconds.known
    assert math.isnan(signals.prefix_hit_ratio.value)
    assert signals.generation_tokens_per_second.value == 0.0 and signals.generation_tokens_per_second.known


def test_samples_before_the_window_do_not_count() -> None:
    old = history("a", (10, counted(0)), (95, counted(900)), (100, counted(950)))
    assert aggregate([old], 100, RULES).generation_tokens_per_second.value == pytest.approx(10)


def test_a_silent_worker_is_held_at_what_it_last_did() -> None:
    silent = history("a", (90, counted(0)), (100, counted(50)))
    later = aggregate([silent], 100_000, RULES).generation_tokens_per_second
    assert (later.value, later.age) == (pytest.approx(5), 99_900)


@pytest.mark.parametrize("nonsense", [math.inf, -1.0, -math.inf])
def test_values_that_are_no_counts_are_passed_over(nonsense: float) -> None:
    workers = [history("a", (98, busy(4)), (99, busy(nonsense))), history("b", (99, busy(nonsense)))]
    signals = aggregate(workers, 100, RULES)
    assert (signals.running_requests.value, signals.running_requests.coverage) == (4, 0.5)


def test_a_series_that_is_missing_from_the_page_is_not_zero() -> None:
    signals = aggregate([history("a", (99, EngineSample(running=1.0)))], 100, RULES)
    assert signals.running_requests.known
    assert signals.waiting_requests == UNKNOWN


def test_one_reading_has_no_increase() -> None:
    with pytest.raises(ValueError, match="two readings"):
        increase([(1.0,)])


segments = st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=5), min_size=1, max_size=4)


@given(segments)
def test_an_increase_counts_everything_when_resets_fall_on_readings(runs: list[list[int]]) -> None:
    """Each inner list is what one process counted between readings; the first reading of a process is its start."""
    points, expected = [], 0
    for steps in runs:
        total = 0
        points.append((0.0, 0.0))
        for step in steps:
            total += step
            points.append((float(total), float(2 * total)))
        expected += total
    assert increase(points) == (expected, 2 * expected)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=2, max_size=20))
def test_an_increase_is_never_negative(points: list[tuple[float, float]]) -> None:
    assert all(grown >= 0 for grown in increase(points))


workers = st.lists(
    st.one_of(st.none(), st.tuples(st.floats(86, 100), st.integers(1, 50), st.floats(0.01, 1))), min_size=1, max_size=12
)


@given(workers, st.randoms(use_true_random=False))
def test_missing_workers_lower_coverage_and_nothing_else(
    given_workers: list[tuple[float, int, float] | None], order: random.Random
) -> None:
    histories = [
        history(str(i)) if w is None else history(str(i), (w[0], busy(w[1], w[2]))) for i, w in enumerate(given_workers)
    ]
    answering = [h for h in histories if h.samples]
    signals, without = aggregate(histories, 100, RULES), aggregate(answering, 100, RULES)
    order.shuffle(histories)
    assert aggregate(histories, 100, RULES) == signals
    assert signals.running_requests.coverage == pytest.approx(len(answering) / len(histories))
    if answering:
        assert signals.running_requests.value == without.running_requests.value > 0
        shares = [w[2] for w in given_workers if w]
        assert min(shares) - 1e-9 <= signals.kv_usage_ratio.value <= max(shares) + 1e-9
        assert signals.running_requests.age == pytest.approx(100 - min(w[0] for w in given_workers if w))
    else:
        assert signals.running_requests == UNKNOWN
