"""What became of one request, as its client saw it."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Verdict(StrEnum):
    """How a request ended."""

    COMPLETED = "Completed"
    """Answered to its end."""
    REJECTED = "Rejected"
    """Turned away at the door, before any work (429, 503): the client may come again."""
    FAILED = "Failed"
    """Anything else: refused as wrong, cut, timed out, or the server was not there."""


class Outcome(Struct, frozen=True, gc=False):
    """One request's outcome. Times are seconds; None where the request never got so far."""

    index: int
    verdict: Verdict
    sent_s: float
    """When it was sent, from the start of the run."""
    lag_s: float
    """How much later than its arrival in the trace it was sent."""
    ttft_s: float | None = None
    """From sending to the first byte of content."""
    e2e_s: float | None = None
    """From sending to the end of the answer, or of the attempt."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Prompt tokens that the engine says it found in its prefix cache; None when it does not say."""
    output_tokens: int | None = None
    asked_tokens: int = 0
    error: str | None = None
    """The kind of error, few and comparable (`Http503`, `ConnectRefused`, ...)."""
    detail: str | None = None
    """The error in the server's or the system's own words."""

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first one; None where it is not known or there is only one."""
        if self.ttft_s is None or self.e2e_s is None or self.output_tokens is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)

    def meets(self, ttft_s: float, tpot_s: float) -> bool:
        """Whether it completed within both objectives; a single token has no TPOT to miss."""
        if self.verdict is not Verdict.COMPLETED or self.ttft_s is None or self.ttft_s > ttft_s:
            return False
        if self.output_tokens is None:
            return False
        return self.output_tokens < 2 or (self.tpot_s is not None and self.tpot_s <= tpot_s)
