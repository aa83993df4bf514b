"""Many decode steps at once: while nobody joins, leaves or is preempted, each step is the one before with one token of
context more for every sequence. Their times are then an arithmetic series, and a virtual clock need not walk them.

    span(j) = first * j + growth * j * (j - 1) / 2        ms that the first j steps take
    growth  = c * B                                       c of the latency model, B sequences
"""

from __future__ import annotations

import math

from msgspec import Struct
from penstock.core.models.latency import LatencyProfile

__all__ = ["Span"]


class Span(Struct, frozen=True, gc=False):
    """A run of decode steps in which nothing but the context changes."""

    steps: int
    """How many at most; the last of them may end sequences."""
    sequences: int
    context: int
    """Summed over the sequences, in the first step (C of the latency model)."""
    first_ms: float
    growth_ms: float
    """Each step takes so much longer than the one before."""

    @classmethod
    def of(cls, profile: LatencyProfile, steps: int, sequences: int, context: int) -> Span:
        """The span of `steps` steps that begins with this batch and context."""
        return cls(steps, sequences, context, profile.decode_ms(sequences, context), profile.decode[2] * sequences)

    def milliseconds(self, steps: int) -> float:
        """What the first `steps` steps take together."""
        return steps * self.first_ms + self.growth_ms * (steps * (steps - 1) * 0.5)

    def after(self, steps: int) -> Span:
        """What is left once `steps` of its steps have passed; at least one must be left."""
        if not 0 <= steps < self.steps:
            raise ValueError(f"{steps} of {self.steps} steps leave nothing")
        return Span(
            self.steps - steps,
            self.sequences,
            self.context + steps * self.sequences,
            self.first_ms + steps * self.growth_ms,
            self.growth_ms,
        )

    def begun(self, elapsed_ms: float) -> int:
        """Steps begun before `elapsed_ms` have passed, at least 1: the last of them is still running or just ended."""
        if self.growth_ms > 0.0:
            half = self.first_ms - 0.5 * self.growth_ms
            root = (math.sqrt(half * half + 2.0 * self.growth_ms * max(elapsed_ms, 0.0)) - half) / self.growth_ms
        else:
            root = elapsed_ms / self.first_ms
        steps = min(max(math.ceil(root), 1), self.steps)
        # The root is rounded; the sum itself decides.
        while steps > 1 and self.milliseconds(steps - 1) >= elapsed_ms:
            steps -= 1
        while steps < self.steps and self.milliseconds(steps) < elapsed_ms:
            steps += 1
        return steps
