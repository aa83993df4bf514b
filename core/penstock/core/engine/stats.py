"""The counters of an engine, one for each figure that vLLM's metrics show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec import Struct

__all__ = ["Counters", "EngineLoad", "EngineStats", "PromptSources"]


@dataclass(frozen=True, slots=True)
class PromptSources:
    """Prompt tokens by where their KV came from (`vllm:prompt_tokens_by_source`)."""

    local_compute: int
    local_cache_hit: int
    external_kv_transfer: int


class EngineLoad(NamedTuple):
    """The few figures of `EngineStats` that a router looks at."""

    running: int
    waiting: int
    kv_usage: float


class EngineStats(Struct, frozen=True):
    """A snapshot. Gauges are now, all else since the engine was made."""

    running: int
    waiting: int
    """Waiting for room (`capacity`) and for KV from elsewhere (`deferred`) together."""
    waiting_capacity: int
    waiting_deferred: int
    held: int
    """Finished sequences whose KV is kept under a lease."""
    kv_usage: float
    """Share of the blocks in use, 0 to 1."""
    prefix_queries: int
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int
    external_queries: int
    """Prompt tokens asked for from another engine."""
    external_hits: int
    preemptions: int
    prompt_tokens: int
    """Prompt tokens of sequences that have their first token."""
    prompt_tokens_by_source: PromptSources
    generation_tokens: int
    steps: int
    step_tokens: int
    """Tokens computed by all steps."""
    finished: dict[str, int]
    """Ended sequences by reason."""
    leases_expired: int
    transfers_failed: int
    swapped: int = 0
    """Of those waiting for room: preempted with their KV in host memory."""
    host_usage: float = 0.0
    """Share of the host's blocks in use, 0 to 1."""
    blocks_swapped_out: int = 0
    blocks_swapped_in: int = 0


@dataclass(slots=True)
class Counters:
    """The running totals behind `EngineStats`; only ever added to."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    external_queries: int = 0
    external_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    external_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    step_tokens: int = 0
    leases_expired: int = 0
    transfers_failed: int = 0
    blocks_swapped_out: int = 0
    blocks_swapped_in: int = 0
    finished: dict[str, int] = field(default_factory=dict)

    def sources(self) -> PromptSources:
        """Every prompt token has exactly one source."""
        computed = self.prompt_tokens - self.cached_tokens - self.external_tokens
        return PromptSources(computed, self.cached_tokens, self.external_tokens)
