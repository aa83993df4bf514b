"""The report from columns is the report from outcomes, and its curves and courses add up."""

from __future__ import annotations

import math
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.engine import SchedulingPolicy
from penstock.core.reports import Outcome, Report, Verdict, summarise
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator import Crash, Scenario, StartUp, make_report, simulate
from penstock.simulator.compare import Compared
from penstock.simulator.figures import Seen, attainment_curve, groups, intervals
from penstock.simulator.files import Traces, parse_scenario
from penstock.simulator.outcomes import Outcomes
from penstock.simulator.pages.compared import row
from penstock.simulator.pages.run import run_page
from penstock.simulator.pages.scaled import change_cells
from penstock.simulator.pages.words import interval_words
from penstock.simulator.report import ClassUse, Resources
from penstock.simulator.study import METRICS, Spread, play_all
from penstock.simulator.timeline import Sample, Timeline
from penstock.simulator.twin import Result
from penstock.simulator.workloads import LengthShape, Tenant, arrivals, with_models, with_tenants

DOCS = Path(__file__).resolve().parents[2] / "docs" / "concepts"
NOTHING = ClassUse(0, 0, 0.0, 0.0, 0.0, None, 0.0, 0.0)


@st.composite
def an_outcome(draw: st.DrawFn, index: int) -> Outcome:
    verdict = draw(st.sampled_from(Verdict))
    seconds = st.floats(0, 1000)
    maybe = st.none() | st.integers(0, 5000)
    ttft = draw(st.none() | seconds)
    error = None if verdict is Verdict.COMPLETED else draw(st.sampled_from(["Reset", "Http503", "Saturated"]))
    return Outcome(
        index, verdict, draw(seconds), draw(st.floats(0, 1)), ttft, draw(st.none() | seconds), draw(maybe), draw(maybe),
        draw(maybe), draw(st.integers(0, 5000)), error, None if error is None else draw(st.none() | st.text()),
    )  # fmt: skip


@st.composite
def some_outcomes(draw: st.DrawFn) -> list[Outcome]:
    numbers = draw(st.lists(st.integers(0, 40), unique=True, max_size=25))
    return [draw(an_outcome(number)) for number in numbers]


def columns(outcomes: list[Outcome], total: int = 41) -> Outcomes:
    kept = Outcomes(total)
    for outcome in outcomes:
        kept.put(outcome)
    return kept


def result_of(outcomes: Outcomes, timeline: tuple[Sample, ...] = (), end: float = 10.0) -> Result:
    return Result(outcomes, Resources(NOTHING, {}), end, 1, 1, timeline)


def close(one: object, other: object) -> bool:
    """Equal but for the last bits of sums."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-12)
    return one == other


@given(some_outcomes(), st.floats(0, 500), st.floats(0, 1))
def test_outcomes_come_out_of_their_columns_as_they_went_in(outcomes: list[Outcome], ttft: float, tpot: float) -> None:
    kept = columns(outcomes)
    assert list(kept) == sorted(outcomes, key=lambda outcome: outcome.index)
    assert len(kept) == len(outcomes)
    put = {outcome.index for outcome in outcomes}
    assert all((kept[number] is not None) == (number in put) for number in range(41))
    met = Seen(kept).meets(ttft, tpot)
    assert met.tolist() == [outcome.meets(ttft, tpot) for outcome in kept]


@given(some_outcomes(), st.floats(0, 500), st.floats(0, 1))
def test_the_report_from_columns_is_that_of_the_replay(outcomes: list[Outcome], ttft: float, tpot: float) -> None:
    # A completed request without a count of output tokens misses its objective in both, and counts none.
    report = make_report(result_of(columns(outcomes)), ttft_s=ttft, tpot_s=tpot)
    expected = summarise(outcomes, ttft_objective_s=ttft, tpot_objective_s=tpot)
    ours, theirs = replace(report, run={}).to_dict(), expected.to_dict()
    assert dict(ours.pop("errors")) == dict(theirs.pop("errors"))
    assert close(ours, theirs)


def test_a_request_that_ends_twice_is_a_defect() -> None:
    kept = columns([Outcome(3, Verdict.FAILED, 0.0, 0.0)])
    with pytest.raises(RuntimeError, match="request 3 ended twice"):
        kept.put(Outcome(3, Verdict.COMPLETED, 0.0, 0.0))


@given(some_outcomes(), st.floats(0.001, 500), st.floats(0.001, 1))
def test_attainment_never_falls_as_objectives_are_relaxed(outcomes: list[Outcome], ttft: float, tpot: float) -> None:
    curve = attainment_curve(Seen(columns(outcomes)), ttft, tpot)
    assert [point.scale for point in curve][:2] == [0.5, 0.75]
    assert curve[-1].scale == 4.0
    if not outcomes:
        assert all(point.attainment is None for point in curve)
        return
    for name in ("attainment", "ttft", "tpot"):
        values = [getattr(point, name) for point in curve]
        assert values == sorted(values)
    assert all(point.attainment <= min(point.ttft, point.tpot) for point in curve)
    one = next(point for point in curve if point.scale == 1.0)
    assert one.attainment == summarise(outcomes, ttft_objective_s=ttft, tpot_objective_s=tpot).attainment


def long_run(scenario: Scenario) -> tuple[Trace, Result]:
    trace = LengthShape(400, 60).draw(arrivals(6.0, 60.0, seed=1), 1)
    crashes = (Crash(20.0, 1),)
    return trace, simulate(replace(scenario, crashes=crashes, start_up=StartUp(0, 0, 5, 5, 5)), trace)


def test_the_course_of_a_run_adds_up(scenario: Scenario) -> None:
    trace, result = long_run(scenario)
    course = intervals(Seen(result.outcomes), result.timeline, 1.0, 0.1)
    assert [one.start_s for one in course[1:]] == [one.end_s for one in course[:-1]]
    assert (course[0].start_s, course[-1].end_s) == (0.0, result.end_s)
    spans = [one.end_s - one.start_s for one in course]
    total = sum(span * one.sent_per_s for span, one in zip(spans, course, strict=True))
    assert total == pytest.approx(len(trace.requests))
    completed = sum(outcome.verdict is Verdict.COMPLETED for outcome in result.outcomes)
    assert sum(s * one.completed_per_s for s, one in zip(spans, course, strict=True)) == pytest.approx(completed)
    alive = sum(outcome.e2e_s for outcome in result.outcomes)
    assert sum(s * one.in_flight for s, one in zip(spans, course, strict=True)) == pytest.approx(alive)
    use = result.resources.total
    assert sum(s * one.watts for s, one in zip(spans, course, strict=True)) == pytest.approx(use.joules)
    busy = sum(s * one.utilisation for s, one in zip(spans, course, strict=True)) / result.end_s
    assert busy == pytest.approx(use.busy_share)
    # The crash is seen: three workers from a second after it until it has started again.
    assert {one.workers_ready for one in course if 22.0 < one.end_s < 35.0} == {3}
    assert {one.workers_ready for one in course if one.end_s < 20.0 or one.end_s > 37.0} == {4}
    assert all(0.0 <= one.kv_usage <= 1.0 for one in course)


def test_a_timeline_keeps_few_samples_however_long_the_run() -> None:
    timeline, at = Timeline(interval_s=1.0, most=50), 0.0
    for _ in range(1000):
        at = timeline.add(Sample(at, 1, 0, 0, 0.0, 0.0, 0.0))
    kept = timeline.end(Sample(at + 0.5, 1, 0, 0, 0.0, 0.0, 0.0))
    assert 25 <= len(kept) <= 52
    assert kept[0].at_s == 0.0
    gaps = np.diff([sample.at_s for sample in kept[:-1]])
    assert set(gaps.tolist()) == {timeline.interval_s}


def test_whose_number_is_lower_goes_first_where_engines_queue_by_priority(scenario: Scenario) -> None:
    crowd = LengthShape(1500, 150, max_tokens=4000).draw(arrivals(12.0, 40.0, seed=1), 1)
    crowd = with_tenants(crowd, (Tenant("paying", 1.0, 0), Tenant("free", 3.0, 1)), seed=1)
    waits = {}
    for policy in SchedulingPolicy:
        report = make_report(simulate(replace(scenario, scheduling_policy=policy), crowd), ttft_s=1.0, tpot_s=0.1)
        waits[policy] = {name: one["ttft_seconds"]["mean"] for name, one in report.run["tenants"].items()}
    fair, ranked = waits[SchedulingPolicy.FCFS], waits[SchedulingPolicy.PRIORITY]
    assert 0.7 < fair["paying"] / fair["free"] < 1.4
    assert ranked["paying"] < 0.3 * ranked["free"]


def test_tenants_and_models_are_told_apart(scenario: Scenario) -> None:
    trace = LengthShape(400, 60).draw(arrivals(6.0, 30.0, seed=1), 1)
    trace = with_models(with_tenants(trace, (Tenant("a"), Tenant("b", 2.0))), ["x", "y", "z"])
    result = simulate(scenario, trace)
    report = make_report(result, ttft_s=1.0, tpot_s=0.1)
    assert set(report.run["tenants"]) == {"a", "b"}
    assert sum(one["requests"] for one in report.run["models"].values()) == len(trace.requests)
    met = sum(one["attainment"] * one["requests"] for one in report.run["tenants"].values())
    assert met / len(trace.requests) == pytest.approx(report.attainment)
    assert Report.from_dict(report.to_dict()) == report
    nobody = simulate(scenario, Trace((TraceRequest(0.0, 100, 5),)))
    assert groups(Seen(nobody.outcomes), "tenant", 1.0, 0.1) == {}


def test_the_page_says_what_the_autoscaler_did_and_why() -> None:
    form = parse_scenario((DOCS / "twin-scaling.yaml").read_text(encoding="utf-8"), "twin-scaling.yaml")
    (report,) = play_all([(form, 0)], Traces(no_trace))
    shown = run_page("twin-scaling", [report])
    assert "What the autoscaler did" in shown
    assert "Power domains" in shown
    assert report.run["scaling"]["changes"]
    for change in report.run["scaling"]["changes"]:
        assert escape(change_cells(change)[3]) in shown
    still = replace(report, run={name: value for name, value in report.run.items() if name not in ("scaling", "power")})
    assert "What the autoscaler did" not in run_page("still", [still])


def no_trace(file: str, skip_bad: bool) -> Trace:
    raise FileNotFoundError(file)


def test_a_row_of_energies_has_one_unit() -> None:
    energy = next(metric for metric in METRICS if metric.name == "energy")
    one, other = (Compared(energy, Spread.of([a]), Spread.of([b]), Spread.of([b - a])) for a, b in ((1e5, 4e5), (1, 2)))
    assert row(one, narrow=True)[1:3] == ["0.0278 kWh", "0.111 kWh"]
    assert row(other, narrow=True)[1:3] == ["1 J", "2 J"]
    wide = Spread.of([3.0e5, 4.0e5, 5.0e5])
    assert interval_words(energy, wide) == "0.0421 to 0.18 kWh"
