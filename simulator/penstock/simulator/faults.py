"""What goes wrong in a simulated cluster, and when, as data. Workers go by their numbers, from 0."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Crash", "Fault", "LostEvents", "Partition", "Slow", "Throttle", "Timeouts"]


@dataclass(frozen=True, slots=True)
class Crash:
    """A worker's engine dies; its container restarts by itself."""

    at_s: float
    worker: int
    """Its number, from 0, in the order of pools or of node groups."""


@dataclass(frozen=True, slots=True)
class _Spell:
    """A fault that lasts from `at_s` up to `until_s`."""

    at_s: float
    until_s: float
    worker: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.at_s < self.until_s:
            raise ValueError(
                f"{type(self).__name__} of worker {self.worker}: {self.at_s} to {self.until_s} s is no time; "
                "it must begin at 0 s or later and end after that"
            )


@dataclass(frozen=True, slots=True)
class Slow(_Spell):
    """Every pass takes `factor` times as long (a bad rank, a noisy neighbour); one under way ends as it would have."""

    factor: float

    def __post_init__(self) -> None:
        _Spell.__post_init__(self)
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ValueError(f"Slow of worker {self.worker}: factor {self.factor}; give a number above 0")


@dataclass(frozen=True, slots=True)
class Throttle(_Spell):
    """The clock is held at a share of its maximum: prefill suffers, decode hardly, watts fall (`core.models.power`)."""

    clock: float

    def __post_init__(self) -> None:
        _Spell.__post_init__(self)
        if not 0.0 < self.clock <= 1.0:
            raise ValueError(f"Throttle of worker {self.worker}: clock {self.clock}; give a share above 0, at most 1")


@dataclass(frozen=True, slots=True)
class Partition(_Spell):
    """A worker cannot be reached, though it runs: connections hang, what it says arrives when they work again."""

    router: bool = True
    """Whether the router is cut off from it: requests, answers, samples and cache events."""
    peers: bool = True
    """Whether KV transfers with it stand still."""
    peer: int | None = None
    """The one worker that transfers stand still with; None: all."""

    def __post_init__(self) -> None:
        _Spell.__post_init__(self)
        if self.peer is not None and not self.peers:
            raise ValueError(f"Partition of worker {self.worker}: a peer is named and peers is false; drop one")


@dataclass(frozen=True, slots=True)
class LostEvents(_Spell):
    """A worker's cache events do not reach the router's index."""

    replayed: bool = True
    """Whether the gap is replayed at its end; else the index forgets the worker's blocks then, and learns new ones."""


Fault = Crash | Slow | Throttle | Partition | LostEvents


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the router and the engines wait for somebody who cannot be reached, in seconds; the gateway's own."""

    connect_s: float = 2.0
    """For a connection to a worker."""
    response_s: float = 600.0
    """For the first byte of an answer."""
    silence_s: float = 300.0
    """In the middle of an answer."""
    transfer_s: float = 5.0
    """A decode worker for KV that does not come."""

    def __post_init__(self) -> None:
        for name in ("connect_s", "response_s", "silence_s", "transfer_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"time-out {name} is {getattr(self, name)}; give more than 0 s")
