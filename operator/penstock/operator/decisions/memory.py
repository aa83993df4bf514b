"""Whether the model fits the accelerators of a worker, read from the deployment and its engine's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.api import AcceleratorClass, ModelDeploymentSpec, Reason
from penstock.core.models import (
    DType,
    MemoryFit,
    ModelArchitecture,
    Parallelism,
    find_model,
    fit,
    smallest_fit,
    suggest,
)
from penstock.operator.decisions.hardware import hardware_of
from penstock.operator.decisions.refusal import Refusal
from penstock.workers.decisions.adapters.arguments import flags_of

DEFAULT_UTILISATION = 0.9
"""vLLM's own `--gpu-memory-utilization`."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What of the spec and the engine's arguments decides about memory."""

    context: int | None
    """Longest sequence, in tokens; None: the model's own."""
    utilisation: float
    dtype: DType | None
    kv_dtype: DType | None


def architecture_of(spec: ModelDeploymentSpec) -> ModelArchitecture | None:
    """The catalogue's entry for the model; None where it has none. Raises `Refusal` for a named one that is unknown."""
    model = spec.model
    if model.architecture is not None:
        known = find_model(model.architecture.name)
        if known is None:
            raise Refusal(Reason.UNKNOWN_MODEL, _unknown(f"model.architecture.name {model.architecture.name!r}"))
        return known
    return find_model(model.name) or find_model(_repository(spec))


def unknown_model(spec: ModelDeploymentSpec) -> Refusal:
    """The refusal of a model that neither the catalogue nor a profile knows."""
    near = suggest(spec.model.name)
    hint = f" (near: {', '.join(near)})" if near else ""
    return Refusal(
        Reason.UNKNOWN_MODEL,
        f"model.name {spec.model.name!r} is not in the catalogue{hint}; set model.architecture.name to the catalogue's "
        "model it was made from, or create a PerformanceProfile with kvCapacityTokens for it",
    )


def demand_of(spec: ModelDeploymentSpec, arguments: tuple[str, ...]) -> Demand:
    """What the deployment asks of a worker's memory; engine arguments win, as they do in the engine."""
    flags = flags_of(arguments)
    quantized = _dtype(flags, "--quantization")
    return Demand(
        context=_whole(flags, "--max-model-len") or spec.model.max_context_tokens,
        utilisation=_share(flags, "--gpu-memory-utilization"),
        dtype=quantized or _dtype(flags, "--dtype"),
        kv_dtype=_dtype(flags, "--kv-cache-dtype"),
    )


def fit_of(
    model: ModelArchitecture, accelerator: AcceleratorClass, parallelism: Parallelism, demand: Demand
) -> MemoryFit:
    """Whether the model fits a worker of this shape, in the catalogue's arithmetic."""
    return fit(
        model, hardware_of(accelerator), parallelism, demand.context, demand.utilisation, demand.dtype, demand.kv_dtype
    )


def smallest_of(
    model: ModelArchitecture, accelerator: AcceleratorClass, demand: Demand, most: int
) -> Parallelism | None:
    """The fewest accelerators of one node that hold the model; None when `most` do not."""
    return smallest_fit(
        model,
        hardware_of(accelerator),
        demand.context,
        demand.utilisation,
        demand.dtype,
        demand.kv_dtype,
        max_accelerators=most,
    )


def _repository(spec: ModelDeploymentSpec) -> str:
    source = spec.model.source
    return source.uri.removeprefix("hf://").split("@")[0] if source and source.uri.startswith("hf://") else ""


def _unknown(what: str) -> str:
    near = suggest(what.split("'")[1])
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{what} is not in the catalogue{hint}"


def _whole(flags: Mapping[str, str | None], name: str) -> int | None:
    text = (flags.get(name) or "").lower()
    scale = {"k": 1000, "m": 1000_000}.get(text[-1:], 1)
    digits = text[:-1] if scale > 1 else text
    return int(digits) * scale if digits.isdigit() and int(digits) > 0 else None


def _share(flags: Mapping[str, str | None], name: str) -> float:
    try:
        value = float(flags.get(name) or DEFAULT_UTILISATION)
    except ValueError:
        return DEFAULT_UTILISATION
    return value if 0.0 < value <= 1.0 else DEFAULT_UTILISATION


def _dtype(flags: Mapping[str, str | None], name: str) -> DType | None:
    try:
        return DType.parse(flags.get(name) or "auto")
    except ValueError:
        return None  # `auto`, or a format whose size only the checkpoint tells
