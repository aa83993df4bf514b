"""The forms of what is measured: a record of one result, written as JSON by whoever ran it and rendered as a page.

A record holds nothing but what the run found and the bands its set-up names; who published what, and what differs, is
said once in the statements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal, Self

from penstock.simulator.capacity import interval
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Band", "Chart", "ChartKind", "Check", "Figure", "Record", "Series", "Shift", "digits"]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Band(_Form):
    """Where a figure is to lie."""

    low: float | None = None
    high: float | None = None

    def holds(self, mean: float, low: float, high: float) -> bool:
        """A bound on one side needs the whole interval there, two bounds the mean between them."""
        if self.low is not None and self.high is not None:
            return self.low <= mean <= self.high
        return (self.low is None or low >= self.low) and (self.high is None or high < self.high)

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f"at least {self.low:g}" if self.low is not None else f"below {self.high or 0.0:g}"


class Figure(_Form):
    """One number of a result, over seeds."""

    name: str
    published: str = ""
    """What the source has, in words; empty for what it does not say."""
    expected: Band | None = None
    values: Annotated[tuple[float, ...], Field(min_length=1)]
    """In the order of seeds."""
    judged: bool = True
    """Whether the result as a whole hangs on it; a gate may come with figures that are only reported."""

    @property
    def spread(self) -> tuple[float, float, float]:
        """Mean and its 95 % interval; the interval of one value has no ends."""
        return interval(self.values)

    @property
    def holds(self) -> bool | None:
        """Whether it lies where it is to; None where nobody said."""
        return None if self.expected is None else self.expected.holds(*self.spread)


class Check(_Form):
    """Something that is to hold as a whole, such as an order on every seed."""

    says: str
    holds: bool
    judged: bool = True


class Shift(_Form):
    """A figure with one assumed constant changed."""

    constant: str
    factor: float
    figure: str
    values: Annotated[tuple[float, ...], Field(min_length=1)]


class Series(_Form):
    """One line of a picture, or one colour of its bars: (across, mean, low, high)."""

    name: str
    points: tuple[tuple[float, float, float, float], ...]
    published: bool = False

    @classmethod
    def of(cls, name: str, columns: Sequence[tuple[float, Sequence[float]]]) -> Self:
        """From the values over seeds at each place."""
        points = []
        for across, values in columns:
            mean, low, high = interval(values)
            points.append((across, mean, low, high) if math.isfinite(low) else (across, mean, mean, mean))
        return cls(name=name, points=tuple(points))


class ChartKind(StrEnum):
    """How a picture is drawn."""

    BARS = "Bars"
    LINES = "Lines"


class Chart(_Form):
    """What a picture shows."""

    kind: ChartKind
    title: str
    up: str
    across: str = ""
    labels: tuple[str, ...] = ()
    """Of the places 0, 1, ... of bars."""
    logarithmic: bool = False
    level: float | None = None
    """A level worth a line, such as 1 for ratios."""
    series: tuple[Series, ...]


class Record(_Form):
    """What one result came to."""

    version: Literal[1] = 1
    name: str
    seeds: tuple[int, ...]
    figures: tuple[Figure, ...]
    checks: tuple[Check, ...] = ()
    left: tuple[str, ...] = ()
    """What the set-up asks for and was not run."""
    shifts: tuple[Shift, ...] = ()
    shift_seeds: tuple[int, ...] = ()
    chart: Chart

    @property
    def holds(self) -> bool | None:
        """Whether everything that is judged holds; None where nothing is."""
        told: list[bool | None] = [figure.holds for figure in self.figures if figure.judged]
        told += [check.holds for check in self.checks if check.judged]
        known = [one for one in told if one is not None]
        return all(known) if known else None

    def to_json(self) -> str:
        """The text of the record's file."""
        return self.model_dump_json(indent=1, exclude_defaults=True) + "\n"


def digits(value: float) -> str:
    """A number as tables show it: three digits that count, no exponent, never `-0`."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(places, 4)}f}"
    return text.rstrip("0").rstrip(".") if "." in text and abs(value) >= 100 else text
