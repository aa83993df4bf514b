"""Two scenarios side by side: the same seeds for both, so that what chance does to one it does to the other.

The difference is taken seed by seed and its confidence interval is that of the pairs, which is far narrower than the
difference of two intervals where both see the same arrivals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.simulator.study import METRICS, Metric, Spread

__all__ = ["Compared", "Figures", "Outcome", "compare"]

Outcome = str
"""`better`, `worse`, `equal` or `unsure`, of the second against the first."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric of two scenarios."""

    metric: Metric
    first: Spread
    second: Spread
    difference: Spread
    """Second less first, over pairs of one seed."""

    @property
    def ratio(self) -> float | None:
        """Second over first, of the means; None where the first is 0."""
        return self.second.mean / self.first.mean if self.first.mean else None

    @property
    def verdict(self) -> Outcome:
        """What may be said of the second one: sure only where the whole interval of the difference is on one side."""
        gap = self.difference
        if not any(gap.values):
            return "equal"
        if gap.low is None or gap.high is None or gap.low <= 0.0 <= gap.high:
            return "unsure"
        return "better" if (gap.mean > 0) == self.metric.higher_is_better else "worse"


Figures = Mapping[str, tuple[float, ...]]
"""Values of metrics over seeds, as `study.figures_of` gives them."""


def compare(first: Figures, second: Figures) -> tuple[Compared, ...]:
    """Every metric that both have. Raises ValueError where they are not of equally many runs, or share no metric."""
    found = []
    for metric in METRICS:
        ours, theirs = first.get(metric.name), second.get(metric.name)
        if ours is None or theirs is None:
            continue
        if len(ours) != len(theirs):
            raise ValueError(f"cannot pair {len(ours)} runs with {len(theirs)}; give both the same seeds")
        gaps = [other - one for one, other in zip(ours, theirs, strict=True)]
        found.append(Compared(metric, Spread.of(ours), Spread.of(theirs), Spread.of(gaps)))
    if not found:
        raise ValueError("the two have no metric in common; were there any requests?")
    return tuple(found)
