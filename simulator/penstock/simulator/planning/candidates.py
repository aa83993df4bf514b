"""Which plans there are: every way of filling nodes with pools of workers that fit the memory of their accelerators.

A worker stays within one node. Degrees are powers of two, as heads and layers divide; prefill and decode either share
the workers (together) or have workers of their own (apart). `enumerate_plans` fills the nodes, since more workers never
hold less; `sized_plans` takes as many as a given rate asks for, since fewer cost less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from penstock.core.fleet import Role
from penstock.core.models import Accelerator, LatencyProfile, ModelArchitecture, Parallelism, fit, resolve_profile
from penstock.core.models.pipeline import pipelined
from penstock.simulator.scenario import NodeGroup

__all__ = [
    "DECODE_BUDGET", "Cell", "Plan", "PlanPool", "cells_of", "enumerate_plans", "max_workers", "sized_plans",
    "whole_pass", "worker_profile",
]  # fmt: skip

BUDGETS = (512, 2048, 8192)
"""Token budgets of one pass that are tried where prompts are computed: Sarathi's strict and relaxed ones, vLLM's."""
DECODE_BUDGET = 2048
"""Of workers that only decode; a short prompt that stays with them fits."""
_DEGREES = (1, 2, 4, 8, 16, 32, 64)
_MOST_STAGES = 4


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One kind of worker: where it runs, how it is spread and what it does."""

    accelerator: str
    role: Role
    parallelism: Parallelism
    budget: int
    """Most tokens of one pass."""

    @property
    def accelerators(self) -> int:
        """Accelerators that one such worker holds."""
        return self.parallelism.accelerators

    @property
    def tokens_in_flight(self) -> int:
        """Most tokens computed in the time of one pass: a batch for each stage of the pipeline (`pipelined`)."""
        return self.budget if self.role is Role.PREFILL else self.budget * self.parallelism.pipeline


@dataclass(frozen=True, slots=True, order=True)
class PlanPool:
    """So many workers of one kind."""

    cell: Cell
    replicas: int

    @property
    def accelerators(self) -> int:
        """Accelerators that the pool holds."""
        return self.cell.accelerators * self.replicas

    def __str__(self) -> str:
        cell = self.cell
        degrees = "".join(
            f"{letter}{degree}"
            for letter, degree in (("TP", cell.parallelism.tensor), ("PP", cell.parallelism.pipeline),
                                   ("EP", cell.parallelism.expert))
            if degree > 1 or letter == "TP"
        )  # fmt: skip
        budget = "" if cell.role is Role.DECODE else f" budget {cell.budget}"
        return f"{self.replicas}x {cell.role.api_name} {cell.accelerator} {degrees}{budget}"


@dataclass(frozen=True, slots=True, order=True)
class Plan:
    """Pools that stand on the nodes together."""

    pools: tuple[PlanPool, ...]

    @property
    def apart(self) -> bool:
        """Whether prefill and decode have workers of their own."""
        return any(pool.cell.role is not Role.PREFILL_DECODE for pool in self.pools)

    @property
    def accelerators(self) -> int:
        """Accelerators held."""
        return sum(pool.accelerators for pool in self.pools)

    @property
    def workers(self) -> int:
        """Workers of all pools."""
        return sum(pool.replicas for pool in self.pools)

    def cost_per_hour(self, prices: dict[str, float]) -> float:
        """What its accelerators cost; `prices` by class, for one accelerator and hour."""
        return sum(pool.accelerators * prices[pool.cell.accelerator] for pool in self.pools)

    def __str__(self) -> str:
        return " + ".join(str(pool) for pool in self.pools)


@lru_cache(maxsize=4096)
def worker_profile(whole: LatencyProfile, stages: int, role: Role) -> LatencyProfile:
    """The pace of a worker of so many pipeline stages, from that of `whole` passes: by DistServe's law."""
    return pipelined(whole, stages, prefill_only=role is Role.PREFILL)


@lru_cache(maxsize=4096)
def whole_pass(model: ModelArchitecture, accelerator: Accelerator, parallelism: Parallelism) -> LatencyProfile:
    """One pass through all stages of a worker's pipeline, as the catalogue knows it."""
    flat = Parallelism(tensor=parallelism.tensor, data=parallelism.data, expert=parallelism.expert)
    return resolve_profile(model, accelerator, flat)


def cells_of(
    model: ModelArchitecture, group: NodeGroup, context: int, budgets: Sequence[int] = BUDGETS
) -> tuple[Cell, ...]:
    """Every kind of worker that fits a node of the group with sequences of `context` tokens, in a fixed order."""
    found = []
    for degrees in _degrees(model, group.accelerators):
        for role, budget in [*product((Role.PREFILL_DECODE, Role.PREFILL), budgets), (Role.DECODE, DECODE_BUDGET)]:
            cell = Cell(group.accelerator.name, role, degrees, budget)
            if fit(model, group.accelerator, degrees, context, max_batched_tokens=cell.tokens_in_flight).fits:
                found.append(cell)
    return tuple(found)


def _degrees(model: ModelArchitecture, most: int) -> Iterator[Parallelism]:
    for tensor, pipeline in product(_DEGREES, _DEGREES):
        if tensor * pipeline <= most and pipeline <= _MOST_STAGES:
            yield Parallelism(tensor=tensor, pipeline=pipeline)
            if model.experts is not None and tensor > 1:
                yield Parallelism(tensor=tensor, pipeline=pipeline, expert=tensor)


def enumerate_plans(groups: Sequence[NodeGroup], cells: Sequence[Cell]) -> Iterator[Plan]:
    """Every plan of these kinds of workers that leaves no room for one more; of each class one kind for each role, or
    nothing, since slow workers beside fast ones may do more harm than good."""
    for role in _TOGETHER, _APART:
        for chosen in product(*(_layouts(group, cells, role) for group in groups)):
            pools = tuple(pool for layout in chosen for pool in layout)
            if {pool.cell.role for pool in pools} == set(role):
                yield Plan(pools)


def sized_plans(
    groups: Sequence[NodeGroup], cells: Sequence[Cell], rates: Mapping[Cell, float], rate: float
) -> Iterator[Plan]:
    """Plans of about the size that `rate` asks for, of one kind of worker for each role: DistServe's way of scaling.

    `rates` are what one worker of each kind holds of its phase. A worker fewer and one more are offered as well:
    several together hold more than each for itself, and a pair of pools less than the weaker of both.
    """

    def counts(cell: Cell) -> range:
        need = math.ceil(rate / rates[cell]) if rates.get(cell) else 0
        most = max_workers(groups, [(cell, 0)], cell)
        return range(max(1, need - 1), min(need + 1, most) + 1) if need else range(0)

    for cell in cells:
        if cell.role is Role.PREFILL_DECODE:
            yield from (Plan((PlanPool(cell, count),)) for count in counts(cell))
    for prefill, decode in product(_kinds(cells, Role.PREFILL), _kinds(cells, Role.DECODE)):
        for count, other in product(counts(prefill), counts(decode)):
            if max_workers(groups, [(prefill, count)], decode) >= other:
                yield Plan((PlanPool(prefill, count), PlanPool(decode, other)))


def max_workers(groups: Sequence[NodeGroup], held: Sequence[tuple[Cell, int]], cell: Cell) -> int:
    """Workers of this kind that the nodes hold beside `held`; 0 too where those do not fit themselves."""
    group = next(group for group in groups if group.accelerator.name == cell.accelerator)
    mine = [(other.accelerators, count) for other, count in held if other.accelerator == cell.accelerator]
    return _room(group, mine, cell.accelerators)


Layout = tuple[PlanPool, ...]
_TOGETHER = (Role.PREFILL_DECODE,)
_APART = (Role.PREFILL, Role.DECODE)


def _layouts(group: NodeGroup, cells: Sequence[Cell], roles: tuple[Role, ...]) -> list[Layout]:
    """Ways of filling a group's nodes with workers of one role or of all of them, or of leaving them empty."""
    mine = [cell for cell in cells if cell.accelerator == group.accelerator.name and cell.role in roles]
    layouts: list[Layout] = [
        (PlanPool(cell, count),) for cell in mine if (count := _room(group, [], cell.accelerators))
    ]
    for prefill, decode in product(_kinds(mine, Role.PREFILL), _kinds(mine, Role.DECODE)):
        for count in range(1, _room(group, [], prefill.accelerators) + 1):
            other = _room(group, [(prefill.accelerators, count)], decode.accelerators)
            held = [(prefill.accelerators, count), (decode.accelerators, other)]
            if other and not _room(group, held, prefill.accelerators):
                layouts.append((PlanPool(prefill, count), PlanPool(decode, other)))
    return [*layouts, ()]


def _room(group: NodeGroup, held: Sequence[tuple[int, int]], size: int) -> int:
    """Workers of `size` accelerators that fit beside `held` (size, count), the largest placed first."""
    free = [group.accelerators] * group.nodes
    for each, count in sorted(held, reverse=True):
        for _ in range(count):
            node = next((n for n, left in enumerate(free) if left >= each), None)
            if node is None:
                return 0
            free[node] -= each
    return sum(left // size for left in free)


def _kinds(cells: Sequence[Cell], role: Role) -> list[Cell]:
    return [cell for cell in cells if cell.role is role]
