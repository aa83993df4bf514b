"""A measured number together with how much it can be trusted.

Missing data is not zero. A bare float cannot say "never measured" or "measured a minute ago", and every
autoscaler that could not tell the difference has scaled a healthy pool to nothing. So a measured value
travels as a `Signal`, and whoever uses it must ask.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Signal:
    """A value, its age in seconds and the share of its sources (0..1) that contributed."""

    value: float
    age: float
    coverage: float

    def __post_init__(self) -> None:
        """Refuse what would later be mistaken for a measurement."""
        if self.age < 0:
            raise ValueError(f"signal age must not be negative, got {self.age}; check that one clock made both times")
        if not 0.0 <= self.coverage <= 1.0:
            raise ValueError(f"signal coverage must be between 0 and 1, got {self.coverage}")

    @property
    def known(self) -> bool:
        """Whether anything was measured at all."""
        return self.coverage > 0.0 and not math.isnan(self.value)

    def fresh(self, max_age: float) -> bool:
        """Whether the value is known and no older than `max_age` seconds."""
        return self.known and self.age <= max_age


UNKNOWN = Signal(value=math.nan, age=math.inf, coverage=0.0)
"""Nothing was ever measured."""


def total(signals: Iterable[Signal]) -> Signal:
    """Sum of the known signals; as old as the oldest of them; coverage is the share that is known.

    With nothing known the sum is `UNKNOWN`, not zero.
    """
    everything = list(signals)
    known = [s for s in everything if s.known]
    if not known:
        return UNKNOWN
    return Signal(
        value=math.fsum(s.value for s in known),
        age=max(s.age for s in known),
        coverage=len(known) / len(everything),
    )
