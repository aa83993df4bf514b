"""Splitwise's cluster-level scheduler (ISCA 2024), and the one it was compared with.

Machines are in a prompt pool and a token pool. A request goes to the prompt machine with the fewest pending tokens and,
chosen at the same time, to the token machine with the least promised memory. A machine that would have to refuse (too
many pending tokens, too little memory) is passed over for one of the mixed pool, and where that has none a machine of
the other pool joins it; it goes home when its foreign work is done. Where nobody is left the least loaded machine of
all does both.

Here no pool needs to be remembered: a machine is in the mixed pool exactly while it has foreign work, and that shows in
the fleet. Prompts that wait or run are a worker's pending ones; what it has beyond those it decodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from penstock.core.fleet import FleetView, Pick, PickReason, Rejection, Request, Role, Scores, Slots
from penstock.router.decisions.loads import predicted_ttft_ms
from penstock.router.decisions.policies_common import Ranking, in_turn, no_candidate, pick_ranked

__all__ = ["JoinShortestQueue", "Splitwise"]

QUEUE_TOKENS = 8192
"""Pending tokens, the request's own among them, above which a machine that is not idle takes no more prompts."""
_PREFILL, _DECODE = Role.PREFILL, Role.DECODE


def pending_tokens(view: FleetView, slots: Slots) -> NDArray[np.float64]:
    """What is queued: every token of a prompt that is not computed, and one for each request that decodes."""
    tokens: NDArray[np.float64] = view.pending[slots, 1] + _decoding(view, slots)
    return tokens


def _decoding(view: FleetView, slots: Slots) -> NDArray[np.float64]:
    """Requests that decode, or are promised to."""
    requests: NDArray[np.float64] = view.in_flight[slots] - view.pending[slots, 0]
    return requests


class JoinShortestQueue:
    """The worker with the fewest pending tokens, both phases there: the baseline of Splitwise's evaluation."""

    name = "JoinShortestQueue"
    unit = "tokens"

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Pick by pending tokens; equals take turns."""
        return pick_ranked(self, request, view, now, seed)

    def rank(self, request: Request, view: FleetView, slots: Slots, now: float, seed: int) -> Ranking:
        """By pending tokens."""
        loads = pending_tokens(view, slots)
        best, alone = in_turn(loads, slots, view, seed)
        return Ranking(loads, best, PickReason.LEAST_OUTSTANDING if alone else PickReason.LEAST_RECENTLY_PICKED)


class Splitwise:
    """Both machines of a request, chosen when it comes."""

    name = "Splitwise"
    unit = "tokens"

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Pick a prompt machine and a token machine; one and the same where the pools have nobody left."""
        everybody = view.with_room(request.model)
        if not everybody.size:
            return no_candidate(request, view)
        roles = view.role[everybody]
        prompts, tokens = everybody[roles == _PREFILL], everybody[roles == _DECODE]
        prompt = _prompt_machine(request, view, prompts, tokens, seed)
        token = _token_machine(request, view, prompts, tokens, seed)
        if prompt is None or token is None:
            loads = pending_tokens(view, everybody)
            prompt = token = int(everybody[in_turn(loads, everybody, view, seed)[0]])
        return _made(request, view, everybody, prompt, token)


def _prompt_machine(request: Request, view: FleetView, prompts: Slots, tokens: Slots, seed: int) -> int | None:
    """Of the prompt pool, the mixed one, or the token machine with the fewest pending tokens, in this order."""
    at_home = prompts[_decoding(view, prompts) == 0]
    mixed = np.concatenate((prompts[_decoding(view, prompts) > 0], tokens[view.pending[tokens, 0] > 0]))
    for pool in (at_home, mixed):
        found = _least(pending_tokens(view, pool), pool, view, seed)
        if found is not None and _takes_prompt(request, view, found):
            return found
    spare = tokens[view.pending[tokens, 0] == 0]
    return _least(pending_tokens(view, spare), spare, view, seed)


def _token_machine(request: Request, view: FleetView, prompts: Slots, tokens: Slots, seed: int) -> int | None:
    """Of the token pool, the mixed one, or the prompt machine with the least promised memory, in this order."""
    at_home = tokens[view.pending[tokens, 0] == 0]
    mixed = np.concatenate((tokens[view.pending[tokens, 0] > 0], prompts[_decoding(view, prompts) > 0]))
    for pool in (at_home, mixed):
        found = _least(view.outstanding_tokens[pool], pool, view, seed)
        if found is not None and _has_memory(request, view, found):
            return found
    spare = prompts[_decoding(view, prompts) == 0]
    return _least(view.outstanding_tokens[spare], spare, view, seed)


def _takes_prompt(request: Request, view: FleetView, slot: int) -> bool:
    waiting = float(view.pending[slot, 1])
    return waiting == 0.0 or waiting + request.prompt_tokens <= QUEUE_TOKENS


def _has_memory(request: Request, view: FleetView, slot: int) -> bool:
    capacity = float(view.kv_capacity[slot])
    return not view.outstanding_tokens[slot] + request.total_tokens >= capacity  # unknown (NaN) is no bound


def _least(loads: Scores, slots: Slots, view: FleetView, seed: int) -> int | None:
    return int(slots[in_turn(loads, slots, view, seed)[0]]) if slots.size else None


def _made(request: Request, view: FleetView, everybody: Slots, prompt: int, token: int) -> Pick:
    return Pick(
        decode=token,
        reason=PickReason.LEAST_OUTSTANDING if everybody.size > 1 else PickReason.ONLY_CANDIDATE,
        policy=Splitwise.name,
        candidates=everybody,
        scores=view.outstanding_tokens[everybody],
        unit=Splitwise.unit,
        prefill=None if prompt == token else prompt,
        predicted_ttft_ms=predicted_ttft_ms(view, prompt, request.prompt_tokens),
    )
