"""Runs a report: every case at every place with every seed, then again with each assumed constant changed alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from penstock.core.reports import Report
from penstock.simulator.files import ScenarioForm, Traces
from penstock.simulator.results.record import Chart, ChartKind, Figure, Record, Series, Shift
from penstock.simulator.results.setup import Assumed, Setup, Wanted
from penstock.simulator.study import Told, figures_of, play_all

__all__ = ["play_report", "runs_of"]

Place = float | None
Seeds = tuple[int, ...]
Changed = tuple[str, tuple[str, ...], float]
"""(constant, its fields, factor)."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """Runs of one scenario over seeds."""

    case: str
    at: Place
    changed: Changed | None = None


Values = Mapping[_Cell, Mapping[str, Sequence[float]]]
"""Cell -> metric -> one value for each seed."""


def runs_of(setup: Setup) -> int:
    """How many runs a report takes."""
    return sum(len(seeds) for _, seeds in _cells(setup))


def play_report(
    name: str, setup: Setup, traces: Traces, told: Told | None = None, processes: int | None = None
) -> Record:
    """The record of a report. Raises `Impossible`, `ScenarioError` and what opening a trace raises."""
    cells = _cells(setup)
    jobs = [(_form(setup, cell), seed) for cell, seeds in cells for seed in seeds]
    reports = play_all(jobs, traces, told, processes)
    values = _gathered(cells, reports)
    places = _places(setup)
    return Record(
        name=name,
        seeds=setup.seeds,
        figures=tuple(
            Figure(name=one.name, published=one.published, expected=one.expected, values=_figure(one, values, places))
            for one in setup.figures
        ),
        shifts=tuple(
            Shift(constant=changed[0], factor=changed[2], figure=one.name, values=_figure(one, values, places, changed))
            for changed in _changes(setup.assumed)
            for one in _shown(setup)
        ),
        shift_seeds=setup.assumed.seeds,
        chart=_chart(setup, values, places),
    )


def _places(setup: Setup) -> tuple[Place, ...]:
    return (None,) if setup.across is None else setup.across.values


def _cells(setup: Setup) -> list[tuple[_Cell, Seeds]]:
    """Everything that is played: the cases as they are, then with each constant changed."""
    usual = [_Cell(case, at) for case in setup.cases for at in _places(setup)]
    shifted = [_Cell(one.case, one.at, changed) for changed in _changes(setup.assumed) for one in _needed(setup, usual)]
    return [*((cell, setup.seeds) for cell in usual), *((cell, setup.assumed.seeds) for cell in shifted)]


def _form(setup: Setup, cell: _Cell) -> ScenarioForm:
    return setup.form(cell.case, cell.at, None if cell.changed is None else cell.changed[1:])


def _changes(assumed: Assumed) -> list[Changed]:
    """Each constant times each factor."""
    return [
        (name, (fields,) if isinstance(fields, str) else fields, factor)
        for name, fields in assumed.constants.items()
        for factor in assumed.factors
    ]


def _shown(setup: Setup) -> list[Wanted]:
    """Figures whose sensitivity is told: those somebody expects something of."""
    return [one for one in setup.figures if one.expected is not None]


def _needed(setup: Setup, cells: Sequence[_Cell]) -> list[_Cell]:
    """Cells that those figures are made of."""
    cases = {case for one in _shown(setup) for case in (one.of, one.over, one.less) if case is not None}
    spots = setup.assumed.at
    return [cell for cell in cells if cell.case in cases and (spots is None or cell.at in spots)]


def _gathered(cells: Sequence[tuple[_Cell, Seeds]], reports: Sequence[Report]) -> Values:
    found: dict[_Cell, Mapping[str, Sequence[float]]] = {}
    at = 0
    for cell, seeds in cells:
        found[cell] = figures_of(reports[at : at + len(seeds)])
        at += len(seeds)
    return found


def _figure(
    wanted: Wanted, values: Values, places: Sequence[Place], changed: Changed | None = None
) -> tuple[float, ...]:
    """The figure, one value for each seed."""

    def read(case: str) -> Sequence[float]:
        if wanted.reaches is None:
            return values[_Cell(case, wanted.at, changed)][wanted.metric]
        tried = [at for at in places if at is not None and _Cell(case, at, changed) in values]
        curves = zip(*(values[_Cell(case, at, changed)][wanted.metric] for at in tried), strict=True)
        return [_falls_through(tried, curve, wanted.reaches) for curve in curves]

    mine = read(wanted.of)
    if wanted.over is not None:
        return tuple(a / b for a, b in zip(mine, read(wanted.over), strict=True))
    if wanted.less is not None:
        return tuple(a - b for a, b in zip(mine, read(wanted.less), strict=True))
    return tuple(mine)


def _falls_through(places: Sequence[float], curve: Sequence[float], level: float) -> float:
    """Where a curve first falls below a level, on the straight line between two places; the last place where it
    never does, the first where it always is."""
    if curve[0] < level:
        return places[0]
    for (left, before), (right, after) in pairwise(zip(places, curve, strict=True)):
        if after < level:
            return left + (right - left) * (before - level) / (before - after)
    return places[-1]


def _chart(setup: Setup, values: Values, places: Sequence[Place]) -> Chart:
    form = setup.chart
    title = form.title or f"{form.metric[:1].upper()}{form.metric[1:]}"
    if setup.across is None:
        columns = [(float(number), values[_Cell(case, None)][form.metric]) for number, case in enumerate(setup.cases)]
        return Chart(
            kind=ChartKind.BARS, title=title, up=form.unit, labels=tuple(setup.cases), logarithmic=form.log,
            series=(Series.of(title, columns),),
        )  # fmt: skip
    tried = [at for at in places if at is not None]
    lines = [Series.of(case, [(at, values[_Cell(case, at)][form.metric]) for at in tried]) for case in setup.cases]
    for case, row in setup.published.items():
        points = tuple((at, value, value, value) for at, value in zip(tried, row, strict=True))
        lines.append(Series(name=case, points=points, published=True))
    return Chart(
        kind=ChartKind.LINES, title=title, up=form.unit, across=setup.across.label, logarithmic=form.log,
        series=tuple(lines),
    )  # fmt: skip
