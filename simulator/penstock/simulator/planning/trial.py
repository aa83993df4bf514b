"""One plan tried at one rate by the twin: whether the objectives hold, and what it took."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from penstock.core.fleet import Role
from penstock.simulator.planning.bounds import fill_of, profile_of
from penstock.simulator.planning.candidates import Plan, PlanPool
from penstock.simulator.planning.goal import Space, rate_at
from penstock.simulator.planning.watch import GivenUp, Watch, latency
from penstock.simulator.scenario import PoolSpec, Scenario
from penstock.simulator.twin import Result, Twin

__all__ = ["Climb", "Trial", "climb", "judge_plan", "scenario_of", "try_plan"]

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
    whole: bool = True
    """Whether it was played to its end. If not, it failed, and `attainment` is of the requests decided by then."""

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
    profile = profile_of(space, cell)
    limit = cell.tokens_in_flight
    degrees = cell.parallelism
    return PoolSpec(
        name, cell.role, cell.accelerator, degrees, pool.replicas, max_num_batched_tokens=limit, profile=profile
    )


def try_plan(space: Space, plan: Plan, rate: float) -> Trial:
    """Play the sample at this rate to its end."""
    twin, _, fills = _set_up(space, plan, rate)
    return _trial(space, rate, twin.run(), fills)


def judge_plan(space: Space, plan: Plan, rate: float, *, hasty: bool = False) -> Trial:
    """Play the sample at this rate as long as the plan may still hold it: a whole `Trial` when it does, and one that
    says no more than how it stood when the run was given up when it does not. `hasty`: or as long as it seems to."""
    twin, arrivals, fills = _set_up(space, plan, rate)
    spare = len(space.sample) - space.objectives.needed(len(space.sample))
    Watch(twin, space.objectives, arrivals, space.sample.outputs, fills, spare, hasty=hasty)
    try:
        return _trial(space, rate, twin.run(), fills)
    except GivenUp as lost:
        return Trial(rate, lost.met / lost.decided, False, math.inf, math.inf, math.inf, whole=False)


def _set_up(space: Space, plan: Plan, rate: float) -> tuple[Twin, list[float], list[float]]:
    """A run, when its requests arrive, and what each one's first token waits for outside of the twin."""
    trace = space.sample.at(rate)
    piped = any(pool.cell.parallelism.pipeline > 1 for pool in plan.pools)
    prompts = space.sample.prompts
    fills = [fill_of(space, plan, prompt) for prompt in prompts] if piped else [0.0] * len(prompts)
    return Twin(scenario_of(space, plan), trace), [request.arrival_s for request in trace.requests], fills


def _trial(space: Space, rate: float, result: Result, fills: list[float]) -> Trial:
    goal, total = space.objectives, len(space.sample)
    need = goal.needed(total)
    pairs = [latency(outcome, fills[outcome.index]) for outcome in result.outcomes]
    met = sum(ttft <= goal.ttft_s and tpot <= goal.tpot_s for ttft, tpot in pairs)
    return Trial(
        rate,
        met / total,
        met >= need,
        sorted(ttft for ttft, _ in pairs)[need - 1],
        sorted(tpot for _, tpot in pairs)[need - 1],
        result.resources.total.joules / total,
    )


@dataclass(frozen=True, slots=True)
class Climb:
    """Where a search for the highest step ended."""

    step: int
    """The highest step found to hold; the floor when none above it did."""
    at: Trial
    """The run at that step, or one that failed."""
    runs: int


def climb(
    attempt: Callable[[float], Trial], floor: int, ceiling: int, guess: int | None = None, *, within: int = 1
) -> Climb:
    """The highest step above `floor` and up to `ceiling` that holds, found by strides that double and then halve, and
    told to so many steps as `within`.

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
    while high - low > within and (low > floor or guess is not None):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return Climb(low, runs[low] if low in runs else runs[min(runs)], len(runs))
