"""What a plan is wanted for, and the requests it is tried on: everything of a search that is not the plan itself.

All plans see the same requests. A sample has lengths drawn together from a trace and Poisson arrivals of rate 1; a
higher rate plays the same arrivals faster. So two plans, or two rates, never differ by the luck of the draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from penstock.core.engine import BatchScheduler
from penstock.core.fleet import Role
from penstock.core.models import Accelerator, LatencyProfile, ModelArchitecture
from penstock.core.traces import Trace, TraceRequest
from penstock.router.decisions.policies import DEFAULT_POLICY
from penstock.router.decisions.split import SplitLimits
from penstock.simulator.links import Link
from penstock.simulator.scenario import FirstToken, Impossible, NodeGroup
from penstock.simulator.workloads import like

__all__ = [
    "Goal", "Objectives", "Rank", "Sample", "Space", "answers", "draw_sample", "lasting", "rate_at", "step_below",
]  # fmt: skip

Array = npt.NDArray[np.float64]

GRID = 1.01
"""Ratio of neighbouring rates: goodput is told to 1 %."""
_LEAST_RATE = 1e-3
_SHORTEST, _LIVES = 300, 2.5  # Requests of a run at least (DistServe's search has 300), and how long it lasts.
BLOCK = 16


class Rank(StrEnum):
    """What makes a plan better than another."""

    GOODPUT = "goodput"
    """The highest rate at which the objectives hold."""
    LATENCY = "latency"
    """At a given rate, the smallest share of the objectives used up, of the worse of TTFT and TPOT."""
    COST = "cost"
    """At a given rate, the least money per hour."""
    ENERGY = "energy"
    """At a given rate, the fewest joules per request."""


@dataclass(frozen=True, slots=True)
class Objectives:
    """The latency owed, in seconds, to this share of all requests."""

    ttft_s: float = 0.5
    tpot_s: float = 0.04
    attainment: float = 0.9

    def __post_init__(self) -> None:
        if not (self.ttft_s > 0 and self.tpot_s > 0):
            raise ValueError(f"objectives of {self.ttft_s} s and {self.tpot_s} s cannot be met; give more than 0")
        if not 0 < self.attainment <= 1:
            raise ValueError(f"an attainment of {self.attainment} is no share; give more than 0 and at most 1")

    def needed(self, requests: int) -> int:
        """How many of so many requests must meet both."""
        return math.ceil(self.attainment * requests - 1e-9)


@dataclass(frozen=True, slots=True)
class Goal:
    """What the best plan is best at."""

    objectives: Objectives
    rank: Rank = Rank.GOODPUT
    rate: float | None = None
    """Requests a second to hold; goodput needs none, everything else does."""

    def __post_init__(self) -> None:
        if self.rank is not Rank.GOODPUT and not (self.rate is not None and math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"to rank by {self.rank} takes a rate above 0 to compare at, not {self.rate}")


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests with arrivals of rate 1."""

    prompts: tuple[int, ...]
    outputs: tuple[int, ...]
    times: tuple[float, ...]
    """Seconds at one request a second, sorted."""

    def __len__(self) -> int:
        return len(self.times)

    @property
    def context(self) -> int:
        """Tokens of the longest request."""
        return max(prompt + output for prompt, output in zip(self.prompts, self.outputs, strict=True))

    def first(self, requests: int) -> Sample:
        """The first so many of the requests."""
        return Sample(self.prompts[:requests], self.outputs[:requests], self.times[:requests])

    def only(self, some: Sequence[bool]) -> Sample:
        """These requests only, at the same rate."""
        kept = [number for number, keep in enumerate(some) if keep]
        prompts, outputs = (tuple(lengths[number] for number in kept) for lengths in (self.prompts, self.outputs))
        return Sample(prompts, outputs, self.times[: len(kept)])

    def at(self, rate: float) -> Trace:
        """The same requests at another rate."""
        rows = zip(self.times, self.prompts, self.outputs, strict=True)
        return Trace(tuple(TraceRequest(time / rate, prompt, output) for time, prompt, output in rows), BLOCK)


def draw_sample(trace: Trace, requests: int, seed: int = 0) -> Sample:
    """So many requests with lengths like the trace's. Prefixes are left out: no plan may count on hits that only one
    order of requests gives. Raises ValueError for an empty trace or no requests."""
    if requests < 1:
        raise ValueError(f"{requests} requests show nothing; give at least 1")
    times = np.cumsum(np.random.default_rng((seed, 0x706C616E)).exponential(1.0, requests))
    drawn = like(trace, times, seed).requests
    return Sample(
        tuple(r.input_tokens for r in drawn), tuple(r.output_tokens for r in drawn), tuple(float(t) for t in times)
    )


@dataclass(frozen=True, slots=True)
class Space:
    """Where plans stand and what they serve. Every field is plain data, so that other processes can be given it."""

    model: ModelArchitecture
    groups: tuple[NodeGroup, ...]
    sample: Sample
    objectives: Objectives
    context: int
    """Longest sequence that workers must take, in tokens."""
    max_num_seqs: int = 256
    policy: str = DEFAULT_POLICY
    transfer: Link = field(default_factory=Link)
    first_token: FirstToken = FirstToken.DECODE
    split: SplitLimits = field(default_factory=SplitLimits)
    scheduler: BatchScheduler = BatchScheduler.STALL_FREE
    paces: tuple[tuple[str, Role, int, LatencyProfile], ...] = ()
    """Of whole passes, where the catalogue is not to be asked: (accelerator class, role, tensor degree, pace)."""

    def __post_init__(self) -> None:
        names = [group.accelerator.name for group in self.groups]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise Impossible(f"accelerator class {twice[0]} is given twice; give its nodes in one group")
        if self.sample.context > self.context:
            raise Impossible(
                f"the longest request has {self.sample.context} tokens, more than the context of {self.context}"
            )

    def accelerator(self, name: str) -> Accelerator:
        """The class of this name among the nodes'."""
        return next(group.accelerator for group in self.groups if group.accelerator.name == name)

    @property
    def prices(self) -> dict[str, float]:
        """Money per accelerator and hour by class."""
        return {group.accelerator.name: group.accelerator.price_per_hour for group in self.groups}


def lasting(space: Space, rate: float) -> int:
    """Requests that a run needs at this rate, so that it outlasts several lives of a request: in a shorter one batches
    never grow to what they come to in the end, and decoding looks cheaper than it is."""
    return max(_SHORTEST, math.ceil(_LIVES * rate * _life_s(space)))


def answers(space: Space, rate: float) -> float:
    """How many lives of a request a run of the whole sample lasts at this rate; `lasting` makes it enough of them."""
    return len(space.sample) / (rate * _life_s(space))


def _life_s(space: Space) -> float:
    return space.objectives.tpot_s * float(np.mean(space.sample.outputs))


def rate_at(step: int) -> float:
    """The rate of a step of the grid on which goodput is searched, in requests a second."""
    return float(_LEAST_RATE * GRID**step)


def step_below(rate: float) -> int:
    """The highest step whose rate is at most `rate`; -1 when there is none."""
    if rate < _LEAST_RATE:
        return -1
    return math.floor(math.log(rate / _LEAST_RATE) / math.log(GRID) + 1e-9)
