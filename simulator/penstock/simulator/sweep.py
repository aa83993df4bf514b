"""A grid of scenarios: one base, and for some of its fields several values each."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from penstock.simulator.files import ScenarioError, ScenarioForm, check_scenario

__all__ = ["Axis", "Cell", "grid", "parse_axis"]

MOST_CELLS = 1000


@dataclass(frozen=True, slots=True)
class Axis:
    """A field of scenario files, by its path, and the values it is to have."""

    path: str
    """Such as `workload.arrivals.rate` or `pools.0.replicas`."""
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One scenario of a grid."""

    values: tuple[Any, ...]
    """In the order of axes."""
    form: ScenarioForm


def parse_axis(text: str) -> Axis:
    """An axis from `workload.arrivals.rate=2,4,8`; values are YAML, with quotes around one that has a comma.

    Raises ValueError saying what to write.
    """
    path, equals, written = text.partition("=")
    try:
        values = yaml.safe_load(f"[{written}]") if equals else None
    except yaml.YAMLError:
        values = None
    if not path.strip() or not values:
        raise ValueError(f"{text!r} sets nothing; write field=value,value as workload.arrivals.rate=2,4,8")
    return Axis(path.strip(), tuple(values))


def grid(base: ScenarioForm, axes: Sequence[Axis], name: str = "sweep") -> tuple[Cell, ...]:
    """Every combination of the axes' values, the last axis fastest. Raises `ScenarioError` for one that cannot be."""
    data = base.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MOST_CELLS:
        raise ScenarioError(f"{name}: a grid of {count} scenarios is more than {MOST_CELLS}; give fewer values")
    return tuple(
        Cell(values, _with(data, axes, values, name)) for values in itertools.product(*(axis.values for axis in axes))
    )


def _with(data: dict[str, Any], axes: Sequence[Axis], values: Sequence[Any], name: str) -> ScenarioForm:
    changed = copy.deepcopy(data)
    for axis, value in zip(axes, values, strict=True):
        _put(changed, axis.path, value, name)
    said = ", ".join(f"{axis.path}={value}" for axis, value in zip(axes, values, strict=True))
    return check_scenario(changed, f"{name} ({said})" if said else name)


def _put(data: Any, path: str, value: Any, name: str) -> None:
    """Set a field within nested mappings and lists, making mappings on the way."""
    *way, last = path.split(".")
    try:
        for part in way:
            data = data[int(part)] if isinstance(data, list) else data.setdefault(part, {})
        data[int(last) if isinstance(data, list) else last] = value
    except (ValueError, IndexError, AttributeError, TypeError):
        raise ScenarioError(f"{name}: {path} is no field of the scenario; write it as workload.arrivals.rate") from None
