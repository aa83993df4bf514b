"""One plan tried at one rate by the twin: whether the objectives hold, and what it took."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from penstock.core.fleet import Role
from penstock.core.reports import Outcome, Verdict
from penstock.simulator.planning.bounds import fill_of
from penstock.simulator.planning.candidates import Plan, PlanPool, worker_profile
from penstock.simulator.planning.goal import Space, rate_at
from penstock.simulator.scenario import PoolSpec, Scenario
from penstock.simulator.twin import simulate

__all__ = ["Climb", "Trial", "climb", "scenario_of", "try_plan"]

_STRIDE = 8  # Steps of 1 %.
_POOL_NAMES = {Role.PREFILL_DECODE: "serve", Role.PREFILL: "prefill", Role.DECODE: "decode"}


@dataclass(frozen=True, slots=True)
class Trial:
    """What a run came to. Times in seconds, at the quantile that the attainment asks for; endless where too few
    requests got so far."""

    rate: float
    attainment: float
    holds: bool
    ttft_s: float
    tpot_s: float
    joules: float
    """Per request, idle accelerators included."""

    def share(self, ttft_s: float, tpot_s: float) -> float:
        """Share of the objectives used up, of the worse of both."""
        return max(self.ttft_s / ttft_s, self.tpot_s / tpot_s)


def scenario_of(space: Space, plan: Plan) -> Scenario:
    """The plan as a scenario of the twin; larger workers are placed first, so that they find whole nodes."""
    names: dict[PlanPool, str] = {}
    for pool in plan.pools:
        names[pool] = f"{_POOL_NAMES[pool.cell.role]}-{pool.cell.accelerator}"
    return Scenario(
        model=space.model,
        groups=space.groups,
        policy=space.policy,
        pools=tuple(
            _spec(space, names[pool], pool)
            for pool in sorted(plan.pools, key=lambda pool: pool.cell.accelerators, reverse=True)
        ),
        max_context=space.context,
        block_size=16,
        max_num_seqs=space.max_num_seqs,
        prefix_caching=False,
        ttft_s=space.objectives.ttft_s,
        tpot_s=space.objectives.tpot_s,
        transfer=space.transfer,
        first_token=space.first_token,
        split=space.split,
        scheduler=space.scheduler,
        max_in_flight=max(1024, len(space.sample)),
    )


def _spec(space: Space, name: str, pool: PlanPool) -> PoolSpec:
    cell = pool.cell
    profile = worker_profile(space.model, space.accelerator(cell.accelerator), cell.parallelism, cell.role)
    limit = cell.tokens_in_flight
    degrees = cell.parallelism
    return PoolSpec(
        name, cell.role, cell.accelerator, degrees, pool.replicas, max_num_batched_tokens=limit, profile=profile
    )


def try_plan(space: Space, plan: Plan, rate: float) -> Trial:
    """Play the sample at this rate."""
    result = simulate(scenario_of(space, plan), space.sample.at(rate))
    goal, total = space.objectives, len(space.sample)
    piped = any(pool.cell.parallelism.pipeline > 1 for pool in plan.pools)
    ttfts, tpots, met = [], [], 0
    for outcome in result.outcomes:
        fill = fill_of(space, plan, space.sample.prompts[outcome.index]) if piped else 0.0
        ttft, tpot = _latency(outcome, fill)
        ttfts.append(ttft)
        tpots.append(tpot)
        met += ttft <= goal.ttft_s and tpot <= goal.tpot_s
    need = math.ceil(goal.attainment * total - 1e-9)
    return Trial(
        rate,
        met / total,
        met >= need,
        sorted(ttfts)[need - 1],
        sorted(tpots)[need - 1],
        result.resources.total.joules / total,
    )


def _latency(outcome: Outcome, fill_s: float) -> tuple[float, float]:
    """(TTFT, TPOT) as the client has them; no TPOT where there is one token only."""
    if outcome.verdict is not Verdict.COMPLETED or outcome.ttft_s is None:
        return math.inf, math.inf
    return outcome.ttft_s + fill_s, outcome.tpot_s or 0.0


@dataclass(frozen=True, slots=True)
class Climb:
    """Where a search for the highest step ended."""

    step: int
    """The highest step found to hold; the floor when none above it did."""
    at: Trial
    """The run at that step, or one that failed."""
    runs: int


def climb(attempt: Callable[[float], Trial], floor: int, ceiling: int, guess: int | None = None) -> Climb:
    """The highest step above `floor` and up to `ceiling` that holds, found by strides that double and then halve.

    Without a `guess` the step after `floor` is tried first: most plans are worse than the best so far and are done with
    after that one run. Chance can make a higher step hold though a lower one does not; the search then ends at one of
    the crossings.
    """
    runs: dict[int, Trial] = {}

    def holds(step: int) -> bool:
        if step not in runs:
            runs[step] = attempt(rate_at(step))
        return runs[step].holds

    low, high, stride = floor, ceiling + 1, _STRIDE
    at = min(ceiling, floor + 1 if guess is None else max(floor + 1, guess))
    while low + 1 < high and holds(at):
        low, at, stride = at, min(at + stride, high - 1), 2 * stride
    high = at if low < at else high
    stride = _STRIDE
    while low == floor and low + 1 < high and guess is not None:
        at, stride = max(low + 1, high - stride), 2 * stride
        low, high = (at, high) if holds(at) else (low, at)
    while high - low > 1 and (low > floor or guess is not None):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return Climb(low, runs[low] if low in runs else runs[min(runs)], len(runs))
