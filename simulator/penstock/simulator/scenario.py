"""What is simulated, as data: nodes, model, pools, policy, links and limits."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum

from penstock.core.engine import BatchScheduler, EngineConfig, SchedulingPolicy
from penstock.core.fleet import Role
from penstock.core.models import (
    Accelerator,
    LatencyProfile,
    ModelArchitecture,
    Parallelism,
    find_accelerator,
    known_accelerators,
    suggest_accelerator,
)
from penstock.router.decisions.policies import DEFAULT_POLICY
from penstock.router.decisions.retries import RetryLimits
from penstock.router.decisions.split import SplitLimits
from penstock.simulator.faults import Crash, Fault, Timeouts
from penstock.simulator.links import Link, Topology
from penstock.simulator.scaling_rules import Autoscaling, PowerDomain
from penstock.simulator.startup import StartUp

__all__ = [
    "ENDLESS", "Crash", "FirstToken", "HostMemory", "Impossible", "NodeGroup", "PoolSpec", "Scenario", "WorkerSpec",
    "parse_nodes",
]  # fmt: skip

ENDLESS = 1 << 60
"""Tokens of a KV cache that never fills."""
_GROUP = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]*)=(\d{1,6})x(\d{1,4})")


class Impossible(ValueError):
    """No such cluster can be; the message says why and what could."""


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes that are alike."""

    accelerator: Accelerator
    nodes: int
    accelerators: int
    """On each node."""


class FirstToken(StrEnum):
    """Whose first token the client sees where prefill and decode are apart."""

    DECODE = "Decode"
    """The decode worker's, which computes the prompt's last token again: as our gateway and vLLM do it."""
    PREFILL = "Prefill"
    """The prefill worker's, at once; the decode worker goes on with the second: as Splitwise and DistServe do it."""


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Workers of one role on one accelerator class with one parallelism; limits left out are the scenario's."""

    name: str
    role: Role
    accelerator: str
    """Class name; the pool's workers stand on the nodes of the groups of this class."""
    parallelism: Parallelism
    replicas: int
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    scheduler: BatchScheduler | None = None
    profile: LatencyProfile | None = None
    """None: the scenario's, or else the catalogue's."""

    def __post_init__(self) -> None:
        if not self.name:
            raise Impossible("a pool needs a name")
        if self.replicas < 0:
            raise Impossible(f"pool {self.name}: {self.replicas} replicas; give 0 or more")


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Where engines put the KV of sequences that have to make room, rather than computing it again."""

    tokens: int
    """Of KV cache, on the host of each worker; what finds no room there is computed again."""
    gbytes_per_s: float = 25.0
    """Between each accelerator and its host, one way: about what PCIe 4.0 x16 sustains of its 32."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise Impossible(f"host memory for {self.tokens} tokens holds nothing; give 1 or more, or none at all")
        if not 0 < self.gbytes_per_s < math.inf:
            raise Impossible(f"a link to the host of {self.gbytes_per_s} GB/s moves nothing; give more than 0")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A cluster, what it runs and how. Times in seconds, sizes in tokens."""

    model: ModelArchitecture
    groups: tuple[NodeGroup, ...]
    policy: str = DEFAULT_POLICY
    pools: tuple[PoolSpec, ...] = ()
    """Workers in the order they are placed, each on the first node with room; empty: both phases on every worker, and
    as many of them as the nodes hold."""
    parallelism: Parallelism | None = None
    """Without pools, of every worker; None: the fewest accelerators of each class that fit the model."""
    max_context: int | None = None
    """Longest sequence; None: the trace's longest, at most the model's own limit."""
    kv_capacity: int | None = None
    """KV cache of each worker; None: what its memory leaves; `ENDLESS`: never full."""
    block_size: int | None = None
    """None: the trace's prefix blocks where it has any, else 16."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    scheduler: BatchScheduler = BatchScheduler.STALL_FREE
    max_stalls: int | None = None
    """As `EngineConfig` has it, for every worker; so is the next."""
    mixed_pass_factor: float | None = None
    scheduling_policy: SchedulingPolicy = SchedulingPolicy.FCFS
    """Who leaves an engine's queue first: who came first, or whose priority number is lower."""
    host: HostMemory | None = None
    """Where preempted sequences wait; None: their KV is dropped and computed again, as vLLM does."""
    prefix_caching: bool = True
    profile: LatencyProfile | None = None
    """Of every worker, in place of the catalogue's."""
    ttft_s: float = 0.5
    """Objectives, which policies may heed and reports count by."""
    tpot_s: float = 0.04
    index_bytes: int = 1 << 30
    """Budget of the router's KV index."""
    cold: bool = False
    """Whether workers go through their start-up first, rather than being ready at 0 s."""
    start_up: StartUp = field(default_factory=StartUp)
    scrape_interval_s: float = 5.0
    """How often the router looks at each worker's own load; 0: never."""
    transfer: Link = field(default_factory=Link)
    """What KV caches move over from prefill to decode workers."""
    topology: Topology = field(default_factory=Topology)
    split: SplitLimits = field(default_factory=SplitLimits)
    """When a prompt is prefilled apart, and how long prefill workers hold its blocks."""
    first_token: FirstToken = FirstToken.DECODE
    readiness_delay_s: float = 1.0
    """How long the router goes on believing in a worker that crashed."""
    max_in_flight: int = 1024
    retries: RetryLimits = field(default_factory=RetryLimits)
    crashes: tuple[Crash, ...] = ()
    faults: tuple[Fault, ...] = ()
    """What goes wrong besides."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    autoscaling: Autoscaling | None = None
    """None: pools keep their replicas."""
    power: tuple[PowerDomain, ...] = ()
    power_interval_s: float = 1.0
    """Over which a domain's meter takes the mean."""
    seed: int = 0
    walk: bool = False
    """Take every decode step singly. Slower, with the same outcome; there to check that it is the same."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker as it will be."""

    name: str
    node: str
    accelerator: Accelerator
    parallelism: Parallelism
    config: EngineConfig
    profile: LatencyProfile
    role: Role = Role.PREFILL_DECODE
    pool: str = ""
    nodes: tuple[int, ...] = (0,)
    """Every node it stands on, from 0 in the order of groups: several where its pipeline spans them."""


def parse_nodes(text: str) -> tuple[NodeGroup, ...]:
    """Node groups from `a100-80g=2x8,h100-80g=1x8` (class = nodes x accelerators on each). Raises `Impossible`."""
    groups = []
    for part in text.split(","):
        match = _GROUP.fullmatch(part.strip())
        if match is None:
            raise Impossible(f"{part.strip()!r} is no node group; write class=nodesxaccelerators, as a100-80g=2x8")
        name, nodes, each = match[1], int(match[2]), int(match[3])
        accelerator = find_accelerator(name)
        if accelerator is None:
            near = suggest_accelerator(name) or tuple(known.name for known in known_accelerators())
            raise Impossible(f"accelerator class {name!r} is not in the catalogue; there is {', '.join(near)}")
        if nodes < 1 or each < 1:
            raise Impossible(f"{part.strip()!r} has no accelerator; give at least 1 node with 1")
        groups.append(NodeGroup(accelerator, nodes, each))
    return tuple(groups)
