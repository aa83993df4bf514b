"""Which latency profile describes a worker, and how we know: an object, the catalogue, or the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.api import AcceleratorClass, PerformanceProfile
from penstock.core.models import LatencyProfile, ModelArchitecture, Parallelism, ProfileSource, resolve_profile
from penstock.operator.decisions.hardware import hardware_of, has_flops


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile in use. `latency` None: nobody knows how fast this worker is."""

    latency: LatencyProfile | None
    name: str = ""
    """PerformanceProfile object it comes from; empty for the catalogue and the roofline."""
    kv_capacity_tokens: int | None = None
    """Measured; None: to be computed from memory."""
    stored: PerformanceProfile | None = None

    @property
    def source(self) -> str:
        """Where the figures come from; empty where there are none."""
        return str(self.latency.source) if self.latency else ""

    @property
    def provenance(self) -> str:
        """Publication or measurement behind the figures."""
        return self.latency.provenance if self.latency else ""


def resolve(
    served: str,
    model: ModelArchitecture | None,
    accelerator: AcceleratorClass,
    parallelism: Parallelism,
    engine: str,
    stored: Sequence[PerformanceProfile],
) -> Profile:
    """The most trusted profile of (model, class, parallelism, engine); Online before Benchmark before the rest.

    `served` is the model's served name: a profile may be kept under it or under the catalogue's names.
    """
    known = {served, *((model.name, *model.aliases) if model else ())}
    fitting = [p for p in stored if _describes(p, known, accelerator.metadata.name, parallelism, engine)]
    if fitting:
        # One made for this engine class says more than one for any; then trust; then the name, so that ties hold still.
        best = min(fitting, key=lambda p: (p.spec.engine_class_name is None, _latency(p).source.trust, p.metadata.name))
        return Profile(_latency(best), best.metadata.name, best.spec.kv_capacity_tokens, best)
    if model is None or not has_flops(accelerator):
        return Profile(None)
    return Profile(resolve_profile(model, hardware_of(accelerator), parallelism))


def _describes(
    profile: PerformanceProfile, models: set[str], accelerator: str, parallelism: Parallelism, engine: str
) -> bool:
    spec = profile.spec
    return (
        spec.model_name in models
        and spec.accelerator_class_name == accelerator
        and Parallelism(**spec.parallelism.model_dump()) == parallelism
        and spec.engine_class_name in (None, engine)
    )


def _latency(profile: PerformanceProfile) -> LatencyProfile:
    """The coefficients of an object: those fitted online where there are any, else the spec's."""
    spec, online = profile.spec, profile.status.online
    if online is not None and online.samples > 0:
        said = f"fitted online from {online.samples} requests"
        return LatencyProfile(online.prefill.values, online.decode.values, ProfileSource.ONLINE, said)
    source = ProfileSource(spec.source)
    return LatencyProfile(spec.prefill.values, spec.decode.values, source, spec.provenance)
