"""From the text of a scenario file to a scenario and its workload, and from a form back to text."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

import yaml
from penstock.core.traces import Trace
from penstock.simulator.files.forms import ScenarioForm
from penstock.simulator.files.workload import Recording
from pydantic import BaseModel, ValidationError

__all__ = ["ScenarioError", "Traces", "check_scenario", "parse_scenario", "write_scenario"]

_MOST_FAULTS = 5


class ScenarioError(ValueError):
    """The file is no scenario; the message names file, field and what to write."""


@dataclass(slots=True)
class Traces:
    """Trace files that scenarios name, each read once. `read(file, skip_bad)` opens one."""

    open: Recording
    _read: dict[tuple[str, bool], Trace] = field(default_factory=dict)

    def read(self, file: str, skip_bad: bool) -> Trace:
        """The trace in a file."""
        key = file, skip_bad
        if key not in self._read:
            self._read[key] = self.open(file, skip_bad)
        return self._read[key]


def parse_scenario(text: str, name: str) -> ScenarioForm:
    """The scenario in the text of the file `name`. Raises `ScenarioError`."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ScenarioError(f"{name}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ScenarioError(f"{name}: is no scenario: a mapping with model, nodes and workload is expected")
    return check_scenario(data, name)


def check_scenario(data: dict[str, Any], name: str) -> ScenarioForm:
    """The scenario that these values make. Raises `ScenarioError`."""
    try:
        return ScenarioForm.model_validate(data)
    except ValidationError as error:
        faults = [_sentence(fault) for fault in error.errors()]
        more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
        raise ScenarioError(f"{name}: " + "; ".join(faults[:_MOST_FAULTS]) + more) from None


def write_scenario(form: ScenarioForm) -> str:
    """The text of a file that reads back as this form. What is as it would be anyway is left out."""
    data = form.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return yaml.safe_dump({"version": 1, **data}, sort_keys=False)


def _sentence(fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"]) or "the scenario"
    known = _HINTS.get(fault["type"])
    if known is not None:
        return f"{place}: {known(fault)}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{place}: {message[:1].lower()}{message[1:]}"


def _unknown(fault: Any) -> str:
    near = difflib.get_close_matches(str(fault["loc"][-1]), sorted(set(_field_names(ScenarioForm))), n=2)
    return f"is no field here; did you mean {' or '.join(near)}?" if near else "is no field here; drop it"


def _field_names(form: type[BaseModel]) -> Iterator[str]:
    """Every field's name as files write it, of a form and the forms within it."""
    for name, field_info in form.model_fields.items():
        yield field_info.alias or name
        yield from (inner for kind in _forms_in(field_info.annotation) for inner in _field_names(kind))


def _forms_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _forms_in(argument)


def _missing(fault: Any) -> str:
    return "is missing; give it"


_HINTS: dict[str, Callable[[Any], str]] = {"extra_forbidden": _unknown, "missing": _missing}
