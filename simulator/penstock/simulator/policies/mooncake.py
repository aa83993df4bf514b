"""How Mooncake's conductor (FAST 2025) places a prompt, without and with prefixes that another worker has cached.

Both choose the worker where the prompt is computed soonest: its queue and its own prefill, less what is cached. The
local one counts a worker's own cache. The global one may bring the longest prefix that any worker has, where that is
much longer than the worker's own; moving it then counts too, and what was moved stays, so that hot prefixes spread.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from penstock.core.fleet import ANSWERING, FleetView, Pick, PickReason, Rejection, Request
from penstock.router.decisions.policies_common import in_turn, no_candidate
from penstock.router.decisions.predict import Side, prefill_times, side_of

__all__ = ["FetchingPick", "GlobalHit", "LocalHitOnly"]

WORTH_TOKENS = 2048
"""A prefix is brought only where it is longer by more than this than what is there: four blocks of its traces."""

Floats = NDArray[np.float64]


class FetchingPick(Pick, frozen=True):
    """A pick whose worker first gets the KV of a prefix from another one."""

    fetch_from: int = -1
    """Slot of the worker that has it cached; -1: nothing is to be brought."""
    fetch_tokens: int = 0
    """Length of that prefix."""


class LocalHitOnly:
    """The worker with the soonest first token, each with its own cache."""

    name = "LocalHitOnly"

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Pick by queue and uncached prefill, in milliseconds."""
        side = side_of(view, request.model, ANSWERING)
        if side is None:
            return no_candidate(request, view)
        hits = _hits(side, view, request)
        queue, own = prefill_times(side, view, request, hits)
        return _made(self.name, side, view, queue + own, hits, seed)


class GlobalHit:
    """The same with caches that can be read from afar."""

    name = "GlobalHit"

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Pick by queue, transfer and the prefill that is left, in milliseconds."""
        side = side_of(view, request.model, ANSWERING)
        if side is None:
            return no_candidate(request, view)
        local = _hits(side, view, request)
        best = int(local.argmax())
        brings = local[best] - local > WORTH_TOKENS
        hits = np.where(brings, local[best], local)
        queue, own = prefill_times(side, view, request, hits)
        moving = np.where(brings, side.transfer * (local[best] - local), 0.0)
        made = _made(self.name, side, view, queue + own + moving, hits, seed)
        if not brings[np.flatnonzero(side.slots == made.decode)[0]]:
            return made
        return FetchingPick(
            decode=made.decode,
            reason=made.reason,
            policy=made.policy,
            candidates=made.candidates,
            scores=made.scores,
            unit=made.unit,
            expected_hit_tokens=made.expected_hit_tokens,
            predicted_ttft_ms=made.predicted_ttft_ms,
            fetch_from=int(side.slots[best]),
            fetch_tokens=int(local[best]),
        )


def _hits(side: Side, view: FleetView, request: Request) -> Floats:
    cached = view.cached_tokens(request)
    return np.zeros(len(side)) if cached is None else cached[side.rows]


def _made(name: str, side: Side, view: FleetView, ttft: Floats, hits: Floats, seed: int) -> Pick:
    at, alone = in_turn(ttft, side.slots, view, seed)
    reason = PickReason.LEAST_OUTSTANDING if alone else PickReason.LEAST_RECENTLY_PICKED
    return Pick(
        decode=int(side.slots[at]),
        reason=reason if len(side) > 1 else PickReason.ONLY_CANDIDATE,
        policy=name,
        candidates=side.slots,
        scores=ttft,
        unit="ms",
        expected_hit_tokens=int(hits[at]),
        predicted_ttft_ms=float(ttft[at]),
    )
