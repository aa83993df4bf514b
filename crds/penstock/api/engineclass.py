"""EngineClass: how an engine is run; the platform team owns it, ModelDeployments name it."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from penstock.api.base import (
    ApiModel,
    ApiObject,
    Column,
    Duration,
    KindInfo,
    Name,
    PositiveDecimal,
    Rule,
    atomic_list,
    map_list,
    once_durations,
    rules,
    set_list,
    short_name_rule,
)
from penstock.api.engine_args import EngineArg, EngineArgs, VariantArgs
from penstock.api.pods import EnvVar, LocalReference, PodTemplate
from penstock.api.pools import ImageName
from penstock.api.quantities import parse_decimal, parse_duration
from pydantic import ConfigDict, Field

Command = Annotated[list[EngineArg], Field(json_schema_extra=atomic_list(max_items=16))]

DRAIN_MARGIN_SECONDS = 5
"""The drain ends this long before grace minus shutdown time-out, so that the engine's own goodbye fits."""


class Adapter(StrEnum):
    """Which adapter renders the worker's pod."""

    VLLM = "vLLM"
    SIMULATED = "Simulated"


class EngineVariant(ApiModel):
    """What differs on some accelerator classes."""

    name: Name
    """Name of the variant."""
    accelerator_classes: Annotated[list[Name], Field(json_schema_extra=set_list(max_items=16, min_items=1))]
    """Accelerator classes it is for."""
    image: ImageName | None = None
    """Image instead of the class's."""
    args: VariantArgs = Field(default_factory=list)
    """Arguments after the class's."""
    env: Annotated[list[EnvVar], Field(json_schema_extra=map_list("name", max_items=64))] = Field(default_factory=list)
    """Environment variables over the class's."""
    pod_template: PodTemplate | None = None
    """Merged over the class's pod template."""


class Simulation(ApiModel):
    """How a simulated engine behaves."""

    time_scale: PositiveDecimal = "1"
    """Wall-clock seconds per modelled second: `"0.1"` runs ten times faster than the modelled hardware."""
    startup: Duration = "2s"
    """Time from the start of the process until it answers `/health`."""

    @property
    def time_scale_factor(self) -> float:
        """`timeScale` as a number."""
        return float(parse_decimal(self.time_scale))

    @property
    def startup_seconds(self) -> float:
        """`startup` in seconds."""
        return parse_duration(self.startup)


class EngineClassSpec(ApiModel):
    """Image, arguments, probes and pod template of an engine."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.simulation) || self.adapter == 'Simulated'",
                "simulation goes with adapter Simulated only; remove simulation or set adapter: Simulated",
            ),
            Rule(
                once_durations(
                    "terminationGracePeriod",
                    "shutdownTimeout",
                    rule="duration(self.terminationGracePeriod) > duration(self.shutdownTimeout) + duration('5s')",
                ),
                "terminationGracePeriod must exceed shutdownTimeout by more than 5s, or a worker has no time to drain;"
                " raise terminationGracePeriod or lower shutdownTimeout",
            ),
            Rule(
                "!has(self.variants) || self.variants.all(v, v.acceleratorClasses.all(c,"
                " self.variants.exists_one(w, c in w.acceleratorClasses)))",
                "an accelerator class stands in two variants, so it is unclear which one counts; keep it in one",
            ),
            Rule(
                "!has(self.env) || !self.env.exists(e, e.name == 'HF_TOKEN' && has(e.value))",
                "env holds HF_TOKEN in plain text for every reader of this class; use valueFrom.secretKeyRef, or"
                " model.source.secretRef of the ModelDeployment",
            ),
        )
    )

    adapter: Adapter
    """Which adapter renders the worker's pod."""
    default: bool = False
    """Whether deployments that name no class get this one; at most one class should say so."""
    image: ImageName
    """Image of the engine's container."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the image is pulled; left out: Kubernetes decides by the tag."""
    image_pull_secrets: Annotated[list[LocalReference], Field(json_schema_extra=map_list("name", max_items=8))] = Field(
        default_factory=list
    )
    """Secrets, in the deployment's namespace, for a private registry."""
    command: Command = Field(default_factory=list)
    """Command instead of the adapter's."""
    args: EngineArgs = Field(default_factory=list)
    """Arguments after the adapter's; a flag given here replaces the adapter's default."""
    env: Annotated[list[EnvVar], Field(json_schema_extra=map_list("name", max_items=64))] = Field(default_factory=list)
    """Environment variables of the engine's container."""
    port: Annotated[int, Field(ge=1024, le=65535)] = 8000
    """Port of the OpenAI API, `/health` and `/metrics`."""
    shutdown_timeout: Duration = "20s"
    """Time the engine has to end its work after SIGTERM."""
    termination_grace_period: Duration = "5m"
    """Time from a pod's deletion to SIGKILL; the drain takes what shutdownTimeout and 5 s leave of it."""
    startup_timeout: Duration = "30m"
    """Time a worker has to load the model before it is restarted."""
    pod_template: PodTemplate | None = None
    """Merged over the adapter's pod template: tolerations, volumes, runtime class, resources."""
    variants: Annotated[list[EngineVariant], Field(json_schema_extra=map_list("name", max_items=8))] = Field(
        default_factory=list
    )
    """What differs on some accelerator classes."""
    simulation: Simulation | None = None
    """How a simulated engine behaves; for adapter Simulated only."""

    @property
    def shutdown_seconds(self) -> float:
        """`shutdownTimeout` in seconds."""
        return parse_duration(self.shutdown_timeout)

    @property
    def grace_seconds(self) -> float:
        """`terminationGracePeriod` in seconds."""
        return parse_duration(self.termination_grace_period)

    @property
    def startup_timeout_seconds(self) -> float:
        """`startupTimeout` in seconds."""
        return parse_duration(self.startup_timeout)

    def variant_for(self, accelerator_class: str) -> EngineVariant | None:
        """The variant that counts on an accelerator class, if any."""
        return next((v for v in self.variants if accelerator_class in v.accelerator_classes), None)


class EngineClass(ApiObject):
    """How an engine is run: image, arguments, time-outs and pod template, with variants per accelerator class."""

    CRD: ClassVar[KindInfo] = KindInfo(
        plural="engineclasses",
        singular="engineclass",
        short_names=("engine",),
        namespaced=False,
        columns=(
            Column("Adapter", ".spec.adapter"),
            Column("Default", ".spec.default", type="boolean"),
            Column("Image", ".spec.image"),
            Column("Age", ".metadata.creationTimestamp", type="date"),
        ),
        name_rules=(short_name_rule("EngineClass"),),
    )

    kind: Literal["EngineClass"] = "EngineClass"
    spec: EngineClassSpec
    """Image, arguments, probes and pod template of an engine."""
