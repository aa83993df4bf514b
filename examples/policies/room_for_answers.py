"""A policy to learn from: it makes its picks whole, without the help of the router's own functions.

It sends a request where most of the KV cache is left, because a worker whose cache is full must throw somebody out. A
prompt that some worker has cached goes there, as long as that worker is not much fuller than the emptiest one.

    penstock lab eval examples/policies/room_for_answers.py

Read it beside its result: it is good where memory is short, and no match for KVAware where prefixes are shared.
"""

import numpy as np
from penstock.core.fleet import ANSWERING, FleetView, Pick, PickReason, Rejection, RejectReason, Request

WORTH = 0.10
"""Share of the KV cache by which a worker may be fuller than the emptiest one and still be picked for its cache."""


class RoomForAnswers:
    """Most room in the KV cache, or the longest cached prefix among those with nearly as much."""

    name = "RoomForAnswers"

    # A policy that never looks at view.cached_tokens or request.block_hashes says False here, and the router spares
    # itself tokenizing every prompt.
    reads_prompts = True

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Choose by promised tokens over capacity."""
        # Who may answer a client and has room for one more request. Never look at other rows: they may be anybody's.
        slots = view.with_room(request.model, ANSWERING)
        if not slots.size:
            return Rejection(RejectReason.WORKERS_BUSY, f"no worker of {request.model!r} has room", retry_after=1.0)

        # An unknown capacity is NaN, not zero: "missing data holds". Here it counts as a typical one.
        capacity = view.kv_capacity[slots]
        capacity = np.where(np.isnan(capacity), 100_000.0, capacity)
        full = view.outstanding_tokens[slots] / capacity

        # Equals go by who was picked longest ago, so that they share the work.
        best = int(np.lexsort((view.last_pick[slots], full))[0])
        reason = PickReason.LEAST_OUTSTANDING

        cached = view.cached_tokens(request)
        hits = np.zeros(len(slots)) if cached is None else cached[slots]
        near = full <= full[best] + WORTH
        longest = int(np.where(near, hits, -1.0).argmax())
        if hits[longest] > hits[best]:
            best, reason = longest, PickReason.PREFIX_OWNER

        # The pick explains itself: everybody who could have been picked, and a score for each, lower is better.
        return Pick(
            decode=int(slots[best]),
            reason=reason,
            policy=self.name,
            candidates=slots,
            scores=full,
            unit="share of the KV cache",
            expected_hit_tokens=int(hits[best]),
        )


# Without this line every class of the file that has a name and a method `pick` would be taken.
POLICIES = (RoomForAnswers(),)
