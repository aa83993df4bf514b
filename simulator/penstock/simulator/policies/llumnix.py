"""How Llumnix (its 2025 code) lets workers change between prefill and decode, without its rescheduler.

One prefill worker and one decode worker keep their role; any other is what it does: a worker with requests that decode
takes more of them and no prompts, one without takes prompts. Decodes are packed: among the workers that decode, the one
with the longest predicted time per token that is still well within the objective and with room for its KV. Where nobody
is, the prefill worker that would be free soonest begins to decode. So as few workers decode as the objective
allows, and all others prefill.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from penstock.core.fleet import FleetView, Pick, PickReason, Rejection, Request, Role, Slots
from penstock.router.decisions.policies_common import in_turn, no_candidate

__all__ = ["AdaptiveRoles"]

TPOT_SHARE = 0.85
"""Of the objective: what a worker's predicted time per token may reach by one more request."""

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


class AdaptiveRoles:
    """A prefill worker and a decode worker for each request, both from all workers, whatever their pool."""

    name = "AdaptiveRoles"

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Pick by predicted milliseconds."""
        slots = view.with_room(request.model)
        if not slots.size:
            return no_candidate(request, view)
        ttft, tpot = _predicted(request, view, slots)
        decodes = _decoding(view, slots)
        decode = _pack(request, view, slots, decodes, ttft, tpot)
        takes = ~decodes
        if takes.sum() > 1:
            takes[decode] = False
        prefill = _soonest(view, slots, ttft, takes if takes.any() else ~takes, seed)
        return Pick(
            decode=int(slots[decode]),
            reason=PickReason.LEAST_OUTSTANDING if slots.size > 1 else PickReason.ONLY_CANDIDATE,
            policy=self.name,
            candidates=slots,
            scores=tpot,
            unit="ms",
            prefill=None if prefill == decode else int(slots[prefill]),
            predicted_ttft_ms=float(ttft[prefill]),
            predicted_tpot_ms=float(tpot[decode]),
        )


def _predicted(request: Request, view: FleetView, slots: Slots) -> tuple[Floats, Floats]:
    """(ms to the first token with this prompt queued last, ms per token with this request in the batch), shape (n,)."""
    base, slope, square = view.prefill_ms[slots].T
    waiting = view.pending[slots]
    prompt = float(request.prompt_tokens)
    ttft = (waiting[:, 0] + 1) * base + (waiting[:, 1] + prompt) * slope + (waiting[:, 2] + prompt * prompt) * square
    floor, each, context = view.decode_ms[slots].T
    return ttft, floor + each * (_batch(view, slots) + 1) + context * (view.context_tokens[slots] + prompt)


def _batch(view: FleetView, slots: Slots) -> Floats:
    """Requests that decode."""
    decoding: Floats = view.in_flight[slots] - view.pending[slots, 0]
    return decoding


def _decoding(view: FleetView, slots: Slots) -> Mask:
    """Who decodes: those with requests that do, less the reserved prefill worker, and the reserved decode worker."""
    roles = view.role[slots]
    decodes: Mask = _batch(view, slots) > 0
    decodes[_first(roles == Role.PREFILL)] = False
    decodes[_first(roles == Role.DECODE)] = True
    return decodes


def _first(mask: Mask) -> NDArray[np.intp]:
    return np.flatnonzero(mask)[:1]


def _pack(request: Request, view: FleetView, slots: Slots, decodes: Mask, ttft: Floats, tpot: Floats) -> int:
    """Index of the worker that decodes this request."""
    limit = np.inf if request.tpot_ms is None else TPOT_SHARE * request.tpot_ms
    promised = view.outstanding_tokens[slots] + request.total_tokens
    full = promised > view.kv_capacity[slots]  # an unknown capacity (NaN) is no bound
    fits = decodes & (tpot <= limit) & ~full
    if fits.any():
        return int(np.where(fits, tpot, -np.inf).argmax())
    spare = ~decodes
    spare[_first(view.role[slots] == Role.PREFILL)] = False
    if spare.any():
        return int(np.where(spare, ttft, np.inf).argmin())
    return int(np.where(decodes, tpot, np.inf).argmin())


def _soonest(view: FleetView, slots: Slots, ttft: Floats, among: Mask, seed: int) -> int:
    places = np.flatnonzero(among)
    return int(places[in_turn(ttft[places], slots[places], view, seed)[0]])
