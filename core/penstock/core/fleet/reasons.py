"""Why things happen to requests and workers, in one file.

Metrics label, logs, error bodies and `Explain` all use these words, so that a reason seen in one
place can be searched for in another. A reason is CamelCase, as Kubernetes reasons are.
"""

from enum import StrEnum


class PickReason(StrEnum):
    """Why a worker was picked."""

    ONLY_CANDIDATE = "OnlyCandidate"
    """No other worker could have been picked."""
    LEAST_RECENTLY_PICKED = "LeastRecentlyPicked"
    """Its turn came (RoundRobin, and ties of any other policy)."""
    LEAST_OUTSTANDING = "LeastOutstanding"
    """It has the fewest outstanding tokens."""
    LEAST_COST = "LeastCost"
    """It meets the objectives at the least marginal cost."""
    LEAST_VIOLATION = "LeastViolation"
    """No worker meets the objectives; it has the least marginal cost, with what it makes others wait."""
    LEAST_HARM = "LeastHarm"
    """No worker meets the objectives; it meets the time per token for nobody, so nobody there has anything to lose."""
    PREFIX_OWNER = "PrefixOwner"
    """The prompt's first blocks belong to it."""
    OWNER_BUSY = "OwnerBusy"
    """The prompt's first blocks belong to another worker, which has more than its share already."""
    DRAWN = "Drawn"
    """It was drawn by lot."""


class RejectReason(StrEnum):
    """Why a request was refused before any worker saw it."""

    NO_WORKERS = "NoWorkers"
    """The model is served here, but no worker of it is ready."""
    WORKERS_BUSY = "WorkersBusy"
    """Every ready worker has as many requests as it may have."""
    DEADLINE_PASSED = "DeadlinePassed"
    """The request's own deadline passed before a worker could be picked."""
    RETRIES_EXHAUSTED = "RetriesExhausted"
    """Every attempt failed before the first byte."""


class Failure(StrEnum):
    """How an attempt at a worker ended without a usable response."""

    CONNECT_REFUSED = "ConnectRefused"
    CONNECT_TIMEOUT = "ConnectTimeout"
    STALE_CONNECTION = "StaleConnection"
    """A kept connection had been closed by the worker: says nothing about the worker's health."""
    RESET = "Reset"
    """The connection ended before the response was whole."""
    BAD_RESPONSE = "BadResponse"
    """What came back was not HTTP."""
    RESPONSE_TIMEOUT = "ResponseTimeout"
    UNAVAILABLE = "Unavailable"
    """The worker answered 503: it did not take the request (for instance because it drains)."""
    WORKER_GONE = "WorkerGone"
    """The worker's pod is gone."""
