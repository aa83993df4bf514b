"""The range of a pool over its accelerator classes: how the sum's bounds become bounds of each WorkerPool.

`min` and `max` of a pool bound the sum over its classes. Each WorkerPool's own bounds are what the others leave, so
that the API server itself refuses a `kubectl scale` that would break the sum, in a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """One WorkerPool's part of its pool's range."""

    replicas: int
    """What its replicas must be; differs from what they are only where the range demands it."""
    least: int
    most: int


def shares(least: int, most: int, current: Sequence[int | None]) -> list[Share]:
    """Bounds and replicas of each class of a pool, in the spec's order of preference.

    `current` holds the replicas of each WorkerPool; None where none was set yet. New WorkerPools start with what the
    others lack of `least`, the first one first. Too many are taken from the last, too few given to the first.
    """
    replicas = [0 if value is None else value for value in current]
    missing = least - sum(replicas)
    if missing > 0:
        fresh = next((i for i, value in enumerate(current) if value is None), 0)
        replicas[fresh] += missing
    _take(replicas, sum(replicas) - most)
    total = sum(replicas)
    return [
        # The API wants a maximum of at least 1; where the others use the range up, the sum is mended afterwards.
        Share(value, max(0, least - (total - value)), max(1, most - (total - value)))
        for value in replicas
    ]


def _take(replicas: list[int], excess: int) -> None:
    for index in reversed(range(len(replicas))):
        taken = min(replicas[index], max(0, excess))
        replicas[index] -= taken
        excess -= taken
