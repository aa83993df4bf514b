"""How fast a worker is and what it costs, as far as its pod's labels tell: the catalogue's profile. Pure.

An unknown model or accelerator class has no profile, and picks go on without: what is not known is held equal.
"""

import json
from dataclasses import dataclass
from functools import lru_cache

from penstock.core.models import (
    Accelerator,
    Efficiency,
    ModelArchitecture,
    Parallelism,
    find_accelerator,
    find_model,
    resolve_profile,
)

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


def transfer_ms_per_token(model: ModelArchitecture, hardware: Accelerator, degrees: Parallelism) -> float:
    """ms to receive one token's KV cache, each accelerator its shard over its own link at the link's sustained rate."""
    shard = model.kv_bytes_per_token() / model.kv_shards(degrees.tensor) / degrees.pipeline
    return shard / (hardware.link.bytes_per_second * Efficiency.of(hardware).link) * 1e3


def _degrees(parallelism: str) -> Parallelism | None:
    try:
        return Parallelism(**json.loads(parallelism or "{}"))
    except (ValueError, TypeError):
        return None
