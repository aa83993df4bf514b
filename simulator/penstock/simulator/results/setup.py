"""Set-up files of reports: a base scenario, the cases to compare, the figures wanted, and what of it is assumed."""

from __future__ import annotations

from importlib import resources
from typing import Annotated, Any

import yaml
from penstock.simulator.files import ScenarioError, ScenarioForm
from penstock.simulator.results.record import Band
from penstock.simulator.study import METRICS
from penstock.simulator.sweep import Axis, grid
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

__all__ = ["Setup", "read_setup", "setup_names"]

_FOLDER = "setups"


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Across(_Form):
    """A field that every case is tried along."""

    field: str
    label: str
    values: Annotated[tuple[float, ...], Field(min_length=1)]


class Wanted(_Form):
    """A figure: a metric of one case, alone, over another one's or less it."""

    name: str
    metric: str
    of: str
    over: str | None = None
    less: str | None = None
    at: float | None = None
    """Place across; None where there is none, or for the figure of all places (`reaches`)."""
    reaches: float | None = None
    """The figure is the place across where the metric falls through this value, not the metric itself."""
    published: str = ""
    expected: Band | None = None


class Assumed(_Form):
    """Constants that nobody published: each is changed alone."""

    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    factors: tuple[float, ...] = (0.5, 2.0)
    at: tuple[float, ...] | None = None
    """Places across that are tried; None: all."""
    constants: dict[str, str | tuple[str, ...]]
    """What it is -> field or fields of the scenario, changed together."""


class ChartForm(_Form):
    """What the picture shows."""

    metric: str
    unit: str = ""
    log: bool = False
    title: str = ""


class Setup(_Form):
    """A report before it is run."""

    scenario: ScenarioForm
    cases: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Name -> fields of the scenario it sets."""
    across: Across | None = None
    published: dict[str, tuple[float, ...]] = {}
    """Case -> what the source has of the picture's metric at each place across."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    figures: Annotated[tuple[Wanted, ...], Field(min_length=1)]
    assumed: Assumed
    chart: ChartForm

    @model_validator(mode="after")
    def _known_names(self) -> Setup:
        known = {metric.name for metric in METRICS}
        for figure in self.figures:
            for case in (figure.of, figure.over, figure.less):
                if case is not None and case not in self.cases:
                    raise ValueError(f"figure {figure.name!r} is of a case {case!r} that is not among cases")
            if figure.metric not in known:
                raise ValueError(f"figure {figure.name!r}: no metric is called {figure.metric!r}")
            if (figure.at is None) != (self.across is None or figure.reaches is not None):
                raise ValueError(f"figure {figure.name!r}: say `at` where there is `across`, and only there")
        return self

    def form(self, case: str, at: float | None, scaled: tuple[tuple[str, ...], float] | None = None) -> ScenarioForm:
        """The scenario of a case at a place, with some fields times a factor. Raises `ScenarioError`."""
        axes = [Axis(path, (value,)) for path, value in self.cases[case].items()]
        if self.across is not None and at is not None:
            axes.append(Axis(self.across.field, (at,)))
        made = grid(self.scenario, axes, case)[0].form
        if scaled is None:
            return made
        paths, factor = scaled
        data = made.model_dump(mode="json", by_alias=True)
        changed = [Axis(path, (_times(data, path, factor),)) for path in paths]
        return grid(made, changed, case)[0].form


def _times(data: Any, path: str, factor: float) -> float | int | str:
    """The field's value times a factor; durations stay durations, counts stay counts."""
    value = data
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    if isinstance(value, str) and value.endswith("s"):
        return f"{float(value[:-1]) * factor}s"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScenarioError(f"{path} is {value!r}, which no factor changes")
    return max(1, round(value * factor)) if isinstance(value, int) else value * factor


def setup_names() -> tuple[str, ...]:
    """Every report that has a set-up file."""
    folder = resources.files(__package__) / _FOLDER
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def read_setup(name: str) -> Setup:
    """The set-up of a report. Raises `ScenarioError` with the file, the field and what is wrong."""
    text = (resources.files(__package__) / _FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    try:
        return Setup.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
        raise ScenarioError(f"{name}.yaml: {said}") from None
