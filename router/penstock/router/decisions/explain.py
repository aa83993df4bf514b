"""Why a request went where it went: the last picks, each with every candidate's terms.

Remembering costs a few references, since a pick brings the arrays it was made from; names are looked up once per
membership. Sorting and spelling out wait until somebody asks. What is kept is bounded in picks and in bytes: a pick
among a thousand workers holds some 60 kB, one among eight next to nothing.
"""

import math
from collections import deque
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from penstock.core.fleet import Fleet, Pick, Request, Scores, Slots, Term

_OVERHEAD = 1024
"""Bytes a remembered pick takes besides its arrays."""
_PER_NUMBER = 8
Names = dict[int, str]


class Explained(Struct, frozen=True, eq=False):
    """One pick, remembered. `at` is in seconds of the caller's clock; `names` are the slots' at that time."""

    request: Request
    pick: Pick
    attempt: int
    at: float
    names: Names
    measured_hit_tokens: int | None = None
    """Prompt tokens the engine found in its cache, once it has said so."""

    @property
    def size(self) -> int:
        """Bytes it holds, estimated."""
        arrays = (len(self.pick.terms) + 2) * self.pick.candidates.size
        others = self.pick.prefills
        if others is not None:
            arrays += (len(others.terms) + 2) * others.candidates.size
        return _OVERHEAD + _PER_NUMBER * arrays

    def as_dict(self) -> dict[str, Any]:
        """In plain values, candidates best first; what is not known is `None`."""
        pick, request = self.pick, self.request
        return {
            "requestId": request.id,
            "model": request.model,
            "attempt": self.attempt,
            "policy": pick.policy,
            "reason": str(pick.reason),
            "worker": self.names[pick.decode],
            "prefillWorker": None if pick.prefill is None else self.names[pick.prefill],
            "runnerUp": None if pick.runner_up is None else self.names[pick.runner_up],
            "promptTokens": request.prompt_tokens,
            "maxTokens": request.max_tokens,
            "expectedHitTokens": pick.expected_hit_tokens,
            "measuredHitTokens": self.measured_hit_tokens,
            "predictedTtftMs": pick.predicted_ttft_ms,
            "predictedTpotMs": pick.predicted_tpot_ms,
            "objectives": {"ttftMs": request.ttft_ms, "tpotMs": request.tpot_ms},
            "unit": pick.unit,
            "candidates": self._rows(pick.candidates, pick.scores, pick.terms, pick.decode),
            "prefillCandidates": []
            if pick.prefills is None
            else self._rows(pick.prefills.candidates, pick.prefills.scores, pick.prefills.terms, pick.prefill),
        }

    def _rows(self, slots: Slots, scores: Scores, terms: tuple[Term, ...], picked: int | None) -> list[dict[str, Any]]:
        order = sorted(range(slots.size), key=lambda i: (slots[i] != picked, scores[i], slots[i]))
        return [
            {
                "worker": self.names[int(slots[i])],
                "picked": int(slots[i]) == picked,
                "score": _plain(scores[i]),
                "terms": {name: _plain(values[i]) for name, values in terms},
            }
            for i in order
        ]


class ExplainLog:
    """The last picks by request id, oldest forgotten first."""

    def __init__(self, fleet: Fleet, picks: int = 4096, budget: int = 32 << 20) -> None:
        """Keep at most `picks`, in at most about `budget` bytes; `picks` 0 keeps none."""
        self._fleet = fleet
        self._most = picks
        self._budget = budget
        self._order: deque[Explained] = deque()
        self._hits: dict[str, int] = {}  # Request -> measured hit, oldest first.
        self._names: Names = {}
        self._epoch = -1
        self.bytes = 0

    def __len__(self) -> int:
        """Picks remembered now."""
        return len(self._order)

    def remember(self, request: Request, pick: Pick, attempt: int, at: float) -> None:
        """Keep a pick that was just made."""
        if not self._most:
            return
        if self._epoch != self._fleet.epoch:
            self._names = {slot: name for name, slot in self._fleet.workers().items()}
            self._epoch = self._fleet.epoch
        known, order = Explained(request, pick, attempt, at, self._names), self._order
        order.append(known)
        self.bytes += known.size
        while len(order) > self._most or (self.bytes > self._budget and len(order) > 1):
            self.bytes -= order.popleft().size

    def measured(self, request_id: str, hit_tokens: int) -> None:
        """The engine that ran a request's prompt says how much of it was cached."""
        if not self._most:
            return
        self._hits[request_id] = hit_tokens
        if len(self._hits) > self._most:
            del self._hits[next(iter(self._hits))]

    def find(self, request_id: str) -> list[Explained]:
        """The picks made for a request, in order; empty when none is remembered.

        Looks at all that are remembered, a fraction of a millisecond: asking is rare, remembering is not. At a copy,
        since whoever asks may stand in another thread.
        """
        found = [known for known in tuple(self._order) if known.request.id == request_id]
        hit = self._hits.get(request_id)
        if found and hit is not None:
            # It was measured at the request's end, so it is the last pick's.
            found[-1] = replace(found[-1], measured_hit_tokens=hit)
        return found


def _plain(number: Any) -> float | None:
    value = float(number)
    return value if math.isfinite(value) else None
