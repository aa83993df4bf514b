"""Strings that carry numbers in our API, and what they mean.

Kubernetes objects hold no floats: a number that is not whole travels as a string, with its unit. This module
is the one place that reads such strings, so that `500ms`, `95%`, `80Gi` and `0.35` mean the same everywhere.
Each reader raises `ValueError` with a sentence that names the text it was given.
"""

import math
import re
from decimal import Decimal, InvalidOperation

DURATION_PATTERN = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"
PERCENT_PATTERN = r"^(100|[0-9]{1,2}(\.[0-9]{1,3})?)%$"
QUANTITY_PATTERN = r"^[0-9]{1,15}(\.[0-9]{1,9})?(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
DECIMAL_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,12})?$"
WHOLE_PERCENT_PATTERN = r"^(100|[1-9]?[0-9])%$"

_DURATION_PART = re.compile(r"([0-9]+)(ms|h|m|s)")
_SECONDS = {"h": Decimal(3600), "m": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001")}
_SUFFIXES = {
    "": 1,
    **{suffix: 1000**power for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{suffix: 1024**power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
}


def parse_duration(text: str) -> float:
    """Seconds in a duration such as `500ms`, `40s`, `1h30m`."""
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"{text!r} is not a duration; write for example 500ms, 40s or 1h30m")
    return float(sum(int(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text)))


def format_duration(seconds: float) -> str:
    """The shortest duration string for a non-negative number of seconds, to the millisecond."""
    left = round(seconds * 1000)
    if left < 0:
        raise ValueError(f"{seconds} seconds: a duration cannot be negative")
    parts = []
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_percent(text: str) -> float:
    """The share, in 0..1, that a percentage such as `95%` or `99.9%` stands for."""
    if not re.fullmatch(PERCENT_PATTERN, text):
        raise ValueError(f"{text!r} is not a percentage; write for example 95% or 99.9%")
    return float(Decimal(text[:-1]) / 100)


def parse_quantity(text: str) -> float:
    """The number a Kubernetes quantity such as `80Gi`, `3350G` or `989T` stands for (bytes, bytes/s, FLOP/s)."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", text)
    if match is None or not re.fullmatch(QUANTITY_PATTERN, text):
        raise ValueError(f"{text!r} is not a quantity; write for example 80Gi, 3350G or 989T")
    return float(Decimal(match[1]) * _SUFFIXES[match[2]])


def parse_decimal(text: str) -> Decimal:
    """A non-negative decimal such as `400` or `0.0265`, exactly (money, milliseconds)."""
    try:
        if re.fullmatch(DECIMAL_PATTERN, text):
            return Decimal(text)
    except InvalidOperation:  # pragma: no cover - the pattern admits only what Decimal reads
        pass
    raise ValueError(f"{text!r} is not a decimal number; write for example 400 or 0.0265")


def resolve_share(value: int | str, total: int, *, round_up: bool) -> int:
    """How many of `total` a count or a percentage means; Kubernetes rounds surge up and unavailable down."""
    if isinstance(value, int):
        return value
    if not re.fullmatch(WHOLE_PERCENT_PATTERN, value):
        raise ValueError(f"{value!r} is neither a count nor a percentage; write for example 1 or 25%")
    exact = int(value[:-1]) * total / 100
    return math.ceil(exact) if round_up else math.floor(exact)
