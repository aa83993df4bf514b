"""How much counters grew, when the process that counts may have started again in between.

A counter that is lower than before was reset: all it shows was counted since. What was counted between the last look
and the reset is lost, so an increase is a lower bound and never negative.
"""

from collections.abc import Sequence
from itertools import pairwise


def increase(points: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Growth of counters that live in one process, over successive readings of all of them.

    When any of them fell the process was started again, so all of them were reset. Raises ValueError
    for fewer than two readings: one reading says nothing about growth.
    """
    if len(points) < 2:
        raise ValueError(f"an increase needs two readings, got {len(points)}")
    sums = [0.0] * len(points[0])
    for before, after in pairwise(points):
        reset = any(new < old for old, new in zip(before, after, strict=True))
        for at, (old, new) in enumerate(zip(before, after, strict=True)):
            sums[at] += new if reset else new - old
    return tuple(sums)
