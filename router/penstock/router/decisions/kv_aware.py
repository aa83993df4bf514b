"""KVAware: predict, keep who meets the objectives, take the cheapest.

For every candidate the time to the first token, the time per token and the marginal cost are predicted (`predict`) from
its profile, its queue, its batch and what it has cached of this very prompt. Those that meet the deployment's
objectives compete on cost; if none does, cost decides among all. Nothing is gained for an objective that is missed
anyway, and whoever chases the least late worker makes those late that still met theirs; workers that meet the time per
token for nobody are filled with such requests first, within bounds of waiting. Where prefill and decode are apart, the
best prefill worker is found for each transfer domain, and each decode worker is judged together with its domain's: as
many sums as there are workers, never as there are pairs. A short rest of a prompt may stay with the decode worker.

Affinity is bounded by load: where caches differ, nobody is picked who has twice the mean number of requests, or a
thousand equal prompts would all go where the first one went.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from penstock.core.fleet import ANSWERING, FleetView, Pick, PickReason, Prefills, Rejection, Request, Term
from penstock.router.decisions.policies_common import ONLY, PREFILL, TURN, in_turn, lowest, no_candidate
from penstock.router.decisions.predict import (
    Estimate,
    Floats,
    Side,
    decode_times,
    lateness,
    prefill_half,
    punctual,
    side_of,
    whole,
)

LOCAL_TOKENS = 512
"""Uncached tokens up to which a decode worker may run a prompt itself, if that is cheaper than sending it away."""
_CHEAPEST, _NONE_MEETS, _NOBODY_HARMED = PickReason.LEAST_COST, PickReason.LEAST_VIOLATION, PickReason.LEAST_HARM


@dataclass(frozen=True, slots=True)
class _Split:
    """Answering workers judged with a prefill mate: `mates` index the prefill side, -1 for workers that need none."""

    estimate: Estimate
    transfer: Floats
    mates: NDArray[np.intp]
    prefills: Prefills | None


class KVAware:
    """The worker (or pair) that meets the objectives at the least marginal cost."""

    name = "KVAware"

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Pick by predicted time and cost; equals take turns."""
        side = side_of(view, request.model, ANSWERING)
        if side is None:
            return no_candidate(request, view)
        cached = view.cached_tokens(request)
        hits = 0.0 if cached is None else cached[side.rows]
        estimate = whole(side, view, request, hits, now)
        mates = side_of(view, request.model, PREFILL) if side.any_decodes_only else None
        split = None if mates is None else _paired(side, mates, view, request, estimate, cached, now)
        if split is not None:
            estimate = split.estimate
        scores, reason = _scored(side, view, estimate, request, now)
        best, alone = _first(scores, estimate.hits, side, view, seed)
        if not alone:
            reason = TURN
        return _made(request, side, estimate, split, scores, reason, best, cached is not None)


def _scored(side: Side, view: FleetView, estimate: Estimate, request: Request, now: float) -> tuple[Floats, PickReason]:
    """Cost of those that meet the objectives; where none does of those that have nobody's to lose, or of all.

    Infinite for who may not be picked.
    """
    barred = _overloaded(side, view, estimate.hits)
    meets = punctual(side, estimate, request)
    scores, reason = estimate.cost, _CHEAPEST
    if meets is not None and np.count_nonzero(meets) < len(side):
        if barred is not None:
            meets = meets & ~barred
        if np.count_nonzero(meets):
            scores = np.where(meets, scores, np.inf)
        else:
            reason = _NONE_MEETS
            spared = _harmless(side, estimate, request, barred, now)
            if spared is not None:
                scores, reason = np.where(spared, scores, np.inf), _NOBODY_HARMED
    return scores if barred is None else np.where(barred, np.inf, scores), reason


def _harmless(
    side: Side, estimate: Estimate, request: Request, barred: NDArray[np.bool_] | None, now: float
) -> NDArray[np.bool_] | None:
    """Where a request that is late anyway makes nobody else late; `None` where that is nowhere, or everywhere.

    A worker whose time per token misses the objective with one request alone keeps it for nobody. The wait there is
    bounded: twice the mean of all candidates', and the request's deadline.
    """
    if estimate.spread is None or request.tpot_ms is None:
        return None
    longest = 2.0 * float(estimate.ttft.mean())
    if request.deadline is not None:
        longest = min(longest, (request.deadline - now) * 1e3)
    spared: NDArray[np.bool_] = (side.floor + side.decode_slope > request.tpot_ms) & (estimate.ttft <= longest)
    if barred is not None:
        spared &= ~barred
    return spared if 0 < np.count_nonzero(spared) < len(side) else None


def _first(scores: Floats, hits: Floats | float, side: Side, view: FleetView, seed: int) -> tuple[int, bool]:
    """Index of the cheapest, and whether it is the only one; of the equally cheap only the warmest take turns.

    A short prefix saves no time, but stays together: a step that the weights' transfer bounds takes as long for one
    block as for three, so cost alone is blind to them.
    """
    if isinstance(hits, float):
        return in_turn(scores, side.slots, view, seed)
    equal = (scores == scores[scores.argmin()]).nonzero()[0]
    if equal.size > 1:
        warmth = hits[equal]
        equal = equal[warmth == warmth.max()]
    if equal.size == 1:
        return int(equal[0]), True
    return int(equal[lowest(view.last_pick[side.slots[equal]], seed)]), False


def _overloaded(side: Side, view: FleetView, hits: Floats | float) -> NDArray[np.bool_] | None:
    """Who has twice the mean number of requests already, where caches could draw a crowd; `None` for nobody."""
    if isinstance(hits, float) or not np.count_nonzero(hits):
        return None
    flight = view.in_flight[side.rows]
    barred = flight >= max(2, 2 * (int(np.add.reduce(flight)) + 1) // len(side))
    return barred if np.count_nonzero(barred) else None


def _paired(
    side: Side, mates: Side, view: FleetView, request: Request, alone: Estimate, cached: Floats | None, now: float
) -> _Split | None:
    """Judge each decode worker with the best prefill worker of its domain; `None` when no domain has both."""
    chosen = np.full(len(side), -1)
    half = prefill_half(mates, view, request, 0.0 if cached is None else cached[mates.rows])
    order = _prefill_order(mates, view, request, half, now)
    for domain in np.unique(side.domain[side.decodes_only]):
        here = np.flatnonzero(mates.domain == domain)
        if here.size:
            chosen[side.decodes_only & (side.domain == domain)] = _best_of(here, order, half)
    if not (chosen >= 0).any():
        return None
    decode = decode_times(side, view, request, now)
    tpot, wait = decode.tpot, decode.wait
    transfer = side.transfer * (request.prompt_tokens - alone.hits)
    arrived = half.ttft[chosen] + transfer
    ttft = (arrived if wait is None else np.maximum(arrived, wait)) + tpot
    cost = half.cost[chosen] + side.price * (decode.added * decode.batch + ttft - half.ttft[chosen])
    short = request.prompt_tokens - alone.hits <= LOCAL_TOKENS
    chosen = np.where((chosen >= 0) & short & _better(alone, ttft, tpot, cost, request), -1, chosen)
    apart = chosen >= 0
    estimate = Estimate(
        hits=np.where(apart, np.broadcast_to(half.hits, half.ttft.shape)[chosen], alone.hits),
        queue=np.where(apart, half.queue[chosen], alone.queue),
        own=np.where(apart, half.own[chosen], alone.own),
        ttft=np.where(apart, ttft, alone.ttft),
        tpot=tpot,
        stall=decode.stall,
        spread=decode.spread,
        cost=np.where(apart, cost, alone.cost),
    )
    terms = _terms(half, cached is not None, transfer=None, priced=mates.priced)
    return _Split(estimate, np.where(apart, transfer, 0.0), chosen, Prefills(mates.slots, order, terms))


def _prefill_order(mates: Side, view: FleetView, request: Request, half: Estimate, now: float) -> Floats:
    """Prefill workers, best first; the first token's objective is all that can be judged here."""
    return _scored(mates, view, half, request, now)[0]


def _best_of(here: NDArray[np.intp], order: Floats, half: Estimate) -> int:
    """Of these prefill workers the first in order; where all of them are barred, the soonest."""
    first = int(here[order[here].argmin()])
    return first if np.isfinite(order[first]) else int(here[half.ttft[here].argmin()])


def _better(alone: Estimate, ttft: Floats, tpot: Floats, cost: Floats, request: Request) -> NDArray[np.bool_]:
    """Where running both halves at one worker is less late, or as punctual and cheaper."""
    cheaper: NDArray[np.bool_] = alone.cost <= cost
    here, apart = lateness(alone.ttft, alone.tpot, request), lateness(ttft, tpot, request)
    if here is None or apart is None:
        return cheaper
    better: NDArray[np.bool_] = (here < apart) | ((here == apart) & cheaper)
    return better


def _made(
    request: Request,
    side: Side,
    estimate: Estimate,
    split: _Split | None,
    scores: Floats,
    reason: PickReason,
    best: int,
    indexed: bool,
) -> Pick:
    prefills, prefill = None, None
    if split is not None and split.mates[best] >= 0 and split.prefills is not None:
        prefills = split.prefills
        prefill = int(prefills.candidates[split.mates[best]])
    predicted = bool(side.profiled[best])
    hits = estimate.hits if isinstance(estimate.hits, float) else float(estimate.hits[best])
    return Pick(
        decode=int(side.slots[best]),
        reason=reason if len(side) > 1 else ONLY,
        policy=KVAware.name,
        candidates=side.slots,
        scores=scores,
        unit="usd" if side.priced else "ms",
        prefill=prefill,
        expected_hit_tokens=int(hits) if indexed else None,
        predicted_ttft_ms=float(estimate.ttft[best]) if predicted else None,
        predicted_tpot_ms=float(estimate.tpot[best]) if predicted else None,
        terms=_terms(estimate, indexed, None if split is None else split.transfer, side.priced),
        prefills=prefills,
    )


def _terms(estimate: Estimate, indexed: bool, transfer: Floats | None, priced: bool) -> tuple[Term, ...]:
    hits = estimate.hits
    if isinstance(hits, float):
        hits = np.full(estimate.ttft.shape, hits if indexed else np.nan)
    return (
        ("hit_tokens", hits),
        ("queue_ms", estimate.queue),
        ("prefill_ms", estimate.own),
        *((("transfer_ms", transfer),) if transfer is not None else ()),
        ("ttft_ms", estimate.ttft),
        ("tpot_ms", estimate.tpot),
        *((("stall_ms", estimate.stall),) if estimate.stall is not None else ()),
        *((("spread_ms", estimate.spread),) if estimate.spread is not None else ()),
        ("cost_usd" if priced else "cost_ms", estimate.cost),
    )
