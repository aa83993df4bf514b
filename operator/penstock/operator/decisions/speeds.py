"""How fast and how dear one worker of a pool is, in the form the WorkerPool tells it.

The operator is the one who resolves profile, hardware and engine; whoever predicts reads the outcome here, so that the
router, which may read neither classes nor profiles, foresees what status shows. Stands in no pod template: a figure
that changes replaces no worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from penstock.core.models import LatencyProfile, transfer_ms_per_token
from penstock.operator.decisions.hardware import hardware_of, has_flops
from penstock.operator.decisions.memory import architecture_of
from penstock.operator.decisions.templates import Inputs

_PLACES = 12
"""Decimals the API keeps of a coefficient."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What is known of one worker; None: nobody knows. Times are the engine's own, time scale included."""

    latency: LatencyProfile | None = None
    transfer_ms: float | None = None
    """ms until one token's KV cache has come from another worker."""


def speed_of(inputs: Inputs) -> Speed:
    """Speed of a worker made from these inputs."""
    latency, transfer_ms, scale = inputs.profile.latency, _transfer_ms(inputs), _time_scale(inputs)
    return Speed(
        None if latency is None else latency.scaled(scale, scale),
        None if transfer_ms is None else transfer_ms * scale,
    )


def speed_body(speed: Speed, price: Decimal | None) -> dict[str, Any]:
    """`spec.speed` of a WorkerPool; what is not known is left out. `price` is one worker's, per hour."""
    body: dict[str, Any] = {} if speed.latency is None else _latency(speed.latency)
    if speed.transfer_ms is not None:
        body["transferPerToken"] = _decimal(speed.transfer_ms)
    if price is not None:
        body["pricePerHour"] = _decimal(float(price))
    return body


def _transfer_ms(inputs: Inputs) -> float | None:
    model = architecture_of(inputs.spec)
    if model is None or not has_flops(inputs.accelerator):
        return None
    return transfer_ms_per_token(model, hardware_of(inputs.accelerator), inputs.parallelism)


def _time_scale(inputs: Inputs) -> float:
    simulation = inputs.engine_class.spec.simulation
    return simulation.time_scale_factor if simulation else 1.0


def _latency(profile: LatencyProfile) -> dict[str, Any]:
    (a, b, c), (d, e, f), (whole, share) = profile.prefill, profile.decode, profile.experts
    body: dict[str, Any] = {
        "source": str(profile.source),
        "prefill": {"base": _decimal(a), "perToken": _decimal(b), "perSquaredToken": _decimal(c)},
        "decode": {"base": _decimal(d), "perSequence": _decimal(e), "perContextToken": _decimal(f)},
    }
    if whole > 0:
        body["experts"] = {"whole": _decimal(whole), "share": _decimal(share)}
    return body


def _decimal(value: float) -> str:
    """A decimal of the API; a negative coefficient counts as 0 (see `core.models.latency`)."""
    text = f"{max(0.0, value):.{_PLACES}f}".rstrip("0").rstrip(".")
    return text or "0"
