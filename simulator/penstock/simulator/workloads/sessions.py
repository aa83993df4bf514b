"""Conversations: each turn's prompt is all that was said before and something new, after a shared system prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator.workloads.agents import Agents, Call

__all__ = ["SessionShape", "closed_sessions", "sessions"]

_SALT = 0x736573


@dataclass(frozen=True, slots=True)
class SessionShape:
    """What conversations are like. Means of geometric (turns) and log-normal (tokens, seconds) spreads."""

    turns: float = 4.0
    input_tokens: float = 120.0
    """New in each turn."""
    output_tokens: float = 200.0
    think_s: float = 15.0
    """Between an answer's start and the next turn; the answer's own time is not known to a workload."""
    sigma: float = 0.8
    """Of the log-normal spreads."""
    system_prompts: int = 8
    system_tokens: int = 512
    block_tokens: int = 64
    max_context: int = 32_768
    """A conversation ends before its next turn would be longer."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name in ("system_tokens", "sigma") else 1 if name != "think_s" else 1e-9
            if not value >= least:
                raise ValueError(f"sessions: {name} is {value}; give at least {least}")


def sessions(starts: npt.NDArray[np.float64], shape: SessionShape | None = None, seed: int = 0) -> Trace:
    """A trace of conversations that begin at `starts` (seconds); what follows may come after the last start."""
    shape = shape or SessionShape()
    rng = np.random.default_rng((seed, _SALT))
    names = iter(range(1 << 32, 1 << 62))
    made = [turn for start in starts for turn in _conversation(float(start), shape, rng, names)]
    return Trace(tuple(sorted(made, key=lambda turn: (turn.arrival_s, turn.prefix_blocks))), shape.block_tokens)


def closed_sessions(starts: npt.NDArray[np.float64], shape: SessionShape | None = None, seed: int = 0) -> Agents:
    """The same conversations, but each turn comes when the answer before has ended and its user has thought: a slow
    cluster is asked later. A conversation whose answer was lost is over."""
    shape = shape or SessionShape()
    rng = np.random.default_rng((seed, _SALT))
    names = iter(range(1 << 32, 1 << 62))
    calls: list[Call] = []
    for start in starts:
        turns = list(_conversation(float(start), shape, rng, names))
        for number, turn in enumerate(turns):
            thought = turn.arrival_s - turns[number - 1].arrival_s if number else turn.arrival_s
            calls.append(Call(replace(turn, arrival_s=thought), (len(calls) - 1,) if number else ()))
    return Agents(tuple(calls), shape.block_tokens)


def _conversation(
    at: float, shape: SessionShape, rng: np.random.Generator, names: Iterator[int]
) -> Iterator[TraceRequest]:
    """The turns of one conversation. Blocks of the system prompt are named by it, all others are its own."""
    size = shape.block_tokens
    stem = int(rng.integers(0, shape.system_prompts)) * shape.system_tokens
    blocks = [stem + index for index in range(shape.system_tokens // size)]
    length = shape.system_tokens
    for _ in range(int(rng.geometric(1.0 / shape.turns))):
        length += _spread(rng, shape.input_tokens, shape.sigma)
        output = _spread(rng, shape.output_tokens, shape.sigma)
        if length + output > shape.max_context:
            return
        # Only whole blocks: a block that is still being filled has another content at every turn.
        blocks += [next(names) for _ in range(length // size - len(blocks))]
        yield TraceRequest(at, length, output, tuple(blocks))
        length += output
        at += float(rng.lognormal(math.log(shape.think_s) - shape.sigma**2 / 2, shape.sigma))


def _spread(rng: np.random.Generator, mean: float, sigma: float) -> int:
    return max(1, round(rng.lognormal(math.log(mean) - sigma**2 / 2, sigma)))
