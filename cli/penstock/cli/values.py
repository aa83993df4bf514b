"""Values a person types: durations as Kubernetes and Go write them."""

from __future__ import annotations

import re

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:h|ms|m|s))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")


def parse_duration(text: str) -> float:
    """Seconds in a duration such as `300s`, `1h30m` or `500ms`. Raises ValueError on anything else."""
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is no duration; write it as 300s, 5m, 1h30m or 500ms")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
