"""Which workers a scenario makes, on which nodes; or why it cannot be, and what could."""

from __future__ import annotations

from dataclasses import dataclass, replace

from penstock.core.engine import BatchScheduler, EngineConfig, Preemption
from penstock.core.fleet import Role
from penstock.core.models import (
    Accelerator,
    ModelArchitecture,
    Parallelism,
    fit,
    known_accelerators,
    resolve_profile,
    smallest_fit,
)
from penstock.core.traces import Trace
from penstock.simulator.scenario import Impossible, NodeGroup, PoolSpec, Scenario, WorkerSpec
from penstock.simulator.workloads.source import Workload

__all__ = ["Layout", "Node", "Taken", "first_fit", "lay_out", "nodes_of", "plan_workers", "worker_of_pool"]

DEFAULT_BLOCK_SIZE = 16


@dataclass(slots=True)
class Node:
    """One node while workers are placed on it."""

    name: str
    number: int
    accelerator: Accelerator
    size: int
    """Accelerators, free or not."""
    free: int


Taken = tuple[tuple[Node, int], ...]
"""Accelerators of one worker, node by node."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The workers of every pool, and where they are."""

    nodes: list[Node]
    specs: tuple[WorkerSpec, ...]
    taken: tuple[Taken, ...]
    """By worker, in the order of `specs`."""
    context: int
    """Longest sequence."""
    block_size: int


def plan_workers(scenario: Scenario, trace: Trace | Workload) -> tuple[WorkerSpec, ...]:
    """Every worker: those of the pools, in their order; without pools all that the nodes hold, in the nodes' order.

    Raises `Impossible` when there is none, or not every one of a pool.
    """
    context = _context(scenario, trace)
    block_size = _block_size(scenario, trace)
    if scenario.pools:
        return lay_out(scenario, trace).specs
    specs: list[WorkerSpec] = []
    why: list[str] = []
    first = 0
    for number, group in enumerate(scenario.groups):
        made = _group_workers(scenario, group, number, first, context, block_size)
        first += group.nodes
        if isinstance(made, str):
            why.append(made)
        else:
            specs += made
    if not specs:
        raise Impossible("; ".join(why) + f". {_what_fits(scenario.model, context)}")
    return tuple(specs)


def _group_workers(
    scenario: Scenario, group: NodeGroup, number: int, first: int, context: int, block_size: int
) -> list[WorkerSpec] | str:
    """The workers of one group, or why it holds none. Its first node has the number `first`."""
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
    config = _swapping(_config(scenario, None, memory.kv_capacity_tokens, context, block_size), scenario, degrees)
    profile = scenario.profile or resolve_profile(scenario.model, accelerator, degrees)
    return [
        WorkerSpec(
            f"g{number}-n{node}-w{place}", f"g{number}-n{node}", accelerator, degrees, config, profile,
            nodes=(first + node,),
        )
        for node in range(group.nodes)
        for place in range(group.accelerators // degrees.accelerators)
    ]  # fmt: skip


def lay_out(scenario: Scenario, trace: Trace | Workload) -> Layout:
    """The workers of every pool, first fit. Raises `Impossible`."""
    _check_pools(scenario)
    context, block_size = _context(scenario, trace), _block_size(scenario, trace)
    nodes = nodes_of(scenario.groups)
    specs, taken = [], []
    for pool in scenario.pools:
        for replica in range(pool.replicas):
            places = _place(pool, replica, nodes)
            specs.append(worker_of_pool(scenario, pool, f"{pool.name}-{replica}", places, context, block_size))
            taken.append(places)
    return Layout(nodes, tuple(specs), tuple(taken), context, block_size)


def _check_pools(scenario: Scenario) -> None:
    names = [pool.name for pool in scenario.pools]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Impossible(f"two pools are called {twice[0]}; give each its own name")
    if not any(pool.replicas and pool.role is not Role.PREFILL for pool in scenario.pools):
        raise Impossible("no pool has a worker that answers; give one of role Decode or PrefillDecode some replicas")


def nodes_of(groups: tuple[NodeGroup, ...]) -> list[Node]:
    """Every node of these groups, empty, numbered in their order."""
    made: list[Node] = []
    for number, group in enumerate(groups):
        made += [
            Node(f"g{number}-n{node}", len(made) + node, group.accelerator, group.accelerators, group.accelerators)
            for node in range(group.nodes)
        ]
    return made


def _place(pool: PoolSpec, replica: int, nodes: list[Node]) -> Taken:
    """The accelerators of one worker of a pool, from the first nodes that have them. Raises `Impossible`."""
    degrees = pool.parallelism
    mine = [node for node in nodes if node.accelerator.name == pool.accelerator]
    if not mine:
        there = ", ".join(sorted({node.accelerator.name for node in nodes}))
        raise Impossible(f"pool {pool.name}: no node has {pool.accelerator}; there is {there}")
    taken = first_fit(mine, degrees)
    if taken is None:
        raise Impossible(
            f"pool {pool.name}: no room for worker {replica + 1} of {pool.replicas} ({degrees}): it needs "
            f"{degrees.accelerators} {pool.accelerator}{_on_one_node(degrees)}, and {_left(mine)}"
        )
    return taken


def worker_of_pool(
    scenario: Scenario, pool: PoolSpec, name: str, taken: Taken, context: int, block_size: int
) -> WorkerSpec:
    """A worker of a pool on these accelerators. Raises `Impossible` where the model does not fit them."""
    degrees, accelerator = pool.parallelism, taken[0][0].accelerator
    budget = pool.max_num_batched_tokens or scenario.max_num_batched_tokens
    memory = fit(scenario.model, accelerator, degrees, context, max_batched_tokens=budget)
    if not memory.fits:
        raise Impossible(f"pool {pool.name}: {memory.reason}")
    return WorkerSpec(
        name,
        taken[0][0].name,
        accelerator,
        degrees,
        _swapping(_config(scenario, pool, memory.kv_capacity_tokens, context, block_size), scenario, degrees),
        pool.profile or scenario.profile or resolve_profile(scenario.model, accelerator, degrees),
        pool.role,
        pool.name,
        tuple(node.number for node, _ in taken),
    )


def first_fit(nodes: list[Node], degrees: Parallelism) -> Taken | None:
    """Take a worker's accelerators: from one node, or stage by stage where its pipeline is larger than any node."""
    for node in nodes:
        if node.free >= degrees.accelerators:
            node.free -= degrees.accelerators
            return ((node, degrees.accelerators),)
    if degrees.pipeline == 1:
        return None
    stage, missing, taken = degrees.accelerators // degrees.pipeline, degrees.pipeline, []
    for node in nodes:
        stages = min(node.free // stage, missing)
        if stages:
            taken.append((node, stages * stage))
            missing -= stages
    if missing:
        return None
    for node, count in taken:
        node.free -= count
    return tuple(taken)


def _on_one_node(degrees: Parallelism) -> str:
    return " on one node" if degrees.pipeline == 1 else ""


def _left(nodes: list[Node]) -> str:
    return f"{sum(node.free for node in nodes)} are left, at most {max(node.free for node in nodes)} on one node"


def _config(
    scenario: Scenario, pool: PoolSpec | None, memory_tokens: int, context: int, block_size: int
) -> EngineConfig:
    """The limits of an engine: the pool's where it has its own, else the scenario's."""
    own = pool or PoolSpec("every worker", Role.PREFILL_DECODE, "", Parallelism(), 0)
    scheduler = own.scheduler or scenario.scheduler
    return EngineConfig(
        num_blocks=_num_blocks(scenario, memory_tokens, context, block_size),
        block_size=block_size,
        max_num_batched_tokens=own.max_num_batched_tokens or scenario.max_num_batched_tokens,
        max_num_seqs=own.max_num_seqs or scenario.max_num_seqs,
        max_model_len=context,
        enable_prefix_caching=scenario.prefix_caching,
        policy=scenario.scheduling_policy,
        scheduler=scheduler,
        max_stalls=scenario.max_stalls if scheduler is BatchScheduler.PREFILL_FIRST else None,
        mixed_pass_factor=scenario.mixed_pass_factor,
    )


def _swapping(config: EngineConfig, scenario: Scenario, degrees: Parallelism) -> EngineConfig:
    """With host memory, where there is some. Every accelerator copies its share of a block over a link of its own."""
    host = scenario.host
    if host is None:
        return config
    if host.tokens < config.block_size:
        raise Impossible(
            f"host memory for {host.tokens} tokens holds no block of {config.block_size}; give it more, or none"
        )
    block = scenario.model.kv_bytes_per_token() * config.block_size
    return replace(
        config,
        preemption=Preemption.SWAP,
        num_host_blocks=host.tokens // config.block_size,
        swap_ms_per_block=block / (host.gbytes_per_s * 1e9 * degrees.accelerators) * 1e3,
    )


def _num_blocks(scenario: Scenario, memory_tokens: int, context: int, block_size: int) -> int:
    tokens = memory_tokens if scenario.kv_capacity is None else scenario.kv_capacity
    if tokens < context:
        raise Impossible(f"a KV cache of {tokens} tokens cannot hold the longest sequence, {context}; give it more")
    return max(tokens // block_size, -(-context // block_size))


def _context(scenario: Scenario, trace: Trace | Workload) -> int:
    if scenario.max_context is not None:
        if not 2 <= scenario.max_context <= scenario.model.max_context:
            raise Impossible(
                f"a context of {scenario.max_context} tokens is not possible: {scenario.model.name} takes 2 to "
                f"{scenario.model.max_context}"
            )
        return scenario.max_context
    return min(max(trace.longest_tokens, 2), scenario.model.max_context)


def _block_size(scenario: Scenario, trace: Trace | Workload) -> int:
    shared = trace.shares_prefixes
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
