"""PerformanceProfile: how fast one model runs on one accelerator class, and how we know.

Latency of one engine iteration in milliseconds: prefill = base + perToken x T + perSquaredToken x S, where T is
the number of prompt tokens and S the sum of their squares per sequence; decode = base + perSequence x B +
perContextToken x C, where B is the batch and C the total context in tokens.
"""

from typing import Annotated, ClassVar, Literal

from penstock.api.base import (
    ApiModel,
    ApiObject,
    Coefficient,
    Column,
    Condition,
    KindInfo,
    Name,
    Rule,
    Text,
    map_list,
    rules,
)
from penstock.api.pools import ModelName, ParallelismSpec
from penstock.api.quantities import parse_decimal
from pydantic import ConfigDict, Field, StringConstraints

ZERO = "0"


class PrefillCoefficients(ApiModel):
    """Milliseconds of a prefill iteration."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "double(self.base) + double(self.perToken) > 0.0",
                "prefill.base and prefill.perToken are both 0, so a prompt would take no time; set what was measured",
            )
        )
    )

    base: Coefficient = ZERO
    """Milliseconds per iteration."""
    per_token: Coefficient = ZERO
    """Milliseconds per prompt token."""
    per_squared_token: Coefficient = ZERO
    """Milliseconds per squared prompt token (attention)."""

    @property
    def values(self) -> tuple[float, float, float]:
        """Base, per token, per squared token, in milliseconds."""
        return _numbers(self.base, self.per_token, self.per_squared_token)


class DecodeCoefficients(ApiModel):
    """Milliseconds of a decode iteration."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "double(self.base) + double(self.perSequence) > 0.0",
                "decode.base and decode.perSequence are both 0, so a token would take no time; set what was measured",
            )
        )
    )

    base: Coefficient = ZERO
    """Milliseconds per iteration."""
    per_sequence: Coefficient = ZERO
    """Milliseconds per running sequence."""
    per_context_token: Coefficient = ZERO
    """Milliseconds per token of context held by the batch."""

    @property
    def values(self) -> tuple[float, float, float]:
        """Base, per sequence, per context token, in milliseconds."""
        return _numbers(self.base, self.per_sequence, self.per_context_token)


def _numbers(*texts: str) -> tuple[float, float, float]:
    first, second, third = (float(parse_decimal(text)) for text in texts)
    return first, second, third


class PerformanceProfileSpec(ApiModel):
    """What is known about one model on one accelerator class."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!(self.source in ['Benchmark', 'Catalogue']) || size(self.provenance) > 0",
                "a profile of source Benchmark or Catalogue needs provenance: who measured what, where and when",
            ),
            Rule(
                "self.modelName == oldSelf.modelName && self.acceleratorClassName == oldSelf.acceleratorClassName",
                "modelName and acceleratorClassName of a PerformanceProfile are immutable; create another profile",
            ),
        )
    )

    model_name: ModelName
    """Served name, or a name of the catalogue."""
    accelerator_class_name: Name
    """AcceleratorClass it was measured on."""
    parallelism: ParallelismSpec = Field(default_factory=ParallelismSpec)
    """How the worker was spread over accelerators."""
    engine_class_name: Name | None = None
    """EngineClass it holds for; left out: any."""
    source: Literal["Catalogue", "Roofline", "Benchmark", "Online"]
    """Where the figures come from."""
    prefill: PrefillCoefficients
    """Milliseconds of a prefill iteration."""
    decode: DecodeCoefficients
    """Milliseconds of a decode iteration."""
    kv_capacity_tokens: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Tokens of KV cache one worker holds; left out: computed from memory."""
    provenance: Text = ""
    """Who measured what, where and when."""


class OnlineFit(ApiModel):
    """Coefficients fitted from live traffic."""

    prefill: PrefillCoefficients
    """Milliseconds of a prefill iteration."""
    decode: DecodeCoefficients
    """Milliseconds of a decode iteration."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Requests behind the fit."""
    error: Annotated[str, StringConstraints(max_length=32)] = ""
    """Median relative error of the fit, as a percentage."""
    updated: Annotated[str, StringConstraints(max_length=64)] = ""
    """When it was last fitted (RFC 3339)."""


class PerformanceProfileStatus(ApiModel):
    """What live traffic says."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    """`metadata.generation` that this status was computed from."""
    online: OnlineFit | None = None
    """Coefficients fitted from live traffic."""
    conditions: Annotated[list[Condition], Field(json_schema_extra=map_list("type", max_items=16))] = Field(
        default_factory=list
    )
    """Aspects of the profile."""


class PerformanceProfile(ApiObject):
    """Latency and capacity of a model on an accelerator class, with the source of the figures."""

    CRD: ClassVar[KindInfo] = KindInfo(
        plural="performanceprofiles",
        singular="performanceprofile",
        short_names=("prof",),
        namespaced=False,
        columns=(
            Column("Model", ".spec.modelName"),
            Column("Accelerator", ".spec.acceleratorClassName"),
            Column("Tensor", ".spec.parallelism.tensor", type="integer"),
            Column("Source", ".spec.source"),
            Column("Age", ".metadata.creationTimestamp", type="date"),
            Column("Provenance", ".spec.provenance", priority=1),
        ),
    )

    kind: Literal["PerformanceProfile"] = "PerformanceProfile"
    spec: PerformanceProfileSpec
    """What is known about one model on one accelerator class."""
    status: PerformanceProfileStatus = Field(default_factory=PerformanceProfileStatus)
    """What live traffic says."""
