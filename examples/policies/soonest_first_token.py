"""A policy to learn from: the worker whose first token comes soonest, by the router's own predictions.

Try it, then ship the same file (docs/concepts/lab.md):

    penstock lab eval examples/policies/soonest_first_token.py
    python -m penstock.router --policy-file examples/policies/soonest_first_token.py --policy SoonestFirstToken

A policy is a pure function: the same request, view, time and seed always give the same pick. It opens nothing, reads no
clock and keeps no state; whatever it would remember stands in the view already.
"""

import numpy as np
from penstock.core.fleet import FleetView, Pick, PickReason, Rejection, Request
from penstock.router.decisions.policies_common import Ranking, in_turn, pick_ranked


class SoonestFirstToken:
    """Queue and uncached prefill in milliseconds; the least of it wins."""

    # What users write in spec.routing.policy.
    name = "SoonestFirstToken"
    # What a score counts: it is shown beside every pick that `penstock explain` lists.
    unit = "ms"

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Choose a worker, or say why there is none."""
        # pick_ranked does what every policy needs: it leaves out workers that may not be picked (not ready, failing,
        # full), refuses in a sentence where nobody is left, and finds a prefill worker for one that only decodes.
        # Left to us is the order of those that remain.
        return pick_ranked(self, request, view, now, seed)

    def rank(self, request: Request, view: FleetView, slots: np.ndarray, now: float, seed: int) -> Ranking:
        """One score for each slot, the lower the better, and the index of the best."""
        # A fleet is columns: one row for each worker, and slots are row numbers. So there is no loop over workers.
        waiting = np.nan_to_num(view.pending[slots])  # prefills before ours: requests, tokens, sums of squares

        # Tokens of this prompt that each worker has cached already; None where nobody can tell.
        cached = view.cached_tokens(request)
        known = np.zeros(len(slots)) if cached is None else cached[slots]
        prompt = float(request.prompt_tokens)
        own = np.column_stack((np.ones(len(slots)), prompt - known, prompt**2 - known**2))

        # Profiles: prefill ms = a + b * tokens + c * squares. A worker without one counts as one millisecond a token.
        speed = np.where(np.isnan(view.prefill_ms[slots]), (0.0, 1.0, 0.0), view.prefill_ms[slots])
        soonest = ((waiting + own) * speed).sum(axis=1)

        # Equals take turns. Without this the first of them would get every request of a quiet hour.
        best, alone = in_turn(soonest, slots, view, seed)
        return Ranking(soonest, best, PickReason.LEAST_OUTSTANDING if alone else PickReason.LEAST_RECENTLY_PICKED)
