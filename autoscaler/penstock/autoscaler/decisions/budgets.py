"""Growth cut to what may be held: accelerators and money, counted over every pod object that holds some.

A pool holds what its pods hold, those on their way out included, and what it was or is asked to have: a scale-in that
was asked for in this cycle gives nothing back yet. Growth is cut one worker at a time where it has come furthest, so
that prefill and decode lose the same share of their way.
"""

from collections.abc import Callable, Mapping, Sequence

from penstock.autoscaler.decisions.snapshot import PoolView

Weigh = Callable[[PoolView], float]
_TOLERANCE = 1e-9


def held(pool: PoolView, replicas: int) -> int:
    """Workers' worth of accelerators the pool may hold at some instant after being asked for `replicas`."""
    return max(replicas, pool.replicas, pool.pods.live) + pool.pods.terminating


def total_held(pools: Sequence[PoolView], moves: Mapping[str, int], weigh: Weigh) -> float:
    """What all pools may hold together."""
    return sum(held(pool, moves[pool.name]) * weigh(pool) for pool in pools)


def cut_growth(pools: Sequence[PoolView], moves: Mapping[str, int], limit: float, weigh: Weigh) -> dict[str, int]:
    """`moves` with growth taken back until the limit holds, or no growth is left."""
    cut = dict(moves)
    while total_held(pools, cut, weigh) > limit + _TOLERANCE:
        growing = [p for p in pools if cut[p.name] > p.replicas and weigh(p) > 0]
        if not growing:
            break
        cut[_furthest(growing, cut, moves).name] -= 1
    return cut


def cut_to_fit(
    pools: Sequence[PoolView], moves: Mapping[str, int], least: Mapping[str, int], limit: float, weigh: Weigh
) -> dict[str, int]:
    """`moves` lowered, not below `least`, until what is asked for fits the limit: a budget that was lowered."""
    cut = dict(moves)
    while sum(cut[p.name] * weigh(p) for p in pools) > limit + _TOLERANCE:
        lowerable = [p for p in pools if cut[p.name] > least[p.name] and weigh(p) > 0]
        if not lowerable:
            break
        fullest = max(lowerable, key=lambda p: ((cut[p.name] - 1) / max(1, moves[p.name]), p.name))
        cut[fullest.name] -= 1
    return cut


def _furthest(growing: Sequence[PoolView], cut: Mapping[str, int], moves: Mapping[str, int]) -> PoolView:
    """The growing pool that has come furthest on its way: one that got its whole wish before one that got none."""

    def share(pool: PoolView) -> tuple[float, str]:
        return (cut[pool.name] - pool.replicas) / (moves[pool.name] - pool.replicas), pool.name

    return max(growing, key=share)
