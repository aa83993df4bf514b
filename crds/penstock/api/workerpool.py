"""WorkerPool: the workers of one role on one accelerator class, with one number to scale.

The operator writes everything but `replicas`; `kubectl scale`, an HPA, KEDA or our autoscaler write that one
field through the scale subresource, within bounds that the API server itself holds.
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
    Scale,
    Text,
    map_list,
    rules,
)
from penstock.api.performanceprofile import DecodeCoefficients, PrefillCoefficients
from penstock.api.pods import RenderedPodTemplate
from penstock.api.pools import ModelName, ParallelismSpec, PoolName, Role, RolloutSpec
from penstock.api.quantities import parse_decimal
from pydantic import ConfigDict, Field, StringConstraints


def _immutable(field: str) -> Rule:
    return Rule(
        f"self.{field} == oldSelf.{field}",
        f"spec.{field} of a WorkerPool is immutable; change the ModelDeployment, which makes another WorkerPool",
    )


class ExpertCoefficients(ApiModel):
    """What reading the routed experts' weights adds to an iteration of a mixture of experts."""

    whole: Coefficient = "0"
    """Milliseconds to read all of them."""
    share: Coefficient = "0"
    """Share of them that one token visits."""

    @property
    def values(self) -> tuple[float, float]:
        """Milliseconds, and a share of 1."""
        return float(parse_decimal(self.whole)), float(parse_decimal(self.share))


class WorkerSpeed(ApiModel):
    """How fast one worker of the pool is and what it costs, as the operator resolved it from profile and classes."""

    source: Annotated[str, StringConstraints(max_length=64)] = ""
    """Where the latency comes from: `Online`, `Benchmark`, `Catalogue` or `Roofline`."""
    prefill: PrefillCoefficients | None = None
    """Milliseconds of a prefill iteration; left out: nobody knows."""
    decode: DecodeCoefficients | None = None
    """Milliseconds of a decode iteration; left out: nobody knows."""
    experts: ExpertCoefficients | None = None
    """For a mixture of experts."""
    transfer_per_token: Coefficient | None = None
    """Milliseconds until one token's KV cache has come from another worker."""
    price_per_hour: Coefficient | None = None
    """Money per hour of one worker."""


class WorkerPoolSpec(ApiModel):
    """What the operator decided for this pool, and how many workers it has."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.replicas) || (self.replicas >= self.minReplicas && self.replicas <= self.maxReplicas)",
                "spec.replicas is outside spec.minReplicas..spec.maxReplicas; scale within the bounds, or change"
                " spec.pools[].replicas of the ModelDeployment",
                "'replicas %d is outside %d..%d; scale within these bounds, or change replicas of pool %s in"
                " ModelDeployment %s'.format([self.replicas, self.minReplicas, self.maxReplicas, self.poolName,"
                " self.deploymentName])",
            ),
            Rule(
                "self.minReplicas <= self.maxReplicas",
                "spec.minReplicas is above spec.maxReplicas; lower the one or raise the other",
            ),
            _immutable("deploymentName"),
            _immutable("poolName"),
            _immutable("role"),
            _immutable("acceleratorClassName"),
        )
    )

    deployment_name: Name
    """ModelDeployment this pool belongs to."""
    pool_name: PoolName
    """Pool in the ModelDeployment's spec."""
    role: Role
    """What its workers do."""
    accelerator_class_name: Name
    """AcceleratorClass its workers run on."""
    model_name: ModelName
    """Served name of the model."""
    parallelism: ParallelismSpec = Field(default_factory=ParallelismSpec)
    """How one worker is spread over accelerators."""
    accelerators_per_worker: Annotated[int, Field(ge=0, le=4096)] = 1
    """Accelerators one worker holds."""
    replicas: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Workers wanted. Set once when the pool is made; afterwards only the scale subresource writes it."""
    min_replicas: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Fewest workers that may be asked for."""
    max_replicas: Annotated[int, Field(ge=1, le=10_000)]
    """Most workers that may be asked for."""
    rollout: RolloutSpec = Field(default_factory=RolloutSpec)
    """How a change of the template replaces workers."""
    speed: WorkerSpeed | None = None
    """How fast one worker is and what it costs; the router predicts with it. A change of it replaces no worker."""
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{0,63}$", max_length=63)] = ""
    """Revision of `template`: first digits of its SHA-256."""
    kv_hash: Annotated[str, StringConstraints(max_length=128)] = ""
    """KV-compatibility hash: prefill and decode pair only within one."""
    template: RenderedPodTemplate | None = None
    """Pod template of the current revision, whole."""


class WorkerPoolStatus(ApiModel):
    """The pool's workers as last seen."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    """`metadata.generation` that this status was computed from."""
    replicas: Annotated[int, Field(ge=0)] = 0
    """Worker pods that exist and are not on their way out."""
    ready_replicas: Annotated[int, Field(ge=0)] = 0
    """Workers ready."""
    updated_replicas: Annotated[int, Field(ge=0)] = 0
    """Workers of the current revision."""
    selector: Annotated[str, StringConstraints(max_length=1024)] = ""
    """Label selector of the pool's workers, one pod per worker, all revisions."""
    conditions: Annotated[list[Condition], Field(json_schema_extra=map_list("type", max_items=16))] = Field(
        default_factory=list
    )
    """Aspects of the pool."""
    message: Text = ""
    """What runs here, and why here."""


class WorkerPool(ApiObject):
    """Workers of one role on one accelerator class with one parallelism; owned by a ModelDeployment."""

    CRD: ClassVar[KindInfo] = KindInfo(
        plural="workerpools",
        singular="workerpool",
        short_names=("wpool",),
        namespaced=True,
        columns=(
            Column("Deployment", ".spec.deploymentName", description="ModelDeployment it belongs to"),
            Column("Role", ".spec.role", description="What its workers do"),
            Column("Accelerator", ".spec.acceleratorClassName", description="AcceleratorClass"),
            Column("Wanted", ".spec.replicas", type="integer", description="Workers wanted"),
            Column("Ready", ".status.readyReplicas", type="integer", description="Workers ready"),
            Column("Updated", ".status.updatedReplicas", type="integer", description="Workers of the current revision"),
            Column("Age", ".metadata.creationTimestamp", type="date"),
            Column("Min", ".spec.minReplicas", type="integer", priority=1),
            Column("Max", ".spec.maxReplicas", type="integer", priority=1),
            Column("Per-worker", ".spec.acceleratorsPerWorker", type="integer", priority=1, description="Accelerators"),
            Column("Revision", ".spec.revision", priority=1),
        ),
        scale=Scale(),
    )

    kind: Literal["WorkerPool"] = "WorkerPool"
    spec: WorkerPoolSpec
    """What the operator decided for this pool, and how many workers it has."""
    status: WorkerPoolStatus = Field(default_factory=WorkerPoolStatus)
    """The pool's workers as last seen."""
