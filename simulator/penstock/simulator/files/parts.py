"""The smaller forms of a scenario file: pools, limits, links, start-up, faults."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from penstock.core.engine import BatchScheduler, Preemption, SchedulingPolicy
from penstock.core.fleet import Role
from penstock.core.models import LatencyProfile, Parallelism, ProfileSource
from penstock.router.decisions.retries import RetryLimits
from penstock.router.decisions.split import SplitLimits
from penstock.simulator.faults import Crash, Fault, LostEvents, Partition, Slow, Throttle, Timeouts
from penstock.simulator.files.values import Form, Seconds
from penstock.simulator.links import Level, Link, Topology
from penstock.simulator.scenario import ENDLESS, HostMemory, PoolSpec
from penstock.simulator.startup import StartUp
from pydantic import Field, model_validator

__all__ = [
    "AnyFault", "EngineForm", "NodesForm", "ObjectivesForm", "ParallelismForm", "PoolForm", "ProfileForm", "RouterForm",
    "StartUpForm", "TopologyForm", "TransferForm",
]  # fmt: skip

Count = Annotated[int, Field(ge=1, le=1 << 31)]
Share = Annotated[float, Field(gt=0, le=1)]
_ROLES = {role.api_name: role for role in Role}
_LEVELS = {level.name.capitalize(): level for level in Level}


class NodesForm(Form):
    """Nodes that are alike."""

    accelerator_class: str
    nodes: Annotated[int, Field(ge=1, le=1_000_000)]
    accelerators: Annotated[int, Field(ge=1, le=10_000)]
    """On each node."""


class ObjectivesForm(Form):
    """What users are owed."""

    ttft: Seconds = 0.5
    tpot: Seconds = 0.04


class ParallelismForm(Form):
    """Degrees of one worker."""

    tensor: Annotated[int, Field(ge=1, le=64)] = 1
    pipeline: Annotated[int, Field(ge=1, le=64)] = 1
    data: Annotated[int, Field(ge=1, le=64)] = 1
    expert: Annotated[int, Field(ge=1, le=4096)] = 1

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.build()
        return self

    def build(self) -> Parallelism:
        """The degrees."""
        return self.make(Parallelism)


class ProfileForm(Form):
    """Coefficients in milliseconds, as the profiles page explains them."""

    prefill: tuple[float, float, float]
    decode: tuple[float, float, float]
    experts: tuple[float, float] = (0.0, 0.0)
    provenance: str = "a scenario file"

    def build(self) -> LatencyProfile:
        """The profile."""
        return self.make(LatencyProfile, source=ProfileSource.BENCHMARK)


class PoolForm(Form):
    """One pool; what is left out is the scenario's."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    role: Literal["Prefill", "Decode", "PrefillDecode"] = "PrefillDecode"
    accelerator_class: str
    parallelism: ParallelismForm = ParallelismForm()
    replicas: Annotated[int, Field(ge=0, le=100_000)]
    max_num_batched_tokens: Count | None = None
    max_num_seqs: Count | None = None
    scheduler: BatchScheduler | None = None
    profile: ProfileForm | None = None

    def build(self) -> PoolSpec:
        """The pool."""
        return self.make(
            PoolSpec,
            role=_ROLES[self.role],
            accelerator=self.accelerator_class,
            parallelism=self.parallelism.build(),
            profile=None if self.profile is None else self.profile.build(),
        )


class EngineForm(Form):
    """Limits of every engine, under vLLM's names."""

    max_context: Annotated[int, Field(ge=2)] | None = None
    kv_capacity: Count | Literal["infinite"] | None = None
    """Tokens; left out: what the accelerators' memory leaves."""
    block_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    max_num_seqs: Annotated[int, Field(ge=1, le=1 << 16)] = 256
    max_num_batched_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 8192
    scheduler: BatchScheduler = BatchScheduler.STALL_FREE
    max_stalls: Annotated[int, Field(ge=0)] | None = None
    mixed_pass_factor: Annotated[float, Field(ge=1)] | None = None
    scheduling_policy: SchedulingPolicy = SchedulingPolicy.FCFS
    preemption: Preemption = Preemption.RECOMPUTE
    """What becomes of the KV of a sequence that has to make room."""
    host_kv_capacity: Count | None = None
    """Tokens of KV on the host of each worker; for `preemption: Swap`, which needs it."""
    host_gbytes_per_s: Annotated[float, Field(gt=0)] | None = None
    """Between each accelerator and its host; for `preemption: Swap`."""
    prefix_caching: bool = True

    @model_validator(mode="after")
    def _whole(self) -> Self:
        swaps = self.preemption is Preemption.SWAP
        if swaps and self.host_kv_capacity is None:
            raise ValueError("preemption: Swap needs hostKvCapacity, the tokens that each worker's host has room for")
        if not swaps and (self.host_kv_capacity is not None or self.host_gbytes_per_s is not None):
            raise ValueError("hostKvCapacity and hostGbytesPerS are for preemption: Swap; leave them out, or write it")
        return self

    @property
    def host(self) -> HostMemory | None:
        """Where preempted sequences wait, as a scenario has it."""
        if self.host_kv_capacity is None:
            return None
        rate = self.host_gbytes_per_s
        return HostMemory(self.host_kv_capacity) if rate is None else HostMemory(self.host_kv_capacity, rate)

    @property
    def kv_tokens(self) -> int | None:
        """The KV capacity as a scenario has it."""
        return ENDLESS if self.kv_capacity == "infinite" else self.kv_capacity


class RetriesForm(Form):
    """How often a request is tried, and how a failing worker is kept out."""

    attempts: Annotated[int, Field(ge=1, le=100)] = RetryLimits().attempts
    backoff: Seconds = RetryLimits().backoff
    max_backoff: Seconds = RetryLimits().max_backoff
    eject_after: Annotated[int, Field(ge=1)] = RetryLimits().eject_after
    ejection: Seconds = RetryLimits().ejection
    max_ejection: Seconds = RetryLimits().max_ejection
    continuations: Annotated[int, Field(ge=0, le=100)] = RetryLimits().continuations


class SplitForm(Form):
    """When a prompt is prefilled apart."""

    min_tokens: Annotated[int, Field(ge=0)] = SplitLimits().min_tokens
    busy_tokens: Annotated[int, Field(ge=0)] = SplitLimits().busy_tokens
    attempts: Annotated[int, Field(ge=1, le=100)] = SplitLimits().attempts
    lease: Seconds = SplitLimits().lease


class TimeoutsForm(Form):
    """How long the router and the engines wait for somebody who cannot be reached."""

    connect: Seconds = Timeouts().connect_s
    response: Seconds = Timeouts().response_s
    silence: Seconds = Timeouts().silence_s
    transfer: Seconds = Timeouts().transfer_s

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.make(Timeouts)
        return self


class RouterForm(Form):
    """What the router knows, how late, and how long it tries."""

    scrape_interval: Seconds = 5.0
    readiness_delay: Seconds = 1.0
    max_in_flight: Count = 1024
    index_bytes: Count = 1 << 30
    retries: RetriesForm = RetriesForm()
    split: SplitForm = SplitForm()
    timeouts: TimeoutsForm = TimeoutsForm()


class TransferForm(Form):
    """What KV caches move over from prefill to decode workers."""

    gbytes_per_s: Annotated[float, Field(gt=0)] = Link().gbytes_per_s
    latency: Seconds = Link().latency_s
    shared: bool = True
    overlap: Annotated[float, Field(ge=0, le=1)] = 0.0

    def build(self) -> Link:
        """The link."""
        return self.make(Link)


class TopologyForm(Form):
    """How nodes stand in racks and rows, and what joins those."""

    nodes_per_rack: Count | None = None
    racks_per_row: Count | None = None
    rack_gbytes_per_s: Annotated[float, Field(gt=0)] | None = None
    row_gbytes_per_s: Annotated[float, Field(gt=0)] | None = None
    domain: Literal["Node", "Rack", "Row", "Cluster"] = "Cluster"

    def build(self) -> Topology:
        """The tree."""
        return self.make(Topology, domain=_LEVELS[self.domain])


class StartUpForm(Form):
    """The phases of a start."""

    schedule: Seconds = StartUp().schedule
    image: Seconds = StartUp().image
    weights: Seconds = StartUp().weights
    engine: Seconds = StartUp().engine
    warm_up: Seconds = StartUp().warm_up

    def build(self) -> StartUp:
        """The phases."""
        return self.make(StartUp)


class _FaultForm(Form):
    at: Seconds
    worker: Annotated[int, Field(ge=0)]


class CrashForm(_FaultForm):
    """A worker's engine dies."""

    kind: Literal["Crash"]

    def build(self) -> Fault:
        """The fault."""
        return self.make(Crash)


class _SpellForm(_FaultForm):
    until: Seconds

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.build()
        return self

    def build(self) -> Fault:
        """The fault."""
        raise TypeError(f"{type(self).__name__} is no fault of its own")


class SlowForm(_SpellForm):
    """Every pass takes `factor` times as long."""

    kind: Literal["Slow"]
    factor: Annotated[float, Field(gt=0)]

    def build(self) -> Fault:
        """The fault."""
        return self.make(Slow)


class ThrottleForm(_SpellForm):
    """The clock is held at a share of its maximum."""

    kind: Literal["Throttle"]
    clock: Share

    def build(self) -> Fault:
        """The fault."""
        return self.make(Throttle)


class PartitionForm(_SpellForm):
    """A worker cannot be reached, though it runs."""

    kind: Literal["Partition"]
    router: bool = True
    peers: bool = True
    peer: Annotated[int, Field(ge=0)] | None = None

    def build(self) -> Fault:
        """The fault."""
        return self.make(Partition)


class LostEventsForm(_SpellForm):
    """A worker's cache events do not reach the router."""

    kind: Literal["LostEvents"]
    replayed: bool = True

    def build(self) -> Fault:
        """The fault."""
        return self.make(LostEvents)


AnyFault = Annotated[CrashForm | SlowForm | ThrottleForm | PartitionForm | LostEventsForm, Field(discriminator="kind")]
