"""PrefixAffinity: prompts that begin alike go to the same worker, as long as that worker is not overloaded.

Knows nothing of caches: the first blocks of a prompt are a key, every key has an owner (rendezvous hashing), and an
owner that has more than `BOUND` times the mean number of requests passes the request on to the next in the key's own
order (consistent hashing with bounded loads, Mirrokni et al., arXiv 1608.01350).
"""

import math

import numpy as np
from msgspec.structs import replace
from penstock.core.fleet import FleetView, Pick, PickReason, Rejection, Request, Slots
from penstock.router.decisions.policies_common import Ranking, pick_ranked
from penstock.router.decisions.policies_hash import drawn
from penstock.router.decisions.policies_plain import LeastLoaded

FIRST_BLOCKS = 16
"""Blocks of a prompt that make its key: 256 tokens of vLLM's 16, a system prompt's length."""
BOUND = 1.25
"""Requests a worker may have, as a multiple of the mean."""
_OWNER, _BUSY = PickReason.PREFIX_OWNER, PickReason.OWNER_BUSY


class PrefixAffinity:
    """The owner of the prompt's first blocks, or the next owner that is not overloaded."""

    name = "PrefixAffinity"
    unit = "order"

    def __init__(self) -> None:
        """For prompts that nobody hashed: they are sent to the least loaded."""
        self._otherwise = LeastLoaded()

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Pick by the prompt's first blocks; overloaded workers have 1 added to their place in the order."""
        if not request.block_hashes:
            answer = self._otherwise.pick(request, view, now, seed)
            return replace(answer, policy=self.name) if isinstance(answer, Pick) else answer
        return pick_ranked(self, request, view, now, seed)

    def rank(self, request: Request, view: FleetView, slots: Slots, now: float, seed: int) -> Ranking:
        """By the key's order, overloaded ones last."""
        hashes = request.block_hashes
        key = int.from_bytes(hashes[min(len(hashes), FIRST_BLOCKS) - 1][-8:], "big")
        lots = drawn(view, slots, key)
        flight = view.in_flight[slots]
        allowed = math.ceil(BOUND * (int(flight.sum()) + 1) / slots.size)
        order = np.where(flight < allowed, lots, lots + 1.0)
        best = int(order.argmin())
        return Ranking(order, best, _OWNER if best == int(lots.argmin()) else _BUSY)
