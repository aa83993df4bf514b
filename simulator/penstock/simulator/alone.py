"""One engine alone on the virtual clock, with the time between any two tokens on record: what schedulers are judged by.

The twin's reports know when a request's first and last token came. Whether a stall in between was felt shows only in
the intervals between tokens, all of them, so they are counted here: a run of decode steps as the steps' durations, each
as often as there are sequences.
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from penstock.core.engine import Engine, EngineConfig, Finished, Sequence, Token
from penstock.core.models import LatencyProfile
from penstock.core.traces import TraceRequest

__all__ = ["Felt", "play_alone"]

Array = npt.NDArray[np.float64]


@dataclass(slots=True)
class Felt:
    """What the clients of one engine felt."""

    asked: int
    finished: list[Finished] = field(default_factory=list)
    refused: int = 0
    """Too long for the engine."""
    end_s: float = 0.0
    _intervals: list[Array] = field(default_factory=list)
    _weights: list[Array] = field(default_factory=list)

    @property
    def finished_share(self) -> float:
        """Share of the requests that came to their end, 0 to 1."""
        return len(self.finished) / self.asked if self.asked else 1.0

    def delay_s(self, percent: float) -> float:
        """Percentile of the time from arrival until a request was first scheduled."""
        return float(np.percentile([end.timing.queue_seconds for end in self.finished], percent))

    def between_tokens_ms(self, percent: float) -> float:
        """Percentile of the intervals between tokens, of all requests together: the least that so many do not exceed.
        Not a number when no request had a second token."""
        if not self._intervals:
            return float("nan")
        values, weights = np.concatenate(self._intervals), np.concatenate(self._weights)
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(weights[order])
        return float(values[order][np.searchsorted(reached, percent / 100.0 * reached[-1])])

    @property
    def intervals(self) -> int:
        """How many intervals between tokens there were."""
        return int(sum(weights.sum() for weights in self._weights))

    def count(self, intervals_ms: Array, times: int = 1) -> None:
        """Put intervals on record, each of them so many times."""
        self._intervals.append(intervals_ms)
        self._weights.append(np.full(len(intervals_ms), float(times)))


def play_alone(config: EngineConfig, profile: LatencyProfile, requests: Series[TraceRequest]) -> Felt:
    """Play requests, in order of arrival, through one engine until the last has ended. Deterministic."""
    return _Player(Engine(config, profile), requests).play()


class _Player:
    def __init__(self, engine: Engine, requests: Series[TraceRequest]) -> None:
        self.engine, self.requests = engine, requests
        self.felt = Felt(len(requests))
        self.now = 0.0
        self._next = 0  # The next request to arrive.
        self._in_time = False  # Whether every running sequence had its latest token now.

    def play(self) -> Felt:
        while self._next < len(self.requests) or not self.engine.idle:
            self._arrive()
            if not self._leap() and not self._step():
                self.now = self._coming()
        self.felt.end_s = self.now
        return self.felt

    def _coming(self) -> float:
        if self._next < len(self.requests):
            return self.requests[self._next].arrival_s
        raise RuntimeError(f"at {self.now} s the engine has sequences and nothing to wait for")

    def _arrive(self) -> None:
        requests = self.requests
        while self._next < len(requests) and requests[self._next].arrival_s <= self.now:
            one = requests[self._next]
            try:
                self.engine.add(
                    Sequence(str(self._next), one.input_tokens, one.output_tokens, arrival=one.arrival_s), self.now
                )
            except ValueError:
                self.felt.refused += 1
            self._next += 1

    def _leap(self) -> bool:
        span = self.engine.span() if self._in_time else None
        if span is None:
            return False
        steps = span.steps
        if self._next < len(self.requests):
            steps = span.begun((self._coming() - self.now) * 1e3)
        self.felt.count(span.first_ms + span.growth_ms * np.arange(steps, dtype=np.float64), span.sequences)
        self.now += span.milliseconds(steps) / 1e3
        self.felt.finished += self.engine.advance(span, steps, self.now).finished
        return True

    def _step(self) -> bool:
        step = self.engine.schedule(self.now)
        if step is None:
            return False
        self.now += step.duration_ms / 1e3
        outputs = self.engine.complete(step, self.now)
        self._record(outputs.tokens)
        self.felt.finished += outputs.finished
        self._in_time = len(outputs.tokens) - len(outputs.finished) == self.engine.stats().running
        return True

    def _record(self, tokens: Series[Token]) -> None:
        later = [token.interval * 1e3 for token in tokens if token.number]
        if later:
            self.felt.count(np.array(later))
