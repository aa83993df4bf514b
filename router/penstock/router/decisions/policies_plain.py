"""Policies that look at load or at nothing: RoundRobin, LeastLoaded, PowerOfTwo, Random."""

import numpy as np
from penstock.core.fleet import FleetView, Pick, PickReason, Rejection, Request, Slots
from penstock.router.decisions.loads import outstanding_tokens
from penstock.router.decisions.policies_common import TURN, Ranking, in_turn, lowest, pick_ranked
from penstock.router.decisions.policies_hash import drawn

_LEAST, _DRAWN = PickReason.LEAST_OUTSTANDING, PickReason.DRAWN


class RoundRobin:
    """Each worker in turn: the one picked longest ago goes first."""

    name = "RoundRobin"
    unit = "turn"

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Pick the worker whose last pick lies furthest back; `seed` orders those never picked."""
        return pick_ranked(self, request, view, now, seed)

    def rank(self, request: Request, view: FleetView, slots: Slots, now: float, seed: int) -> Ranking:
        """By last pick."""
        turns = view.last_pick[slots]
        return Ranking(turns, lowest(turns, seed), TURN)


class LeastLoaded:
    """The worker that owes the fewest tokens; equals take turns."""

    name = "LeastLoaded"
    unit = "tokens"

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Pick the worker with the fewest outstanding tokens (see `loads`)."""
        return pick_ranked(self, request, view, now, seed)

    def rank(self, request: Request, view: FleetView, slots: Slots, now: float, seed: int) -> Ranking:
        """By outstanding tokens."""
        loads = outstanding_tokens(view, slots, now)
        best, alone = in_turn(loads, slots, view, seed)
        return Ranking(loads, best, _LEAST if alone else TURN)


class PowerOfTwo:
    """Of two workers drawn by lot the one that owes fewer tokens: nearly as good as knowing all, with no herd."""

    name = "PowerOfTwo"
    unit = "tokens"

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Pick the less loaded of the two that `seed` draws; scores of those not drawn are infinite."""
        return pick_ranked(self, request, view, now, seed)

    def rank(self, request: Request, view: FleetView, slots: Slots, now: float, seed: int) -> Ranking:
        """Two by lot, then by outstanding tokens."""
        lots = drawn(view, slots, seed)
        two = np.argpartition(lots, 1)[:2] if slots.size > 2 else np.arange(slots.size)
        loads = np.full(slots.size, np.inf)
        loads[two] = outstanding_tokens(view, slots, now)[two]
        best, alone = in_turn(loads, slots, view, seed)
        return Ranking(loads, best, _LEAST if alone else TURN)


class Random:
    """Any worker, by lot."""

    name = "Random"
    unit = "lot"

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """Pick the worker with the lowest of the lots that `seed` draws for each."""
        return pick_ranked(self, request, view, now, seed)

    def rank(self, request: Request, view: FleetView, slots: Slots, now: float, seed: int) -> Ranking:
        """By lot."""
        lots = drawn(view, slots, seed)
        return Ranking(lots, int(lots.argmin()), _DRAWN)
