"""In which order plans are tried when there are too many to try them all.

A plan with workers of several classes is worth about what its classes are worth, each for itself. So besides the plans
that promise most, those are tried next that differ from the best so far in what stands on one class's nodes: the best
of each class is found without trying all that can be combined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from penstock.simulator.planning.candidates import Plan, PlanPool

__all__ = ["PATIENCE", "Line"]

_AT_ONCE = 4  # The same on every machine, so that the result does not depend on the cores.
PATIENCE = 16
"""Plans tried in vain until a search ends whose best plans have no neighbours left."""


class Line:
    """Numbers of plans, in the order in which to try them."""

    def __init__(self, plans: Sequence[Plan], promised: Sequence[float], patience: int = PATIENCE) -> None:
        """`promised` is about what each plan holds; of equals the cheaper should be the first of `plans`."""
        self._layouts = [_by_class(plan) for plan in plans]
        self._left = sorted(range(len(plans)), key=lambda number: (-promised[number], number))
        self._best: tuple[int, ...] = ()
        self._vain, self._patience = 0, patience

    @property
    def left(self) -> int:
        """How many were not given out."""
        return len(self._left)

    def next(self, best: Sequence[int], most: int) -> list[int]:
        """Some that are worth a try, at most so many; none when it is time to end. `best` are the best so far."""
        if tuple(best) != self._best:
            self._best, self._vain = tuple(best), 0
        count = min(_AT_ONCE if best else 2, most)
        near = list(self._neighbours(count))
        if not near and self._vain >= self._patience:
            return []
        # Half of them are what promises most, since neighbours lead to a best of their neighbourhood only.
        first = [*near[: count // 2], *self._left[: count - count // 2]]
        some = list(dict.fromkeys([*first, *near, *self._left[:count]]))[:count]
        self._left = [number for number in self._left if number not in some]
        self._vain += len(some)
        return some

    def _neighbours(self, count: int) -> Iterator[int]:
        found = (
            number
            for number in self._left
            if any(_differ(self._layouts[number], self._layouts[other]) == 1 for other in self._best)
        )
        return (number for number, _ in zip(found, range(count), strict=False))


def _by_class(plan: Plan) -> dict[str, tuple[PlanPool, ...]]:
    found: dict[str, tuple[PlanPool, ...]] = {}
    for pool in plan.pools:
        found[pool.cell.accelerator] = (*found.get(pool.cell.accelerator, ()), pool)
    return found


def _differ(one: dict[str, tuple[PlanPool, ...]], other: dict[str, tuple[PlanPool, ...]]) -> int:
    """On how many classes' nodes something else stands."""
    return sum(one.get(name) != other.get(name) for name in {*one, *other})
