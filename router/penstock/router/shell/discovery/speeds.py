"""How fast a worker is and what it costs. Pure.

Its WorkerPool says so: there the operator writes what it resolved from profiles, classes and engine. Until the pool is
seen, or where an older operator wrote it, the pod's labels lead to the catalogue's profile. An unknown model or
accelerator class has no profile, and picks go on without: what is not known is held equal.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from penstock.api import WorkerSpeed
from penstock.core.models import (
    Parallelism,
    find_accelerator,
    find_model,
    resolve_profile,
    transfer_ms_per_token,
)
from pydantic import ValidationError

Coefficients = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Speed:
    """The fields of a `Worker` of these names; `None` where nothing is known."""

    prefill_ms: Coefficients | None = None
    decode_ms: Coefficients | None = None
    experts_ms: tuple[float, float] = (0.0, 0.0)
    transfer_ms: float | None = None
    price_per_hour: float | None = None


@lru_cache(maxsize=1024)
def speed_of(model: str, accelerator: str, parallelism: str) -> Speed:
    """Speed of one worker; `parallelism` is the pod's annotation, JSON like `{"tensor":4}`, empty for degree 1."""
    degrees = _degrees(parallelism)
    hardware = find_accelerator(accelerator)
    if hardware is None or degrees is None:
        return Speed()
    price = hardware.price_per_hour * degrees.accelerators
    architecture = find_model(model)
    if architecture is None:
        return Speed(price_per_hour=price)
    profile = resolve_profile(architecture, hardware, degrees)
    return Speed(
        prefill_ms=profile.prefill,
        decode_ms=profile.decode,
        experts_ms=profile.experts,
        transfer_ms=transfer_ms_per_token(architecture, hardware, degrees),
        price_per_hour=price,
    )


def told_speed(spec: Mapping[str, Any]) -> Speed | None:
    """What a WorkerPool's spec says of its workers; None where it says nothing that can be read."""
    try:
        told = WorkerSpeed.read(spec.get("speed") or {})
    except (ValidationError, ValueError):
        return None
    if told.prefill is None or told.decode is None:
        return None
    return Speed(
        prefill_ms=told.prefill.values,
        decode_ms=told.decode.values,
        experts_ms=told.experts.values if told.experts else (0.0, 0.0),
        transfer_ms=None if told.transfer_per_token is None else float(told.transfer_per_token),
        price_per_hour=None if told.price_per_hour is None else float(told.price_per_hour),
    )


def _degrees(parallelism: str) -> Parallelism | None:
    try:
        return Parallelism(**json.loads(parallelism or "{}"))
    except (ValueError, TypeError):
        return None
