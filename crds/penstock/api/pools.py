"""Pools: workers of one role with one parallelism, how many there may be, and how a change replaces them.

ModelDeployments ask for pools and WorkerPools are them, so both kinds are made of these parts.
"""

from enum import StrEnum
from typing import Annotated

from penstock.api.base import ApiModel, CountOrPercent, Name, Rule, rules, set_list
from penstock.api.quantities import resolve_share
from pydantic import ConfigDict, Field, StringConstraints

PoolName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=20)]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$", min_length=1, max_length=200)]
ImageName = Annotated[str, StringConstraints(pattern=r"^[^\s]+$", min_length=1, max_length=512)]


class Role(StrEnum):
    """What the workers of a pool do."""

    PREFILL = "Prefill"
    DECODE = "Decode"
    PREFILL_DECODE = "PrefillDecode"


class ParallelismSpec(ApiModel):
    """How one worker is spread over accelerators."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "self.tensor * self.pipeline * self.data <= 64",
                "parallelism asks for more than 64 accelerators per worker; lower tensor, pipeline or data, and raise"
                " replicas instead",
            ),
            Rule(
                "self.expert == 1 || self.expert == self.tensor * self.data",
                "parallelism.expert must be 1 (off) or tensor x data: experts are spread over all of those ranks",
            ),
        )
    )

    tensor: Annotated[int, Field(ge=1, le=64)] = 1
    """Accelerators that share each layer."""
    pipeline: Annotated[int, Field(ge=1, le=64)] = 1
    """Stages that hold consecutive layers."""
    data: Annotated[int, Field(ge=1, le=64)] = 1
    """Copies of the attention layers inside one worker (data-parallel attention)."""
    expert: Annotated[int, Field(ge=1, le=64)] = 1
    """Ranks the experts of a mixture-of-experts model are spread over; 1 is off."""

    @property
    def accelerators(self) -> int:
        """Accelerators one worker holds."""
        return self.tensor * self.pipeline * self.data


class ReplicaRange(ApiModel):
    """Fewest and most workers of a pool."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.max) || self.min <= self.max",
                "replicas.min must not be above replicas.max; lower min or raise max",
                "'replicas.min %d is above replicas.max %d; lower min or raise max'.format([self.min, self.max])",
            )
        )
    )

    min: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Fewest workers."""
    max: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Most workers; left out: as many as `min`, so the pool has a fixed size."""

    @property
    def upper(self) -> int:
        """Most workers, whether or not `max` is given."""
        return max(self.min, 1) if self.max is None else self.max


class PoolSpec(ApiModel):
    """Workers of one role; each accelerator class listed becomes one WorkerPool."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "self.role == oldSelf.role",
                "a pool's role is immutable; remove this pool and add one with another name",
                "'the role of pool ' + self.name + ' is immutable (' + oldSelf.role + '); remove the pool and add one"
                " with another name'",
            )
        )
    )

    name: PoolName
    """Name of the pool within the deployment."""
    role: Role = Role.PREFILL_DECODE
    """What its workers do."""
    accelerator_classes: Annotated[list[Name], Field(json_schema_extra=set_list(max_items=8, min_items=1))]
    """Accelerator classes it may run on; their WorkerPools share the range of `replicas`."""
    parallelism: ParallelismSpec = Field(default_factory=ParallelismSpec)
    """How one worker is spread over accelerators."""
    replicas: ReplicaRange = Field(default_factory=ReplicaRange)
    """Bounds of the sum of workers over the accelerator classes."""


class RolloutSpec(ApiModel):
    """How a change of the pod template replaces workers."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!(string(self.maxSurge) in ['0', '0%'] && string(self.maxUnavailable) in ['0', '0%'])",
                "rollout.maxSurge and rollout.maxUnavailable are both 0, so no worker could ever be replaced; set"
                " maxUnavailable to 1 where no accelerator is spare",
            ),
            Rule(
                "(type(self.maxSurge) != int || self.maxSurge >= 0)"
                " && (type(self.maxUnavailable) != int || self.maxUnavailable >= 0)",
                "rollout.maxSurge and rollout.maxUnavailable must be 0 or more; give a count or a percentage",
            ),
        )
    )

    max_surge: CountOrPercent = 1
    """Workers above the wanted number during a roll: a count, or a percentage rounded up."""
    max_unavailable: CountOrPercent = 0
    """Workers below the wanted number during a roll: a count, or a percentage rounded down."""

    def surge(self, replicas: int) -> int:
        """Workers allowed above `replicas`."""
        return resolve_share(self.max_surge, replicas, round_up=True)

    def unavailable(self, replicas: int) -> int:
        """Workers allowed below `replicas`; at least 1 where rounding left neither, as Kubernetes does."""
        below = resolve_share(self.max_unavailable, replicas, round_up=False)
        return 1 if below == 0 and self.surge(replicas) == 0 else below
