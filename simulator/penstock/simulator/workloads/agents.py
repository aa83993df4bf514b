"""Agents: calls that wait for calls. A task plans, fans out into calls at one time, and joins what they found; then it
may go on with another round.

A call arrives when the last of those it waits for was answered and its tool has run, so a slow cluster is asked later:
the workload is a closed loop. What a task's calls have in common, their prompts begin with; a join's prompt holds what
its parents wrote.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import numpy.typing as npt
from penstock.core.traces import TraceRequest
from penstock.simulator.workloads.source import Numbered

__all__ = ["AgentShape", "Agents", "Call", "agents"]

_SALT = 0x616774
_LONGEST = 8


@dataclass(frozen=True, slots=True)
class AgentShape:
    """What tasks are like. Means of geometric (rounds, fan-out) and log-normal (tokens, seconds) spreads."""

    rounds: float = 2.0
    """Of fan-out and join, after the first call."""
    fan_out: float = 3.0
    """Calls that go out together in a round."""
    input_tokens: float = 400.0
    """New in each call."""
    output_tokens: float = 150.0
    tool_s: float = 1.0
    """Between the last answer that a call waits for and the call."""
    sigma: float = 0.6
    system_tokens: int = 1024
    """Of the agents' instructions, with which every prompt begins."""
    block_tokens: int = 64
    max_context: int = 32_768

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name in ("system_tokens", "sigma", "tool_s", "rounds") else 1
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"agents: {name} is {value}; give at least {least}")
        if self.system_tokens + self.longest_call > self.max_context:
            raise ValueError(
                f"agents: max_context is {self.max_context}; a first call can take "
                f"{self.system_tokens + self.longest_call:.0f} tokens, give more"
            )

    @property
    def longest_call(self) -> float:
        """Tokens that a call adds at most: draws beyond eight times their mean are cut."""
        return _LONGEST * (self.input_tokens + self.output_tokens)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a task."""

    request: TraceRequest
    """Its arrival counts from the end of what it waits for; from 0 s for a task's first call."""
    parents: tuple[int, ...]
    """Numbers of the calls it waits for."""


@dataclass(slots=True)
class Agents:
    """A workload of tasks. A call whose parent was not completed never comes, nor does what waits for it."""

    calls: tuple[Call, ...]
    block_tokens: int = 64
    _children: dict[int, list[int]] = field(default_factory=dict, repr=False)
    _waiting: dict[int, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for number, call in enumerate(self.calls):
            for parent in call.parents:
                if not 0 <= parent < number:
                    raise ValueError(f"call {number} waits for call {parent}; only earlier ones can be waited for")
                self._children.setdefault(parent, []).append(number)

    @property
    def total(self) -> int:
        """As in `Workload`."""
        return len(self.calls)

    @property
    def longest_tokens(self) -> int:
        """As in `Workload`."""
        return max((call.request.input_tokens + call.request.output_tokens for call in self.calls), default=0)

    @property
    def shares_prefixes(self) -> bool:
        """As in `Workload`."""
        return any(call.request.prefix_blocks for call in self.calls)

    def opening(self) -> Iterator[Numbered]:
        """The first calls of all tasks; a run begins with it."""
        self._waiting = {number: len(call.parents) for number, call in enumerate(self.calls) if call.parents}
        firsts = [(number, call.request) for number, call in enumerate(self.calls) if not call.parents]
        return iter(sorted(firsts, key=lambda first: first[1].arrival_s))

    def after(self, number: int, now: float, completed: bool) -> Iterable[Numbered]:
        """The calls that waited for this one last."""
        if not completed:
            return ()
        return [self._go(child, now) for child in self._children.get(number, ()) if self._free(child)]

    def _free(self, number: int) -> bool:
        self._waiting[number] -= 1
        return self._waiting[number] == 0

    def _go(self, number: int, now: float) -> Numbered:
        request = self.calls[number].request
        return number, replace(request, arrival_s=now + request.arrival_s)


def agents(starts: npt.NDArray[np.float64], shape: AgentShape | None = None, seed: int = 0) -> Agents:
    """Tasks that begin at `starts` (seconds). The same seed makes the same calls."""
    shape = shape or AgentShape()
    rng = np.random.default_rng((seed, _SALT))
    names = iter(range(1 << 32, 1 << 62))
    calls: list[Call] = []
    for start in starts:
        _Task(shape, rng, names, calls).write(float(start))
    return Agents(tuple(calls), shape.block_tokens)


class _Task:
    """Writes the calls of one task behind those that are there."""

    def __init__(self, shape: AgentShape, rng: np.random.Generator, names: Iterator[int], calls: list[Call]) -> None:
        self._shape, self._rng, self._names, self._calls = shape, rng, names, calls

    def write(self, start: float) -> None:
        shape = self._shape
        system = tuple(range(shape.system_tokens // shape.block_tokens))
        last = self._call(start, (), shape.system_tokens, system)
        for _ in range(int(self._rng.geometric(1.0 / (shape.rounds + 1.0))) - 1):
            joined = self._round(last)
            if joined is None:
                return
            last = joined

    def _round(self, root: int) -> int | None:
        """Fan out from a call and join again: the number of the join, or None where the context is full."""
        before = self._calls[root].request
        common = before.input_tokens + before.output_tokens
        if self._full(common):
            return None
        # All of them begin with what was said and answered so far.
        stem = before.prefix_blocks + self._fresh(common - len(before.prefix_blocks) * self._shape.block_tokens)
        width = int(self._rng.geometric(1.0 / self._shape.fan_out))
        branches = [self._call(self._tool(), (root,), common, stem) for _ in range(width)]
        found = common + sum(self._calls[branch].request.output_tokens for branch in branches)
        if self._full(found):
            return None
        return self._call(self._tool(), tuple(branches), found, stem)

    def _call(self, at: float, parents: tuple[int, ...], held: int, blocks: tuple[int, ...]) -> int:
        """A call whose prompt begins with `held` tokens, the first of which `blocks` name; its number."""
        shape = self._shape
        tokens = held + self._spread(shape.input_tokens)
        output = self._spread(shape.output_tokens)
        own = self._fresh(tokens - len(blocks) * shape.block_tokens)
        self._calls.append(Call(TraceRequest(at, tokens, output, blocks + own), parents))
        return len(self._calls) - 1

    def _fresh(self, tokens: int) -> tuple[int, ...]:
        """Names for the whole blocks of so many tokens; one that is not full yet has another content each time."""
        return tuple(next(self._names) for _ in range(tokens // self._shape.block_tokens))

    def _full(self, tokens: int) -> bool:
        """Whether a call on top of so many tokens could be over the context."""
        return tokens + self._shape.longest_call > self._shape.max_context

    def _tool(self) -> float:
        shape = self._shape
        return (
            float(self._rng.lognormal(math.log(shape.tool_s) - shape.sigma**2 / 2, shape.sigma))
            if shape.tool_s
            else 0.0
        )

    def _spread(self, mean: float) -> int:
        sigma = self._shape.sigma
        drawn = self._rng.lognormal(math.log(mean) - sigma**2 / 2, sigma)
        return max(1, min(round(drawn), round(_LONGEST * mean)))
