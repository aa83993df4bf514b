"""What the router decides, as pure functions: picks, retries, ejection, the life of a request.

Nothing here opens a socket, reads a clock or draws a random number; times and seeds are arguments.
"""

from penstock.router.decisions.life import (
    Action,
    Answered,
    Attempt,
    Cut,
    Ended,
    Event,
    Failed,
    Life,
    PassOn,
    Pause,
    Prefill,
    Prefilled,
    Refuse,
    Resumed,
    SplitLimits,
    SplitReason,
    Transfer,
    live,
)
from penstock.router.decisions.policies import (
    DEFAULT_POLICY,
    POLICIES,
    Policy,
    UnknownPolicy,
    find_policy,
    reads_prompts,
)
from penstock.router.decisions.retries import RetryLimits

__all__ = [
    "DEFAULT_POLICY",
    "POLICIES",
    "Action",
    "Answered",
    "Attempt",
    "Cut",
    "Ended",
    "Event",
    "Failed",
    "Life",
    "PassOn",
    "Pause",
    "Policy",
    "Prefill",
    "Prefilled",
    "Refuse",
    "Resumed",
    "RetryLimits",
    "SplitLimits",
    "SplitReason",
    "Transfer",
    "UnknownPolicy",
    "find_policy",
    "live",
    "reads_prompts",
]
