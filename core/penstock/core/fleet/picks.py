"""The answer to one request, with enough beside it to explain itself.

Some of these are made for every request: as frozen structs they cost a tenth of what frozen dataclasses cost to make,
and as none of them can be part of a cycle, the garbage collector need not look at them (`gc=False`).
"""

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock.core.fleet.reasons import PickReason, RejectReason
from penstock.core.fleet.stalls import NO_STALLS

Slots = NDArray[np.intp]
"""Slot numbers, shape (n,)."""
Scores = NDArray[np.float64] | NDArray[np.int64]
"""One number per slot in the policy's own unit, lower is better, shape (n,)."""
Term = tuple[str, NDArray[np.float64]]
"""A part of a score: its name, which ends in its unit, and one number per candidate (NaN: not known)."""


class Pick(msgspec.Struct, frozen=True, gc=False):
    """Which worker (or pair) serves a request, and against whom it was chosen.

    `decode` is the slot whose worker answers the client. `prefill` is the slot that runs the prompt, `None`
    when the same worker does both. `expected_hit_tokens` (on the worker that runs the prompt),
    `predicted_ttft_ms` and `predicted_tpot_ms` are `None` when nothing is known about them, which is not the same
    as zero. `candidates` and `scores` have one entry for each worker that could have been picked; `unit` says what a
    score counts. `terms` are what the scores are made of, each an array like `scores`; where a pair was picked,
    `prefills` says the same of the candidates for its prefill half.
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
    predicted_tpot_ms: float | None = None
    terms: tuple[Term, ...] = ()
    prefills: "Prefills | None" = None

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


class Prefills(msgspec.Struct, frozen=True, gc=False):
    """The candidates for the prefill half of a pair, as `Pick` has them for the half that answers."""

    candidates: Slots
    scores: Scores
    terms: tuple[Term, ...] = ()


class Rejection(msgspec.Struct, frozen=True):
    """Why no worker was picked, and when it is worth asking again (seconds)."""

    reason: RejectReason
    message: str
    retry_after: float


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """What a pick holds on a worker until the request ends.

    A slot is reused after its worker is gone; `generation` tells the worker that held the slot then from
    the one that holds it now.
    """

    id: int
    slot: int
    generation: int
    prompt_tokens: int
    max_tokens: int
    cached_tokens: int = 0
    stalls: tuple[float, float] = NO_STALLS
    """ms and squared ms that prompts like its own bring to each pass of its worker (see `stalls`)."""

    @property
    def pending(self) -> tuple[float, float, float]:
        """What it adds to its worker's prefill queue: one request, its uncached tokens, their attention work."""
        prompt, cached = self.prompt_tokens, self.cached_tokens
        return 1.0, float(prompt - cached), float(prompt * prompt - cached * cached)

    @property
    def context_tokens(self) -> int:
        """Tokens of context it is worth on average while it runs: its prompt and half of what it may generate."""
        return self.prompt_tokens + self.max_tokens // 2
