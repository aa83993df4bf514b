"""What a failed attempt means: for the request (again, elsewhere?) and for the worker (trusted?).

A request may go to another worker only while no byte of a response has reached the client; the caller
guarantees that. How often and how soon is data; jitter comes from the seed, never from a random source.
"""

from dataclasses import dataclass

from penstock.core.fleet import Failure

_WORKERS_FAULT = frozenset(
    {
        Failure.CONNECT_REFUSED,
        Failure.CONNECT_TIMEOUT,
        Failure.RESET,
        Failure.BAD_RESPONSE,
        Failure.RESPONSE_TIMEOUT,
    }
)
"""Failures that count towards ejection. A stale connection, a 503 and a deleted pod say nothing bad."""


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """How often a request is tried and how a failing worker is kept out. Times in seconds."""

    attempts: int = 4
    """Attempts in all, the first included."""
    backoff: float = 0.05
    """Pause before the third attempt; doubles with each further one. The second goes at once."""
    max_backoff: float = 2.0
    eject_after: int = 3
    """Failures in a row after which a worker is ejected."""
    ejection: float = 2.0
    """First ejection; doubles with each further failure."""
    max_ejection: float = 30.0
    continuations: int = 3
    """How often a response that broke after its first byte is continued elsewhere."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Whether to try again, and after which pause (seconds)."""

    again: bool
    delay: float = 0.0


def retry_after(attempt: int, now: float, deadline: float | None, limits: RetryLimits, seed: int) -> Retry:
    """Decide on attempt number `attempt` (from 1) having failed before its first byte.

    The first retry is immediate, since it goes to another worker; later ones wait with full jitter in the
    upper half, so that requests that failed together do not come back together.
    """
    if attempt >= limits.attempts:
        return Retry(again=False)
    delay = 0.0
    if attempt >= 2:
        ceiling = min(limits.max_backoff, limits.backoff * 2.0 ** (attempt - 2))
        delay = ceiling * (0.5 + 0.5 * unit_interval(seed, attempt))
    if deadline is not None and now + delay >= deadline:
        return Retry(again=False)
    return Retry(again=True, delay=delay)


def ejection_after(failure: Failure, failures: int, limits: RetryLimits, seed: int) -> float | None:
    """Seconds to keep a worker out after its `failures`-th failure in a row; `None` to leave it in."""
    if failure not in _WORKERS_FAULT or failures < limits.eject_after:
        return None
    longest = min(limits.max_ejection, limits.ejection * 2.0 ** min(failures - limits.eject_after, 16))
    return longest * (0.75 + 0.25 * unit_interval(seed, failures))


def blames_worker(failure: Failure) -> bool:
    """Whether a failure counts against the worker."""
    return failure in _WORKERS_FAULT


def unit_interval(seed: int, salt: int) -> float:
    """A number in [0, 1) that looks random and depends on nothing but its arguments (splitmix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + salt * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return ((z ^ (z >> 31)) >> 11) / float(1 << 53)
