"""What all forms have in common: spelling, durations, and the making of what they stand for."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from decimal import Decimal
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer
from pydantic.alias_generators import to_camel

__all__ = ["Form", "Seconds"]

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:h|ms|m|s))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
Made = TypeVar("Made")


def _read_seconds(value: object) -> float:
    """Seconds from `300s`, `1h30m`, `500ms`, or a plain number of them."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    if isinstance(value, str) and _DURATION.fullmatch(value):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))
    raise ValueError(f"{value!r} is no duration; write it as 300s, 5m, 1h30m or 500ms")


def _write_seconds(seconds: float) -> str:
    return f"{Decimal(repr(seconds)):f}s"


Seconds = Annotated[float, BeforeValidator(_read_seconds), PlainSerializer(_write_seconds)]
"""A span of time: text with units in a file, seconds here."""


class Form(BaseModel):
    """A mapping of a scenario file. Fields in camelCase; what is unknown is refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )

    def make(self, kind: type[Made], **other: Any) -> Made:
        """The dataclass whose fields are called like this form's, but for an `_s` at their end, and `other` ones."""
        values = {field.name: _value(self, field.name) for field in fields(kind) if field.name not in other}  # type: ignore[arg-type]
        return kind(**values, **other)


def _value(form: Form, name: str) -> Any:
    return getattr(form, name if name in type(form).model_fields else name.removesuffix("_s"))
