"""What the status of a ModelDeployment tells: what runs where, what it costs, and why."""

from typing import Annotated, Literal

from penstock.api.base import ApiModel, Condition, Name, Text, map_list
from penstock.api.pools import PoolName, Role
from pydantic import Field, StringConstraints


class PoolStatus(ApiModel):
    """One WorkerPool as last seen."""

    name: PoolName
    """Pool in the spec (`serve` where the spec has none)."""
    accelerator_class: Name
    """Accelerator class of this WorkerPool."""
    role: Role
    """What its workers do."""
    worker_pool: Annotated[str, StringConstraints(max_length=253)] = ""
    """Name of the WorkerPool object."""
    replicas: Annotated[int, Field(ge=0)] = 0
    """Workers wanted."""
    ready_replicas: Annotated[int, Field(ge=0)] = 0
    """Workers ready."""
    updated_replicas: Annotated[int, Field(ge=0)] = 0
    """Workers of the current revision."""
    accelerators_per_worker: Annotated[int, Field(ge=0)] = 0
    """Accelerators one worker holds."""
    revision: Annotated[str, StringConstraints(max_length=63)] = ""
    """Revision the pool is moving to, or is at."""
    cost_per_hour: Annotated[str, StringConstraints(max_length=32)] = ""
    """Money per hour of the wanted workers; empty where the class has no price."""
    message: Text = ""
    """What runs here, and why here."""


class PlanStatus(ApiModel):
    """The present plan: what it holds, costs and why."""

    reason: Text = ""
    """Why these pools with these numbers."""
    cost_per_hour: Annotated[str, StringConstraints(max_length=32)] = ""
    """Money per hour of all wanted workers; empty where a class has no price."""
    accelerators: Annotated[int, Field(ge=0)] = 0
    """Accelerators of all wanted workers."""


class ProfileStatus(ApiModel):
    """The profile in use for one accelerator class."""

    accelerator_class: Name
    """Accelerator class it describes."""
    source: Literal["Online", "Benchmark", "Catalogue", "Roofline"]
    """Where its figures come from."""
    name: Annotated[str, StringConstraints(max_length=253)] = ""
    """PerformanceProfile object; empty where the figures come from the catalogue or the roofline."""
    provenance: Text = ""
    """Publication or measurement behind the figures."""


class RecommendedPool(ApiModel):
    """What the autoscaler would have one WorkerPool be."""

    worker_pool: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    """Name of the WorkerPool object."""
    replicas: Annotated[int, Field(ge=0)] = 0
    """Workers that the forecast load needs."""
    allowed: Annotated[int, Field(ge=0)] = 0
    """Workers that the guard allows now, on the way there."""


class RecommendationStatus(ApiModel):
    """The autoscaler's plan, written in modes Advise and Auto."""

    pools: Annotated[list[RecommendedPool], Field(json_schema_extra=map_list("workerPool", max_items=128))] = Field(
        default_factory=list
    )
    """Workers for each WorkerPool."""
    why: Annotated[str, StringConstraints(max_length=63)] = ""
    """Reason in one word."""
    reason: Text = ""
    """Reason in a sentence."""
    runner_up: Text = ""
    """The next best choice, and why it was not taken."""
    held_by: Annotated[str, StringConstraints(max_length=63)] = ""
    """Why the guard does not do all of it now; empty where it does."""
    degraded: Annotated[str, StringConstraints(max_length=63)] = ""
    """Reason for the condition Degraded; empty where scaling works as it should."""
    message: Text = ""
    """What the guard said."""
    cost_per_hour: Annotated[str, StringConstraints(max_length=32)] = ""
    """Money per hour of the recommended workers; empty where a class has no price."""


class ModelDeploymentStatus(ApiModel):
    """What the operator, the autoscaler and the router last saw."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    """`metadata.generation` that this status was computed from."""
    conditions: Annotated[list[Condition], Field(json_schema_extra=map_list("type", max_items=16))] = Field(
        default_factory=list
    )
    """Aspects of the deployment; `Ready` sums them up."""
    workers: Annotated[str, StringConstraints(max_length=32)] = ""
    """Ready and wanted workers, as `2/3`."""
    replicas: Annotated[int, Field(ge=0)] = 0
    """Workers wanted, over all pools."""
    ready_replicas: Annotated[int, Field(ge=0)] = 0
    """Workers ready, over all pools."""
    pools: Annotated[list[PoolStatus], Field(json_schema_extra=map_list("name", "acceleratorClass", max_items=128))] = (
        Field(default_factory=list)
    )
    """What runs where."""
    plan: PlanStatus | None = None
    """The present plan."""
    recommendation: RecommendationStatus | None = None
    """What the autoscaler advises or does; written by it alone."""
    engine_class: Annotated[str, StringConstraints(max_length=253)] = ""
    """EngineClass in use."""
    profiles: Annotated[list[ProfileStatus], Field(json_schema_extra=map_list("acceleratorClass", max_items=64))] = (
        Field(default_factory=list)
    )
    """Profiles in use."""
    endpoint: Annotated[str, StringConstraints(max_length=1024)] = ""
    """Base address of the OpenAI endpoint inside the cluster."""
    message: Text = ""
    """What runs where and why, in a sentence or two."""
