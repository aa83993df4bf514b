"""Whether a request's prompt is prefilled on another worker than decodes it, and on which pair.

Moving a KV cache costs a hop and a transfer; a long prefill beside running decodes costs every one of them a pause.
So a long prompt is split and a short one is not, and nothing is split towards a prefill worker that is so far behind
that the decode worker would be done sooner by itself. A pair is chosen inside one transfer domain: blocks can be
handed over nowhere else.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from penstock.core.fleet import FleetView, Pick, PickReason, Rejection, RejectReason, Request, Role
from penstock.router.decisions.loads import outstanding_tokens, predicted_ttft_ms

_DECODE, _PREFILL = Role.DECODE, Role.PREFILL
POLICY = "Pairs"
"""Policy name of a pick whose policy knows no roles."""


class SplitReason(StrEnum):
    """Why a request was split, or was not."""

    SPLIT = "Split"
    SHORT_PROMPT = "ShortPrompt"
    """Too few tokens to prefill for a hop to pay."""
    PREFILL_BUSY = "PrefillBusy"
    """The least loaded prefill worker is too far behind."""
    NO_PREFILL_WORKER = "NoPrefillWorker"
    """No prefill worker can be picked in the decode worker's domain."""
    LOCAL_CHEAPER = "LocalCheaper"
    """The policy expects the decode worker to be better off alone."""
    UNSPLITTABLE = "Unsplittable"
    """The request's form allows no legs (several prompts or choices, prompt logprobs), or the front door runs none."""


@dataclass(frozen=True, slots=True)
class SplitLimits:
    """When a split pays, and how long what a prefill worker holds may be relied on."""

    min_tokens: int = 256
    """Prompt tokens below which the decode worker prefills by itself, whatever the policy says."""
    busy_tokens: int = 65_536
    """Tokens a prefill worker may owe beyond what the decode worker owes before its queue costs more than it saves."""
    attempts: int = 2
    """Prefill workers tried before the decode worker prefills by itself."""
    lease: float = 30.0
    """Seconds a prefill worker holds the blocks of a finished prefill leg."""

    @property
    def usable_lease(self) -> float:
        """Seconds after the first leg's answer in which the second may still be sent.

        The decode worker pulls only when the request's turn comes there, and a pull after the lease gives wrong text
        without an error: half the lease is left for its queue.
        """
        return self.lease / 2.0


def split_or_not(tokens: int, prefill_load: float, decode_load: float, limits: SplitLimits) -> SplitReason:
    """Decide for one request of so many prompt tokens, given what the two workers of its pair owe already."""
    if tokens < limits.min_tokens:
        return SplitReason.SHORT_PROMPT
    if prefill_load > decode_load + limits.busy_tokens:
        return SplitReason.PREFILL_BUSY
    return SplitReason.SPLIT


def why_split(request: Request, view: FleetView, pick: Pick, now: float, limits: SplitLimits | None) -> SplitReason:
    """Whether a pick's prefill worker is to be used, and why or why not. `limits` None: nothing may be split here."""
    if limits is None:
        return SplitReason.UNSPLITTABLE
    near = view.with_room(request.model, _PREFILL)
    near = near[view.domain[near] == view.domain[pick.decode]]
    if not near.size:
        return SplitReason.NO_PREFILL_WORKER
    if pick.prefill is None:
        return SplitReason.LOCAL_CHEAPER
    # The pick's expected hit is the prefill worker's. What the decode worker has cached is the policy's to weigh: one
    # that knows it leaves the prefill worker out.
    loads = outstanding_tokens(view, np.array([pick.prefill, pick.decode]), now)
    return split_or_not(request.prompt_tokens, float(loads[0]), float(loads[1]), limits)


def pick_pair(request: Request, view: FleetView, now: float) -> Pick | Rejection:
    """The least loaded decode worker and the least loaded prefill worker beside it, for policies that know no roles.

    Domains with a prefill worker go first.
    """
    decodes = view.with_room(request.model, _DECODE)
    if not decodes.size:
        return _rejection(request, view)
    prefills = view.with_room(request.model, _PREFILL)
    loads = outstanding_tokens(view, decodes, now)
    paired = np.isin(view.domain[decodes], view.domain[prefills])
    decode = int(decodes[np.lexsort((view.last_pick[decodes], loads, ~paired))[0]])
    prefill = least_loaded_prefill(request, view, decode, now)
    return Pick(
        decode=decode,
        reason=PickReason.LEAST_OUTSTANDING if decodes.size > 1 else PickReason.ONLY_CANDIDATE,
        policy=POLICY,
        candidates=decodes,
        scores=loads,
        unit="tokens",
        prefill=prefill,
        predicted_ttft_ms=predicted_ttft_ms(view, decode if prefill is None else prefill, request.prompt_tokens),
    )


def least_loaded_prefill(request: Request, view: FleetView, decode: int, now: float) -> int | None:
    """The prefill worker with the fewest outstanding tokens in the domain of the worker in slot `decode`."""
    prefills = view.with_room(request.model, _PREFILL)
    near = prefills[view.domain[prefills] == view.domain[decode]]
    if not near.size:
        return None
    return int(near[np.lexsort((view.last_pick[near], outstanding_tokens(view, near, now)))[0]])


def _rejection(request: Request, view: FleetView) -> Rejection:
    ready = view.candidates(request.model, _DECODE).size
    if ready:
        message = f"all {ready} ready decode workers of model {request.model!r} are busy; try again shortly"
        return Rejection(RejectReason.WORKERS_BUSY, message, retry_after=1.0)
    message = f"model {request.model!r} has no decode worker that could take this request"
    return Rejection(RejectReason.NO_WORKERS, message, retry_after=5.0)
