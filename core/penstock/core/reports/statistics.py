"""Means and percentiles of measured times, where no measurement is not a zero."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Summary:
    """A sample's mean and percentiles, in the sample's unit; every field is None when the sample is empty."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, sample: Iterable[float]) -> Summary:
        """Summarise a sample; a percentile between two measurements is interpolated linearly."""
        values = np.fromiter(sample, dtype=np.float64)
        if values.size == 0:
            return cls(None, None, None, None)
        p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
        return cls(float(values.mean()), p50, p90, p99)
