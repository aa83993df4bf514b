"""What goes into an engine and what comes out of it: one sequence, its tokens, its end.

Made for every request: frozen structs cost a tenth of frozen dataclasses to make, and with `gc=False` nothing to keep:
none of them can be part of a cycle.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

__all__ = ["FinishReason", "Finished", "Held", "Sequence", "Timing", "Token"]


class FinishReason(StrEnum):
    """Why a sequence ended, as OpenAI and vLLM name it."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class Sequence(Struct, frozen=True, gc=False):
    """One request as the engine sees it: lengths and block hashes, no text."""

    id: str
    prompt_tokens: int
    max_tokens: int
    """Output tokens after which it ends with reason `length`."""
    stop_after: int | None = None
    """Output tokens after which the model stops by itself (reason `stop`); None: it never does."""
    block_hashes: tuple[int, ...] = ()
    """Chained hash of each whole block of the prompt, in order; fewer mean that the rest is not cached."""
    priority: int = 0
    """Lower runs first; heeded under the policy `priority` only."""
    arrival: float | None = None
    """When the client's request came, in seconds of the caller's clock; None: when it is added."""
    lease_seconds: float | None = None
    """Set on a prefill leg: its KV stays after the end, until released or this long after it."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.max_tokens < 1:
            raise ValueError(
                f"sequence {self.id}: {self.prompt_tokens} prompt tokens and max_tokens {self.max_tokens}; "
                "both must be at least 1"
            )
        if self.stop_after is not None and self.stop_after < 1:
            raise ValueError(f"sequence {self.id}: stop_after is {self.stop_after}; must be at least 1")
        if self.lease_seconds is not None and self.lease_seconds <= 0:
            raise ValueError(f"sequence {self.id}: a lease of {self.lease_seconds} s holds nothing; give more than 0")


class Token(NamedTuple):
    """One output token of a sequence."""

    id: str
    number: int
    """0 for the first output token."""
    interval: float
    """Seconds since the sequence's previous token; for the first since its arrival."""


class Timing(Struct, frozen=True, gc=False):
    """When things happened to a sequence, in seconds of the caller's clock; None: it never came so far."""

    arrival: float
    scheduled: float | None
    first_token: float | None
    finished: float

    @property
    def queue_seconds(self) -> float:
        """Arrival to first being scheduled; to the end for one that never was."""
        return (self.finished if self.scheduled is None else self.scheduled) - self.arrival

    @property
    def prefill_seconds(self) -> float | None:
        """First scheduled to first token."""
        return None if self.first_token is None or self.scheduled is None else self.first_token - self.scheduled

    @property
    def decode_seconds(self) -> float | None:
        """First token to the end."""
        return None if self.first_token is None else self.finished - self.first_token


class Held(NamedTuple):
    """KV kept for another engine to fetch."""

    id: str
    tokens: int
    until: float
    """End of the lease, in seconds of the caller's clock."""


class Finished(Struct, frozen=True, gc=False):
    """The end of a sequence."""

    id: str
    reason: FinishReason
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    """Prompt tokens found in this engine's prefix cache when it was first scheduled."""
    remote_tokens: int
    """Prompt tokens whose KV came from another engine."""
    preemptions: int
    timing: Timing
    held: Held | None = None
