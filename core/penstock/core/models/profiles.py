"""Which latency profile holds for a worker nobody has measured here: a published one where there is one, else roofline.

Fits from a benchmark or from live traffic are trusted above both; they live in PerformanceProfile objects, and whoever
reads those objects puts them first.
"""

from __future__ import annotations

from functools import lru_cache

from penstock.core.models.architecture import ModelArchitecture
from penstock.core.models.catalogue import find_model, suggest
from penstock.core.models.hardware import Accelerator, find_accelerator, suggest_accelerator
from penstock.core.models.latency import LatencyProfile
from penstock.core.models.parallelism import Parallelism
from penstock.core.models.published import find_published
from penstock.core.models.roofline import roofline_profile

__all__ = ["resolve_profile"]


def resolve_profile(
    model: ModelArchitecture | str,
    accelerator: Accelerator | str,
    parallelism: Parallelism | None = None,
) -> LatencyProfile:
    """The best profile known without measuring.

    An accelerator that the caller describes itself gets the published figures only under a name of the catalogue and
    with the catalogue's bandwidth and compute: a slower "h100-80g" is not the one that was measured.
    Raises LookupError, with names that come near, for a model or accelerator given by a name nobody knows.
    """
    return _resolve(_model(model), _accelerator(accelerator), parallelism or Parallelism())


@lru_cache(maxsize=1024)
def _resolve(model: ModelArchitecture, accelerator: Accelerator, parallelism: Parallelism) -> LatencyProfile:
    measured = find_published(model.name, accelerator.name, parallelism) if _is_catalogued(accelerator) else None
    return measured or roofline_profile(model, accelerator, parallelism)


def _is_catalogued(accelerator: Accelerator) -> bool:
    known = find_accelerator(accelerator.name)
    return known is not None and (known.memory_bandwidth, known.bf16_flops) == (
        accelerator.memory_bandwidth,
        accelerator.bf16_flops,
    )


def _model(model: ModelArchitecture | str) -> ModelArchitecture:
    if isinstance(model, ModelArchitecture):
        return model
    found = find_model(model)
    if found is None:
        raise LookupError(_unknown("model", model, suggest(model)))
    return found


def _accelerator(accelerator: Accelerator | str) -> Accelerator:
    if isinstance(accelerator, Accelerator):
        return accelerator
    found = find_accelerator(accelerator)
    if found is None:
        raise LookupError(_unknown("accelerator", accelerator, suggest_accelerator(accelerator)))
    return found


def _unknown(kind: str, name: str, near: tuple[str, ...]) -> str:
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{kind} {name!r} is not in the catalogue{hint}"
