"""The answer to one request, with enough beside it to explain itself."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from penstock.core.fleet.reasons import PickReason, RejectReason

Slots = NDArray[np.intp]
"""Slot numbers, shape (n,)."""
Scores = NDArray[np.float64] | NDArray[np.int64]
"""One number per slot in the policy's own unit, lower is better, shape (n,)."""


@dataclass(frozen=True, slots=True)
class Pick:
    """Which worker (or pair) serves a request, and against whom it was chosen.

    `decode` is the slot whose worker answers the client. `prefill` is the slot that runs the prompt, `None`
    when the same worker does both. `expected_hit_tokens` and `predicted_ttft_ms` are `None` when nothing is
    known about them, which is not the same as zero. `candidates` and `scores` have one entry for each
    worker that could have been picked; `unit` says what a score counts.
    """

    decode: int
    reason: PickReason
    policy: str
    candidates: Slots
    scores: Scores
    unit: str
    prefill: int | None = None
    expected_hit_tokens: int | None = None
    predicted_ttft_ms: float | None = None

    @property
    def score(self) -> float:
        """Score of the worker that was picked."""
        return float(self.scores[self.candidates == self.decode][0])

    @property
    def losers(self) -> tuple[tuple[int, float], ...]:
        """`(slot, score)` of every candidate that was not picked, best first; ties by slot."""
        others = [
            (int(slot), float(score))
            for slot, score in zip(self.candidates, self.scores, strict=True)
            if slot != self.decode
        ]
        return tuple(sorted(others, key=lambda pair: (pair[1], pair[0])))

    @property
    def runner_up(self) -> int | None:
        """Slot that would have been picked had the picked worker not been there; `None` when alone."""
        losers = self.losers
        return losers[0][0] if losers else None


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why no worker was picked, and when it is worth asking again (seconds)."""

    reason: RejectReason
    message: str
    retry_after: float


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a pick holds on a worker until the request ends.

    A slot is reused after its worker is gone; `generation` tells the worker that held the slot then from
    the one that holds it now.
    """

    id: int
    slot: int
    generation: int
    prompt_tokens: int
    max_tokens: int
