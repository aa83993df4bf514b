"""ModelDeployment: the one object a user applies per model.

It says which model, which latency is owed and, optionally, how the pools look; everything else is decided by
Penstock and told in `status`.
"""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from penstock.api.base import (
    ApiModel,
    ApiObject,
    Column,
    Duration,
    KindInfo,
    Name,
    Percent,
    PositiveDecimal,
    Rule,
    map_list,
    once_durations,
    rules,
    short_name_rule,
)
from penstock.api.deploymentstatus import ModelDeploymentStatus
from penstock.api.engine_args import EngineArgs
from penstock.api.pods import EnvVar, LocalReference, PodTemplate
from penstock.api.pools import ImageName, ModelName, PoolSpec, RolloutSpec
from penstock.api.quantities import parse_decimal, parse_duration, parse_percent
from pydantic import ConfigDict, Field, StringConstraints


class Disaggregation(StrEnum):
    """Whether prefill and decode run on separate workers."""

    AUTO = "Auto"
    ALWAYS = "Always"
    NEVER = "Never"


class AutoscalingMode(StrEnum):
    """Who moves replicas: nobody, a person who reads our advice, or the autoscaler."""

    OFF = "Off"
    ADVISE = "Advise"
    AUTO = "Auto"


class ModelSource(ApiModel):
    """Where the weights come from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.secretRef) || self.uri.startsWith('hf://')",
                "model.source.secretRef is a Hugging Face token and goes with an hf:// uri only; remove secretRef, or"
                " give other credentials through podTemplate",
            )
        )
    )

    uri: Annotated[
        str,
        StringConstraints(min_length=2, max_length=1024),
        Field(
            json_schema_extra=rules(
                Rule(
                    r"self.matches('^(hf://[^/\\s]+(/[^/\\s]+)?|pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^\\s]*)?"
                    r"|oci://[^\\s]+|/[^\\s]*)$')",
                    "model.source.uri must be hf://ORG/NAME, pvc://CLAIM/PATH, oci://IMAGE or an absolute /PATH in the"
                    " engine's image",
                )
            )
        ),
    ]
    """`hf://ORG/NAME` (a Hugging Face hub), `pvc://CLAIM/PATH` (a volume of this namespace), `oci://IMAGE` (an image
    volume) or `/PATH` (inside the engine's image)."""
    secret_ref: LocalReference | None = None
    """Secret with the key `HF_TOKEN`, for gated models."""


class ModelArchitectureRef(ApiModel):
    """Which catalogue entry describes a model whose served name the catalogue does not know."""

    name: ModelName
    """Name or alias in the catalogue, for example `meta-llama/Llama-3.1-8B-Instruct`."""


class ModelSpec(ApiModel):
    """The model and the name clients know it by."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "self.name == oldSelf.name",
                "model.name is immutable, because clients know the deployment by it; create another ModelDeployment"
                " for the other name",
            )
        )
    )

    name: ModelName
    """Served name: what clients send as `model`. One deployment per name among the watched namespaces."""
    source: ModelSource | None = None
    """Where the weights come from; left out: the Hugging Face model of the served name."""
    max_context_tokens: Annotated[int, Field(ge=16, le=16_777_216)] | None = None
    """Longest prompt plus output, in tokens; left out: what the model was made for."""
    architecture: ModelArchitectureRef | None = None
    """Catalogue entry to compute memory and latency from, when the served name is not in the catalogue."""


class EngineSpec(ApiModel):
    """How this deployment's engine differs from its engine class."""

    class_name: Name | None = None
    """EngineClass to run; left out: the class marked default."""
    image: ImageName | None = None
    """Image instead of the class's."""
    args: EngineArgs = Field(default_factory=list)
    """Arguments after the class's; a flag given here replaces the class's."""
    env: Annotated[list[EnvVar], Field(json_schema_extra=map_list("name", max_items=64))] = Field(default_factory=list)
    """Environment variables; a name given here replaces the class's."""


class Objectives(ApiModel):
    """The latency owed to users."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                once_durations("ttft", "tpot", rule="duration(self.ttft) >= duration(self.tpot)"),
                "objectives.ttft must be at least objectives.tpot: the first token takes at least one step of the"
                " engine; raise ttft or lower tpot",
            ),
            Rule(
                "!has(self.window) || "
                + once_durations(
                    "window",
                    rule="duration(self.window) >= duration('10s') && duration(self.window) <= duration('24h')",
                ),
                "objectives.window must lie in 10s..24h; a shorter window judges too few requests, a longer one reacts"
                " to nothing",
            ),
        )
    )

    ttft: Duration
    """Time to the first token, from the request's arrival."""
    tpot: Duration
    """Time per output token after the first."""
    attainment: Percent = "95%"
    """Share of requests that must meet both."""
    window: Duration = "5m"
    """Span over which attainment is judged."""

    @property
    def ttft_seconds(self) -> float:
        """`ttft` in seconds."""
        return parse_duration(self.ttft)

    @property
    def tpot_seconds(self) -> float:
        """`tpot` in seconds."""
        return parse_duration(self.tpot)

    @property
    def attainment_share(self) -> float:
        """`attainment` in 0..1."""
        return parse_percent(self.attainment)

    @property
    def window_seconds(self) -> float:
        """`window` in seconds."""
        return parse_duration(self.window)


class RoutingSpec(ApiModel):
    """How requests are sent to workers."""

    policy: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9]*$", min_length=1, max_length=63)] = (
        "KVAware"
    )
    """Name of the pick policy; an unknown one is `Accepted=False`."""


class Budget(ApiModel):
    """What the deployment may use at most."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "has(self.costPerHour) || has(self.maxAccelerators)",
                "autoscaling.budget is empty; set costPerHour, maxAccelerators or both, or remove budget",
            )
        )
    )

    cost_per_hour: PositiveDecimal | None = None
    """Money per hour, in the currency of the accelerator classes' prices."""
    max_accelerators: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Accelerators held at once, pods on their way out included."""

    @property
    def cost(self) -> float | None:
        """`costPerHour` as a number."""
        return None if self.cost_per_hour is None else float(parse_decimal(self.cost_per_hour))


class AutoscalingSpec(ApiModel):
    """Who moves replicas, and within which budget."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.scaleToZeroAfter) || self.mode == 'Auto'",
                "autoscaling.scaleToZeroAfter needs autoscaling.mode Auto; set the mode or remove scaleToZeroAfter",
            ),
            Rule(
                "!has(self.scaleToZeroAfter) || "
                + once_durations("scaleToZeroAfter", rule="duration(self.scaleToZeroAfter) >= duration('1m')"),
                "autoscaling.scaleToZeroAfter must be at least 1m: a cold start costs more than a minute of idling",
            ),
        )
    )

    mode: AutoscalingMode = AutoscalingMode.ADVISE
    """`"Off"` (quoted, or YAML reads a boolean): nothing is computed. `Advise`: plans are shown in status.
    `Auto`: the autoscaler writes replicas.
    A HorizontalPodAutoscaler or KEDA needs `Off` or `Advise`."""
    budget: Budget | None = None
    """Limits over all pools."""
    scale_to_zero_after: Duration | None = None
    """Idle time after which all workers are given back; needs `min: 0` in every pool. Not yet honoured in full: one
    worker of each role stays, since nothing wakes a deployment without workers."""

    @property
    def scale_to_zero_seconds(self) -> float | None:
        """`scaleToZeroAfter` in seconds."""
        return None if self.scale_to_zero_after is None else parse_duration(self.scale_to_zero_after)


class ModelDeploymentSpec(ApiModel):
    """What the user wants."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.pools) || !(self.pools.exists(p, p.role == 'PrefillDecode')"
                " && self.pools.exists(p, p.role != 'PrefillDecode'))",
                "pools mixes role PrefillDecode with Prefill or Decode; use PrefillDecode pools only, or Prefill and"
                " Decode pools only",
            ),
            Rule(
                "!has(self.pools) || self.pools.exists(p, p.role == 'Prefill')"
                " == self.pools.exists(p, p.role == 'Decode')",
                "pools has a Prefill pool without a Decode pool, or a Decode pool without a Prefill pool; add the"
                " missing one, or use role PrefillDecode",
            ),
            Rule(
                "self.disaggregation != 'Never' || !has(self.pools) || self.pools.all(p, p.role == 'PrefillDecode')",
                "disaggregation Never goes with PrefillDecode pools only; set disaggregation to Auto or Always, or"
                " change the pools",
            ),
            Rule(
                "self.disaggregation != 'Always' || !has(self.pools) || self.pools.all(p, p.role != 'PrefillDecode')",
                "disaggregation Always needs Prefill and Decode pools; set disaggregation to Auto or Never, or change"
                " the pools",
            ),
            Rule(
                "!has(self.autoscaling.scaleToZeroAfter) || !has(self.pools) || self.pools.all(p, p.replicas.min == 0)",
                "autoscaling.scaleToZeroAfter needs replicas.min 0 in every pool; lower the minimums or remove"
                " scaleToZeroAfter",
            ),
            Rule(
                "!has(self.autoscaling.budget) || !has(self.autoscaling.budget.maxAccelerators) || !has(self.pools)"
                " || self.pools.map(p, p.replicas.min * p.parallelism.tensor * p.parallelism.pipeline"
                " * p.parallelism.data).sum() <= self.autoscaling.budget.maxAccelerators",
                "the pools' minimums need more accelerators than autoscaling.budget.maxAccelerators; raise the budget"
                " or lower replicas.min",
            ),
            Rule(
                "!has(self.pools) || self.pools.all(p, p.role == 'PrefillDecode') || !has(self.engine)"
                " || !has(self.engine.args) || !self.engine.args.exists(arg, arg.startsWith('--kv-transfer-config')"
                " || arg.startsWith('--kv_transfer_config'))",
                "engine.args sets --kv-transfer-config, but the transfer between Prefill and Decode pools is Penstock's"
                " to set up; remove the argument",
            ),
            Rule(
                "!has(self.model.source) || !has(self.model.source.secretRef) || !has(self.engine)"
                " || !has(self.engine.env) || self.engine.env.all(e, e.name != 'HF_TOKEN')",
                "engine.env sets HF_TOKEN, which model.source.secretRef sets already; remove one of the two",
            ),
        )
    )

    model: ModelSpec
    """The model and the name clients know it by."""
    engine: EngineSpec = Field(default_factory=EngineSpec)
    """How this deployment's engine differs from its engine class."""
    objectives: Objectives
    """The latency owed to users."""
    disaggregation: Disaggregation = Disaggregation.AUTO
    """Whether prefill and decode run on separate workers."""
    pools: Annotated[list[PoolSpec], Field(json_schema_extra=map_list("name", max_items=16))] = Field(
        default_factory=list
    )
    """Pools of workers; left out: one pool `serve` of role PrefillDecode on the cheapest class that fits."""
    routing: RoutingSpec = Field(default_factory=RoutingSpec)
    """How requests are sent to workers."""
    autoscaling: AutoscalingSpec = Field(default_factory=AutoscalingSpec)
    """Who moves replicas, and within which budget."""
    rollout: RolloutSpec = Field(default_factory=RolloutSpec)
    """How a change of the pod template replaces workers."""
    pod_template: PodTemplate | None = None
    """Merged over the engine class's pod template: tolerations, volumes, service account, runtime class, labels."""


class ModelDeployment(ApiObject):
    """A model and the latency it owes its users; Penstock runs the workers that keep it."""

    CRD: ClassVar[KindInfo] = KindInfo(
        plural="modeldeployments",
        singular="modeldeployment",
        short_names=("mdep",),
        namespaced=True,
        columns=(
            Column("Model", ".spec.model.name", description="Served name"),
            Column("Workers", ".status.workers", description="Ready and wanted workers"),
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status', description="Sum of all conditions"),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason', description="Why it is or is not ready"),
            Column("Cost/h", ".status.plan.costPerHour", description="Money per hour of the wanted workers"),
            Column("Age", ".metadata.creationTimestamp", type="date"),
            Column("Engine", ".status.engineClass", priority=1, description="EngineClass in use"),
            Column("Policy", ".spec.routing.policy", priority=1, description="Pick policy"),
            Column("Mode", ".spec.autoscaling.mode", priority=1, description="Who moves replicas"),
            Column("Message", ".status.message", priority=1, description="What runs where and why"),
        ),
        name_rules=(short_name_rule("ModelDeployment"),),
    )

    kind: Literal["ModelDeployment"] = "ModelDeployment"
    spec: ModelDeploymentSpec
    """What the user wants."""
    status: ModelDeploymentStatus = Field(default_factory=ModelDeploymentStatus)
    """What the operator and the router last saw."""
