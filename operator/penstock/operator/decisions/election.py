"""Who may write: leader election over one Lease, as a pure function of what was seen of it and when.

A contender never compares clocks with another machine. It times, by its own monotonic clock, how long the Lease has
not changed; only after a whole lease duration without a change it may take over. A leader stops writing when its last
successful renewal is older than the renew deadline, which is shorter than the lease: so two leaders never overlap as
long as clocks run at the same speed within (lease - deadline) / lease.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LEASE_S = 15.0
RENEW_DEADLINE_S = 10.0
RETRY_S = 2.0

Step = Literal["create", "renew", "take over", "wait"]


@dataclass(frozen=True, slots=True)
class LeaseSeen:
    """A Lease as last read. An empty `holder` was released; `seen_at` is when this version was first seen."""

    holder: str
    version: str
    duration_s: float
    transitions: int
    seen_at: float


def step(identity: str, lease: LeaseSeen | None, now: float) -> Step:
    """What a contender does next. `now` and `lease.seen_at` in seconds of one monotonic clock."""
    if lease is None:
        return "create"
    if lease.holder == identity:
        return "renew"
    if not lease.holder or now - lease.seen_at > lease.duration_s:
        return "take over"
    return "wait"


def may_write(renewed_at: float | None, now: float) -> bool:
    """Whether a contender whose last successful renewal began at `renewed_at` is still the leader for sure."""
    return renewed_at is not None and now - renewed_at < RENEW_DEADLINE_S
