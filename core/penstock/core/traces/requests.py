"""One request of a trace, and a trace: the form that every source is turned into.

Arrivals are seconds from the start of the trace, so that a wall clock and a virtual clock can both play it.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_BLOCK_TOKENS = 512
"""Tokens one prefix block stands for where the source does not say; what the Mooncake traces use."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """What one client asked for.

    `prefix_blocks` names runs of `Trace.block_tokens` prompt tokens from the prompt's start: two requests
    whose lists begin alike have prompts that begin alike. The list may be empty (nothing is known to be
    shared), shorter than the prompt (the rest is its own) or end in a block that the prompt fills in part.
    Prefixes are shared within one `model` only: the blocks of two models must have different names.
    """

    arrival_s: float
    input_tokens: int
    output_tokens: int
    prefix_blocks: tuple[int, ...] = ()
    tenant: str = ""
    """Whose request it is; empty where nobody said."""
    priority: int = 0
    """A lower number goes first, as in vLLM."""
    model: str = ""
    """The model or adapter asked for; empty: the only one."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their arrival, the first one at 0 s unless the trace was shaped."""

    requests: tuple[TraceRequest, ...]
    block_tokens: int = DEFAULT_BLOCK_TOKENS

    @property
    def duration_s(self) -> float:
        """Seconds from the trace's start to its last arrival; 0 for an empty trace."""
        return self.requests[-1].arrival_s if self.requests else 0.0

    @property
    def input_tokens(self) -> int:
        """Prompt tokens of all requests together."""
        return sum(request.input_tokens for request in self.requests)

    @property
    def output_tokens(self) -> int:
        """Output tokens of all requests together."""
        return sum(request.output_tokens for request in self.requests)

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest request, prompt and output together; 0 for an empty trace."""
        return max((request.input_tokens + request.output_tokens for request in self.requests), default=0)

    @property
    def shares_prefixes(self) -> bool:
        """Whether any request says what its prompt shares."""
        return any(request.prefix_blocks for request in self.requests)
