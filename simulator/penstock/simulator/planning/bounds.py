"""What no schedule could do: the most that a plan can hold, from its workers' pace alone, without simulating it.

A plan holds a rate when a share of all requests meets the objectives, so these must at least be *finished* in time:
request i by its arrival + TTFT + (outputs - 1) x TPOT, its prefill by arrival + TTFT. For each instant the work of the
requests that are due by then, less what may be missed (the largest are), must fit into the time that workers have had
until then (the demand bound of schedulability analysis). The work of a request is the least it can cost:

    prefill >= b*T + c*S + a*T/budget           a pass has at most `budget` tokens and costs `a` however many
    decode  >= (b + floor/B)*n + c*context      a step reads the weights once for at most B sequences

A mixed pass reads the weights for both kinds at once, so workers that do both are charged decode's growing part plus
the larger of all prefill and all floors. Where roles are apart, prompts may still be prefilled by decode workers (short
ones are): what prefill workers cannot do in time is charged to them. A plan of one role only is taken to be given the
other phase for nothing. Classes of different pace are compared request by request at their best, so that no assignment
of requests to classes beats the bound.

`Bounds.rate` is therefore never below what the twin finds, whatever the router's policy; tests hold it to that. It is
the reason why a plan may be dropped unseen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from penstock.core.fleet import Role
from penstock.core.models import LatencyProfile, fit
from penstock.core.models.pipeline import fill_ms
from penstock.simulator.planning.candidates import Cell, Plan, whole_pass, worker_profile
from penstock.simulator.planning.goal import Space, rate_at, step_below

__all__ = ["Bounds", "fill_of", "kv_tokens", "profile_of", "whole_of"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_INSTANTS = 12  # At which demand is held against supply; more make the bound tighter and dearer.
_MOST = 1e6
_SLACK = 1.0 + 1e-9  # Sums in another order than the twin's differ by rounding.


@dataclass(frozen=True, slots=True)
class _Work:
    """Least worker-seconds of each request on one kind of worker."""

    prefill: Array
    grows: Array
    """Of decoding, what each sequence adds."""
    floors: Array
    """Of decoding, its share of reading the weights."""

    def of(self, some: Mask) -> _Work:
        """Of these requests only."""
        return _Work(self.prefill[some], self.grows[some], self.floors[some])

    def together(self) -> tuple[Array, Array]:
        """Two demands of a worker that does both, each of which must fit."""
        return self.grows + self.prefill, self.grows + self.floors


class Bounds:
    """The bounds of every plan of one space; what a kind of worker costs is worked out once."""

    def __init__(self, space: Space) -> None:
        self._space = space
        sample = space.sample
        self._prompts = np.array(sample.prompts, dtype=np.float64)
        self._outputs = np.array(sample.outputs, dtype=np.float64)
        self._times = np.array(sample.times)
        self._works: dict[Cell, _Work] = {}
        goal = space.objectives
        self._due_first = np.full(len(sample), goal.ttft_s)
        self._due_last = goal.ttft_s + np.maximum(self._outputs - 1.0, 0.0) * goal.tpot_s
        self._spare = len(sample) - int(np.ceil(goal.attainment * len(sample) - 1e-9))

    def rate(self, plan: Plan) -> float:
        """Requests a second that the plan cannot exceed; 0 when it cannot meet the objectives at any rate."""
        possible = self.possible(plan)
        if len(possible) - int(possible.sum()) > self._spare:
            return 0.0
        low, high = 0, step_below(_MOST)
        if self._fits(plan, possible, rate_at(high)):
            return _MOST
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(plan, possible, rate_at(middle)) else (low, middle)
        return rate_at(high)

    def latency(self, plan: Plan) -> float:
        """The least share of the objectives that the plan uses up, of the worse of TTFT and TPOT, at the attainment's
        quantile: what an idle plan would need."""
        goal, keep = self._space.objectives, len(self._times) - self._spare - 1
        shares = (np.sort(self._ttft(plan))[keep] / goal.ttft_s, np.sort(self._tpot(plan))[keep] / goal.tpot_s)
        return float(max(shares)) / _SLACK

    def joules(self, plan: Plan, rate: float) -> float:
        """The least energy per request: all accelerators idle from the first arrival to the last."""
        watts = sum(
            pool.accelerators * self._space.accelerator(pool.cell.accelerator).idle_watts for pool in plan.pools
        )
        return float(watts * self._times[-1] / rate / len(self._times))

    def possible(self, plan: Plan) -> Mask:
        """Which requests an idle plan serves within the objectives."""
        goal = self._space.objectives
        found: Mask = (self._ttft(plan) <= goal.ttft_s * _SLACK) & (self._tpot(plan) <= goal.tpot_s * _SLACK)
        return found

    def seconds(self, cell: Cell) -> Array:
        """Least worker-seconds of each request, of the phases that this kind of worker has."""
        work = self._work(cell)
        phases = {Role.PREFILL: (work.prefill,), Role.DECODE: (work.grows, work.floors)}
        found: Array = np.sum(phases.get(cell.role, (work.prefill, work.grows, work.floors)), axis=0)
        return found

    def _ttft(self, plan: Plan) -> Array:
        """Least seconds to the first token of each prompt when nothing else runs. Decode workers keep short prompts, so
        every pool may be the one that computes it."""
        pace = [np.asarray(profile_of(self._space, pool.cell).prefill_ms(self._prompts)) for pool in plan.pools]
        fill = np.array([fill_of(self._space, plan, prompt) for prompt in self._space.sample.prompts])
        least: Array = np.min(pace, axis=0) / 1e3 + fill
        return least

    def _tpot(self, plan: Plan) -> Array:
        """Least seconds per further token of each request when nothing else runs; 0 where there is none."""
        context = self._prompts + np.maximum(self._outputs - 2.0, 0.0) / 2.0
        steps = []
        for pool in plan.pools:
            if pool.cell.role is not Role.PREFILL:
                profile = profile_of(self._space, pool.cell)
                steps.append(float(profile.floor_ms(1)) + profile.decode[1] + profile.decode[2] * context)
        if not steps:
            return np.zeros(len(self._times))
        least: Array = np.where(self._outputs > 1, np.min(steps, axis=0), 0.0) / 1e3
        return least

    def _fits(self, plan: Plan, possible: Mask, rate: float) -> bool:
        """Whether the work that is due can be done in time at this rate, as far as these sums tell."""
        arrivals, spare = self._times / rate, self._spare - int((~possible).sum())
        due = _Due((arrivals + self._due_first)[possible], (arrivals + self._due_last)[possible], spare)
        everyone = [(pool.replicas, self._work(pool.cell).of(possible)) for pool in plan.pools]
        parted = list(zip(plan.pools, everyone, strict=True))
        decodes = [held for pool, held in parted if pool.cell.role is Role.DECODE]
        prefills = [held for pool, held in parted if pool.cell.role is Role.PREFILL]
        if len(decodes) < len(everyone) and not due.fits(due.first, [(n, w.prefill) for n, w in everyone]):
            return False
        if not plan.apart:
            return all(due.fits(due.last, [(n, w.together()[k]) for n, w in everyone]) for k in (0, 1))
        if decodes and not due.fits(due.last, [(n, w.grows + w.floors) for n, w in decodes]):
            return False
        return not (decodes and prefills) or due.fits_apart(prefills, decodes)

    def _work(self, cell: Cell) -> _Work:
        if cell not in self._works:
            self._works[cell] = self._measure(cell)
        return self._works[cell]

    def _measure(self, cell: Cell) -> _Work:
        profile, space = profile_of(self._space, cell), self._space
        base, token, square = profile.prefill
        prefill = base * self._prompts / cell.tokens_in_flight + token * self._prompts + square * self._prompts**2
        steps = np.maximum(self._outputs - 1.0, 0.0)
        context = steps * self._prompts + steps * np.maximum(steps - 1.0, 0.0) / 2.0
        grows = profile.decode[1] * steps + profile.decode[2] * context
        memory = kv_tokens(space, cell)
        most = min(space.max_num_seqs, cell.tokens_in_flight, max(1, memory // int(self._prompts.min())))
        return _Work(prefill / 1e3, grows / 1e3, steps * float(profile.floor_ms(most)) / most / 1e3)


@dataclass(frozen=True, slots=True)
class _Due:
    """When the requests of a run must have their first and their last token; so many of them may miss it."""

    first: Array
    last: Array
    spare: int

    def fits(self, due: Array, works: list[tuple[int, Array]]) -> bool:
        """Whether workers (count, seconds of each request) get done by each instant what is due by it."""
        reference = works[0][1]
        supply = sum(count * _ratio(reference, work) for count, work in works)
        return all(self._demand(due, reference, at) <= supply * at * _SLACK for at in self._instants(due))

    def fits_apart(self, prefills: list[tuple[int, _Work]], decodes: list[tuple[int, _Work]]) -> bool:
        """Whether decode workers have time for what they must decode and for the prompts that prefill workers cannot
        compute in time."""
        prompt, own = prefills[0][1].prefill, decodes[0][1]
        before = sum(count * _ratio(prompt, work.prefill) for count, work in prefills)
        behind = sum(
            count * max(_ratio(own.grows, work.grows), _ratio(own.prefill, work.prefill)) for count, work in decodes
        )
        dearer = 1.0 / _ratio(prompt, own.prefill)
        for at in self._instants(self.last):
            left = max(0.0, self._demand(self.last, prompt, at) - before * at)
            if left * dearer + self._demand(self.last, own.grows, at) > behind * at * _SLACK:
                return False
        return True

    def _demand(self, due: Array, work: Array, at: float) -> float:
        """Least work of what is due by `at`: the largest that may miss it do."""
        asked = np.sort(work[due <= at])
        return float(asked[: max(0, len(asked) - self.spare)].sum())

    def _instants(self, due: Array) -> list[float]:
        return [float(at) for at in np.quantile(due, np.linspace(0.25, 1.0, _INSTANTS))]


def _ratio(reference: Array, work: Array) -> float:
    """How many times as fast these workers are as the reference, on the request where they are best."""
    some = reference > 0
    if not some.any():
        return 1.0
    with np.errstate(divide="ignore"):
        return float((reference[some] / work[some]).max())


def fill_of(space: Space, plan: Plan, prompt: int) -> float:
    """Seconds that a prompt's first token waits for later stages of a pipeline, on the prefill pool with the fewest."""
    waits = [
        fill_ms(whole_of(space, pool.cell), pool.cell.parallelism.pipeline, prompt, pool.cell.budget)
        for pool in plan.pools
        if pool.cell.role is not Role.DECODE
    ]
    return min(waits, default=0.0) / 1e3


def whole_of(space: Space, cell: Cell) -> LatencyProfile:
    """One pass through all stages of one such worker: as the space knows it, or else the catalogue."""
    for accelerator, role, tensor, profile in space.paces:
        if (accelerator, role, tensor) == (cell.accelerator, cell.role, cell.parallelism.tensor):
            return profile
    return whole_pass(space.model, space.accelerator(cell.accelerator), cell.parallelism)


def profile_of(space: Space, cell: Cell) -> LatencyProfile:
    """The pace of one such worker."""
    return worker_profile(whole_of(space, cell), cell.parallelism.pipeline, cell.role)


def kv_tokens(space: Space, cell: Cell) -> int:
    """Tokens of KV cache that one such worker holds."""
    accelerator = space.accelerator(cell.accelerator)
    memory = fit(space.model, accelerator, cell.parallelism, space.context, max_batched_tokens=cell.tokens_in_flight)
    return memory.kv_capacity_tokens
