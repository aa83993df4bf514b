"""The report counts every request once, and leaves out what was not measured instead of calling it zero."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.reports import Outcome, Report, Summary, Verdict, summarise


def outcome(index: int = 0, verdict: Verdict = Verdict.COMPLETED, **fields: object) -> Outcome:
    values: dict[str, object] = {
        "ttft_s": 0.2,
        "e2e_s": 1.2,
        "prompt_tokens": 100,
        "output_tokens": 11,
        "asked_tokens": 11,
    }
    if verdict is not Verdict.COMPLETED:
        values = {"e2e_s": 0.1, "error": "Http500"}
    return Outcome(index, verdict, sent_s=float(index), lag_s=0.001, **(values | fields))  # type: ignore[arg-type]


def report_of(*outcomes: Outcome, ttft: float = 0.5, tpot: float = 0.1) -> Report:
    return summarise(outcomes, ttft_objective_s=ttft, tpot_objective_s=tpot)


def test_times_are_those_of_completed_requests_only() -> None:
    report = report_of(outcome(0), outcome(1, Verdict.FAILED, ttft_s=9.0), outcome(2, Verdict.REJECTED))
    assert report.ttft_seconds == Summary(0.2, 0.2, 0.2, 0.2)
    assert report.tpot_seconds.mean == pytest.approx(0.1)
    assert (report.requests.total, report.requests.completed) == (3, 1)
    assert (report.requests.failed, report.requests.rejected) == (1, 1)


def test_attainment_counts_failed_and_rejected_requests_as_missed() -> None:
    assert report_of(outcome(0), outcome(1, Verdict.FAILED)).attainment == 0.5
    assert report_of(outcome(0), ttft=0.19).attainment == 0.0
    assert report_of(outcome(0), tpot=0.099).attainment == 0.0
    assert report_of(outcome(0)).attainment == 1.0


def test_one_output_token_has_no_time_per_output_token() -> None:
    report = report_of(outcome(0, output_tokens=1))
    assert report.tpot_seconds.mean is None
    assert report.attainment == 1.0


def test_nothing_measured_is_null_and_not_zero() -> None:
    report = report_of()
    assert report.ttft_seconds == Summary(None, None, None, None)
    assert (report.attainment, report.prefix_hit_ratio) == (None, None)


def test_prefix_hits_are_weighed_by_tokens_over_requests_that_say() -> None:
    report = report_of(outcome(0, cached_tokens=50), outcome(1, cached_tokens=0, prompt_tokens=300), outcome(2))
    assert report.prefix_hit_ratio == pytest.approx(50 / 400)


def test_completed_with_fewer_tokens_than_asked_is_shown() -> None:
    assert report_of(outcome(0, asked_tokens=12), outcome(1)).short_outputs == 1


def test_percentiles_interpolate() -> None:
    summary = Summary.of(float(value) for value in range(101))
    assert (summary.p50, summary.p90, summary.p99, summary.mean) == (50.0, 90.0, 99.0, 50.0)


def test_a_report_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version"):
        Report.from_dict({"version": 0})
    with pytest.raises(ValueError, match="is no report"):
        Report.from_dict({"version": 1})


outcomes = st.lists(st.sampled_from(list(Verdict)), max_size=20).map(
    lambda verdicts: [outcome(index, verdict) for index, verdict in enumerate(verdicts)]
)


@given(outcomes, st.randoms(use_true_random=False))
def test_every_request_is_counted_once_in_any_order(sample: list[Outcome], order: random.Random) -> None:
    report = report_of(*sample)
    counts = report.requests
    assert counts.total == len(sample) == counts.completed + counts.failed + counts.rejected
    shuffled = list(sample)
    order.shuffle(shuffled)
    again = report_of(*shuffled)
    assert again.requests == counts
    assert again.attainment == report.attainment


@given(outcomes)
def test_the_json_form_is_read_back_equal(sample: list[Outcome]) -> None:
    report = report_of(*sample)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
