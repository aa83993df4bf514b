"""Published results: records say what was measured, set-ups can be run, and the page follows from both."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.traces import Trace
from penstock.simulator.files import ScenarioError, Traces
from penstock.simulator.results.folder import files_of, read_records, write_record, write_results
from penstock.simulator.results.page import NOT_RUN, render_page, verdict_of
from penstock.simulator.results.record import Band, Chart, ChartKind, Check, Figure, Record, Series, Shift, digits
from penstock.simulator.results.run import play_report, runs_of
from penstock.simulator.results.setup import Setup, read_setup, setup_names
from penstock.simulator.results.statements import Kind, read_statements
from pydantic import ValidationError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
LARGEST_PICTURE = 150_000
CHART = Chart(kind=ChartKind.BARS, title="t", up="", labels=("a",), series=(Series.of("s", [(0.0, [1.0, 2.0])]),))
SMALL = {
    "scenario": {
        "model": "llama-3.1-8b",
        "nodes": "a100-80g=1x2",
        "profile": {"prefill": [10, 0.1, 0], "decode": [20, 0.2, 0]},
        "engine": {"prefixCaching": False},
        "workload": {"arrivals": {"rate": 2, "for": 10}, "lengths": {"inputTokens": 200, "outputTokens": 20}},
    },
    "cases": {"one": {}, "slow": {"profile.prefill": [20, 0.2, 0]}},
    "across": {"field": "workload.arrivals.rate", "label": "requests a second", "values": [1, 2]},
    "seeds": [1, 2],
    "figures": [
        {"name": "over", "metric": "TTFT mean", "of": "slow", "over": "one", "at": 2, "expected": {"low": 1}},
        {"name": "less", "metric": "TTFT mean", "of": "slow", "less": "one", "at": 2},
        {"name": "alone", "metric": "TTFT mean", "of": "slow", "at": 2},
        {"name": "where", "metric": "attainment", "of": "one", "reaches": 0.5},
    ],
    "assumed": {"seeds": [1], "constants": {"prefill": "profile.prefill.1", "time": "workload.arrivals.for"}},
    "chart": {"metric": "TTFT mean"},
}


def no_trace(file: str, skip_bad: bool) -> Trace:
    raise FileNotFoundError(file)


def figure(*values: float, low: float | None = None, high: float | None = None, judged: bool = True) -> Figure:
    return Figure(name="f", expected=Band(low=low, high=high), values=values, judged=judged)


def made(*figures: Figure, checks: tuple[Check, ...] = ()) -> Record:
    return Record(name="sarathi", seeds=(1, 2), figures=figures, checks=checks, chart=CHART)


def test_page_and_pictures_are_what_the_records_say() -> None:
    """`penstock results --render` writes them."""
    stale = [name for name, content in files_of(RESULTS).items() if (RESULTS / name).read_bytes() != content]
    assert not stale


def test_pictures_are_small_and_none_is_left_over() -> None:
    pictures = {path.name: path.stat().st_size for path in RESULTS.glob("*.svg")}
    assert set(pictures) == {name for name in files_of(RESULTS) if name.endswith(".svg")}
    assert max(pictures.values()) < LARGEST_PICTURE


def test_every_record_is_of_a_result_and_says_so() -> None:
    statements = read_statements()
    records = read_records(RESULTS, statements)
    assert {path.stem for path in (RESULTS / "data").glob("*.json")} == set(records)
    assert all(record.name == name for name, record in records.items())
    assert all(record.shifts for name, record in records.items() if statements.find(name).kind is Kind.REPORT)


def test_statements_name_files_that_are_there() -> None:
    statements = read_statements()
    paths = [one.scenario for one in statements.results] + [one.test for one in statements.identities]
    assert not [path for path in paths if not (ROOT / path).is_file()]
    assert len({one.name for one in statements.results}) == len(statements.results)
    assert set(setup_names()) <= {one.name for one in statements.results}


@pytest.mark.parametrize("name", setup_names())
def test_every_scenario_of_a_set_up_can_be(name: str) -> None:
    setup = read_setup(name)
    at = None if setup.across is None else setup.across.values[0]
    for case in setup.cases:
        usual = setup.form(case, at)
        for fields in setup.assumed.constants.values():
            paths = (fields,) if isinstance(fields, str) else fields
            assert all(setup.form(case, at, (paths, factor)) != usual for factor in setup.assumed.factors)


def test_a_report_measures_cases_and_shifts() -> None:
    setup = Setup.model_validate(SMALL)
    record = play_report("small", setup, Traces(no_trace), processes=1)
    values = {one.name: one.values for one in record.figures}
    alone, base = values["alone"], [a - b for a, b in zip(values["alone"], values["less"], strict=True)]
    assert values["over"] == pytest.approx([a / b for a, b in zip(alone, base, strict=True)])
    assert min(values["over"]) > 1
    assert record.holds is True
    shifted = {(one.constant, one.factor): one.values for one in record.shifts}
    assert set(shifted) == {(name, factor) for name in ("prefill", "time") for factor in (0.5, 2.0)}
    assert all(len(each) == 1 for each in shifted.values())
    # Seed 1 with its own prompts: twice the time per token in both cases, and the fixed part weighs less.
    assert shifted["prefill", 2.0] != shifted["prefill", 0.5]
    assert record.chart.kind is ChartKind.LINES
    assert [series.name for series in record.chart.series] == ["one", "slow"]
    assert runs_of(setup) == 2 * 2 * 2 + 2 * 2 * 2 * 2


def test_a_report_is_the_same_in_any_number_of_processes() -> None:
    setup = Setup.model_validate(SMALL)
    assert play_report("small", setup, Traces(no_trace), processes=1) == play_report(
        "small", setup, Traces(no_trace), processes=2
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"of": "none"}, "case 'none'"),
        ({"metric": "TTFT p42"}, "no metric is called 'TTFT p42'"),
        ({"at": None}, "say `at`"),
        ({"reaches": 0.9}, "say `at`"),
    ],
)
def test_a_set_up_that_cannot_be_run_is_refused(change: dict[str, object], said: str) -> None:
    broken = {**SMALL, "figures": [{**SMALL["figures"][0], **change}]}  # type: ignore[index]
    with pytest.raises(ValidationError, match=said):
        Setup.model_validate(broken)


def test_only_numbers_and_durations_are_scaled() -> None:
    setup = Setup.model_validate(SMALL)
    form = setup.form("one", 2.0, (("workload.arrivals.for",), 0.5))
    assert form.workload.arrivals is not None
    assert form.workload.arrivals.duration == 5.0
    assert setup.form("one", 2.0, (("engine.maxNumSeqs",), 0.001)).engine.max_num_seqs == 1
    with pytest.raises(ScenarioError, match="no factor changes"):
        setup.form("one", 2.0, (("engine.prefixCaching",), 2.0))


@pytest.mark.parametrize(
    ("curve", "at"), [((1.0, 1.0, 1.0), 4.0), ((0.5, 0.4, 0.3), 1.0), ((1.0, 0.8, 0.0), 1.5), ((0.9, 0.7, 0.95), 1.0)]
)
def test_where_a_curve_falls_through_a_level(curve: tuple[float, ...], at: float) -> None:
    from penstock.simulator.results.run import _falls_through

    assert _falls_through((1.0, 2.0, 4.0), curve, 0.9) == pytest.approx(at)


def test_one_bound_needs_the_whole_interval_and_two_the_mean() -> None:
    wide = (1.0, 2.0, 3.0)
    assert figure(*wide, low=0.5, high=2.5).holds
    assert not figure(*wide, low=1.5).holds
    assert figure(1.9, 2.0, 2.1, low=1.5).holds
    assert not figure(*wide, high=2.5).holds
    assert figure(1.9, 2.0, 2.1, high=2.5).holds
    assert not figure(2.0, low=1.0).holds  # One seed says nothing of the spread.
    assert Figure(name="f", values=(1.0,)).holds is None


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9), st.floats(-100, 100))
def test_a_looser_bound_never_fails_what_a_tighter_one_lets_through(values: list[float], bound: float) -> None:
    if figure(*values, low=bound).holds:
        assert figure(*values, low=bound - 1).holds
        assert not figure(*values, high=bound).holds


def test_a_result_hangs_on_what_is_judged_alone() -> None:
    good, bad = figure(2.0, 2.1, low=1.0, high=3.0), figure(9.0, 9.1, low=1.0, high=3.0, judged=False)
    assert made(good, bad).holds
    assert not made(good, checks=(Check(says="c", holds=False),)).holds
    assert made(good, checks=(Check(says="c", holds=False, judged=False),)).holds
    assert made(Figure(name="f", values=(1.0,))).holds is None


def test_a_record_reads_back_as_it_was(tmp_path: Path) -> None:
    shift = Shift(constant="c", factor=2.0, figure="f", values=(1.0, 2.0))
    record = made(figure(2.0, 2.1, low=1.0), checks=(Check(says="c", holds=True),)).model_copy(
        update={"shifts": (shift,), "shift_seeds": (1,)}
    )
    write_record(tmp_path, record)
    assert read_records(tmp_path, read_statements()) == {"sarathi": record}
    assert "index.md" in write_results(tmp_path)
    assert write_results(tmp_path) == ()


def test_a_record_without_a_statement_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no result is called 'other'"):
        write_record(tmp_path, made(figure(1.0)).model_copy(update={"name": "other"}))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sarathi.json").write_text("{}")
    with pytest.raises(ValueError, match=r"sarathi.json: is no record"):
        read_records(tmp_path, read_statements())


def test_the_page_says_what_missed_and_what_was_not_run() -> None:
    statements = read_statements()
    record = made(figure(5.0, 5.2, low=1.0, high=3.0))
    page = render_page(statements, {"sarathi": record}, None)
    section = page.split("## Sarathi")[1].split("\n## ")[0]
    assert "Gate: misses" in section
    assert "| **no** |" in section
    assert "**5.10 (3.83 to 6.37)**" in section
    assert verdict_of(statements.find("mooncake"), None) == NOT_RUN
    assert f"Gate: {NOT_RUN}" in page.split("## Mooncake")[1]


def test_a_gate_that_was_run_in_part_does_not_hold_yet() -> None:
    statements = read_statements()
    good, bad = figure(2.0, 2.1, low=1.0, high=3.0), figure(9.0, 9.1, low=1.0, high=3.0)
    part = made(good).model_copy(update={"left": ("3 of 5 seeds",)})
    assert verdict_of(statements.find("sarathi"), made(good)) == "holds"
    assert verdict_of(statements.find("sarathi"), part) == "run in part"
    assert verdict_of(statements.find("sarathi"), part.model_copy(update={"figures": (bad,)})) == "misses"
    assert "Not run: 3 of 5 seeds." in render_page(statements, {"sarathi": part}, None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.456, "1.46"),
        (0.0123, "0.0123"),
        (12.345, "12.3"),
        (1234.5, "1234"),
        (float("inf"), "-"),
        (2, "2.00"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert digits(value) == text
