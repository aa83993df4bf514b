"""What is simulated: nodes, model, policy and limits; and which workers that makes, or why it cannot be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.core.engine import EngineConfig
from penstock.core.models import (
    Accelerator,
    LatencyProfile,
    ModelArchitecture,
    Parallelism,
    find_accelerator,
    fit,
    known_accelerators,
    resolve_profile,
    smallest_fit,
    suggest_accelerator,
)
from penstock.core.traces import Trace
from penstock.router.decisions.policies import DEFAULT_POLICY
from penstock.router.decisions.retries import RetryLimits
from penstock.simulator.startup import StartUp

__all__ = [
    "ENDLESS", "Crash", "Impossible", "NodeGroup", "Scenario", "WorkerSpec", "parse_nodes", "plan_workers",
]  # fmt: skip

ENDLESS = 1 << 60
"""Tokens of a KV cache that never fills."""
DEFAULT_BLOCK_SIZE = 16
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


@dataclass(frozen=True, slots=True)
class Crash:
    """A worker's engine dies; its container restarts by itself."""

    at_s: float
    worker: int
    """Its number, from 0, in the order of node groups."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A cluster, what it runs and how. Times in seconds, sizes in tokens."""

    model: ModelArchitecture
    groups: tuple[NodeGroup, ...]
    policy: str = DEFAULT_POLICY
    parallelism: Parallelism | None = None
    """Of every worker; None: the fewest accelerators of each class that fit the model."""
    max_context: int | None = None
    """Longest sequence; None: the trace's longest, at most the model's own limit."""
    kv_capacity: int | None = None
    """KV cache of each worker; None: what its memory leaves; `ENDLESS`: never full."""
    block_size: int | None = None
    """None: the trace's prefix blocks where it has any, else 16."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
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
    readiness_delay_s: float = 1.0
    """How long the router goes on believing in a worker that crashed."""
    max_in_flight: int = 1024
    retries: RetryLimits = field(default_factory=RetryLimits)
    crashes: tuple[Crash, ...] = ()
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


def plan_workers(scenario: Scenario, trace: Trace) -> tuple[WorkerSpec, ...]:
    """Every worker that the nodes hold, in the order of groups and nodes. Raises `Impossible` when there is none."""
    context = _context(scenario, trace)
    block_size = _block_size(scenario, trace)
    specs: list[WorkerSpec] = []
    why: list[str] = []
    for number, group in enumerate(scenario.groups):
        made = _group_workers(scenario, group, number, context, block_size)
        if isinstance(made, str):
            why.append(made)
        else:
            specs += made
    if not specs:
        raise Impossible("; ".join(why) + f". {_what_fits(scenario.model, context)}")
    return tuple(specs)


def _group_workers(
    scenario: Scenario, group: NodeGroup, number: int, context: int, block_size: int
) -> list[WorkerSpec] | str:
    """The workers of one group, or why it holds none."""
    accelerator, budget = group.accelerator, scenario.max_num_batched_tokens
    degrees = scenario.parallelism or smallest_fit(
        scenario.model, accelerator, context, max_batched_tokens=budget, max_accelerators=group.accelerators
    )
    asked = degrees or Parallelism(tensor=_power_of_two(group.accelerators))
    memory = fit(scenario.model, accelerator, asked, context, max_batched_tokens=budget)
    if degrees is None or not memory.fits:
        return memory.reason
    if degrees.accelerators > group.accelerators:
        return f"a worker needs {degrees.accelerators} {accelerator.name}, a node has {group.accelerators}"
    config = EngineConfig(
        num_blocks=_num_blocks(scenario, memory.kv_capacity_tokens, context, block_size),
        block_size=block_size,
        max_num_batched_tokens=budget,
        max_num_seqs=scenario.max_num_seqs,
        max_model_len=context,
        enable_prefix_caching=scenario.prefix_caching,
    )
    profile = scenario.profile or resolve_profile(scenario.model, accelerator, degrees)
    return [
        WorkerSpec(f"g{number}-n{node}-w{place}", f"g{number}-n{node}", accelerator, degrees, config, profile)
        for node in range(group.nodes)
        for place in range(group.accelerators // degrees.accelerators)
    ]


def _num_blocks(scenario: Scenario, memory_tokens: int, context: int, block_size: int) -> int:
    tokens = memory_tokens if scenario.kv_capacity is None else scenario.kv_capacity
    if tokens < context:
        raise Impossible(f"a KV cache of {tokens} tokens cannot hold the longest sequence, {context}; give it more")
    return max(tokens // block_size, -(-context // block_size))


def _context(scenario: Scenario, trace: Trace) -> int:
    if scenario.max_context is not None:
        if not 2 <= scenario.max_context <= scenario.model.max_context:
            raise Impossible(
                f"a context of {scenario.max_context} tokens is not possible: {scenario.model.name} takes 2 to "
                f"{scenario.model.max_context}"
            )
        return scenario.max_context
    longest = max((r.input_tokens + r.output_tokens for r in trace.requests), default=2)
    return min(longest, scenario.model.max_context)


def _block_size(scenario: Scenario, trace: Trace) -> int:
    shared = any(request.prefix_blocks for request in trace.requests)
    size = scenario.block_size or (trace.block_tokens if shared else DEFAULT_BLOCK_SIZE)
    if size < 1 or (shared and trace.block_tokens % size):
        raise Impossible(
            f"a block size of {size} does not divide the trace's prefix blocks of {trace.block_tokens} tokens"
        )
    return size


def _what_fits(model: ModelArchitecture, context: int) -> str:
    found = [
        f"{accelerator.name} ({degrees})"
        for accelerator in known_accelerators()
        if (degrees := smallest_fit(model, accelerator, context)) is not None
    ]
    return f"What fits: {', '.join(found)}" if found else f"Nothing known fits {model.name} on one node"


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def accelerators(specs: Sequence[WorkerSpec]) -> int:
    """Accelerators that these workers hold."""
    return sum(spec.parallelism.accelerators for spec in specs)
