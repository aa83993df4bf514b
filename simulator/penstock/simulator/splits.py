"""How a budget is split between prefill and decode machines: a search that mostly asks whether a split beats the best.

What a split bears is costly to find out; whether it bears a little more than the best one so far takes one run. So
splits are tried from the middle outwards, each only beyond what the best one bears, and the limit is searched only of
those that pass; then the neighbours of the winner are tried in smaller steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from penstock.simulator.capacity import Verdict, capacity

__all__ = ["BestSplit", "best_split"]

Plays = Callable[[float, float], Verdict]
"""(share of the budget for prefill, requests per second) -> whether the objectives hold."""

_STRIDE = 1.3  # A limit is first passed in strides, because runs far beyond it are the slowest of all.


@dataclass(frozen=True, slots=True)
class BestSplit:
    """The winner of a search, and what it took."""

    share: float
    """Of the budget for prefill, 0 to 1."""
    rate: float
    """Requests per second it bears, in the search's own runs; 0.0 when no split holds the lowest rate."""
    tried: int
    """Splits that were looked at."""


def best_split(
    plays: Plays, low: float, high: float, *, tolerance: float = 0.05, step: float = 0.1, fine: float = 0.03
) -> BestSplit:
    """The share for prefill with the highest capacity between `low` and `high` requests per second.

    `step` is between the shares of the first round, `fine` between those of the second, which lie within one `step` of
    the winner. Of splits within `tolerance` the one nearer to a half wins. ValueError for steps outside (0, 0.5).
    """
    if not 0 < fine <= step < 0.5:
        raise ValueError(f"cannot search splits in steps of {step} and {fine}; give 0 < fine <= step < 0.5")
    best, tried = BestSplit(0.5, 0.0, 0), 0
    for share in _outwards(0.5, step, 0.5):
        best, tried = _better(best, share, plays, low, high, tolerance), tried + 1
    centre = best.share
    for share in _outwards(centre, fine, step):
        if share != centre:
            best, tried = _better(best, share, plays, low, high, tolerance), tried + 1
    return BestSplit(best.share, best.rate, tried)


def _better(best: BestSplit, share: float, plays: Plays, low: float, high: float, tolerance: float) -> BestSplit:
    """Whichever of the two bears more; this share is asked for its limit only where it can."""
    beyond = low if best.rate == 0.0 else best.rate * (1 + tolerance)
    if beyond >= high:
        return best
    known = cache(lambda rate: plays(share, rate))
    if not known(beyond).holds:
        return best
    top = beyond
    while known(top).holds:
        if top >= high:
            return BestSplit(share, high, 0)
        beyond, top = top, min(top * _STRIDE, high)
    return BestSplit(share, capacity(lambda rate, _: known(rate), beyond, top, tolerance), 0)


def _outwards(centre: float, step: float, width: float) -> Iterator[float]:
    """The centre and what lies within `width` of it, in steps, nearest first, strictly between 0 and 1."""
    yield centre
    for number in range(1, round(width / step) + 1):
        for share in (centre - number * step, centre + number * step):
            if 0.0 < share < 1.0:
                yield share
