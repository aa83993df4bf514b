"""The limits of one engine, with vLLM's names and meanings, so that a flag of a real engine is a field here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["EngineConfig", "SchedulingPolicy"]


class SchedulingPolicy(StrEnum):
    """Order of the waiting queue and, reversed, of preemption."""

    FCFS = "fcfs"
    PRIORITY = "priority"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What bounds the batches of one engine."""

    num_blocks: int
    """KV cache size in blocks, all of them usable."""
    block_size: int = 16
    """Tokens per block."""
    max_num_batched_tokens: int = 8192
    """Most tokens one step computes, prompt and decode together."""
    max_num_seqs: int = 256
    """Most sequences in one step."""
    max_model_len: int = 8192
    """Longest sequence in tokens, prompt and output together."""
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    """Whether a prompt may be computed over several steps; without it the token budget must hold the longest prompt."""
    policy: SchedulingPolicy = SchedulingPolicy.FCFS

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_size", "max_num_batched_tokens", "max_num_seqs", "max_model_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"engine {name} is {getattr(self, name)}; must be at least 1")
        if self.num_blocks * self.block_size < self.max_model_len:
            raise ValueError(
                f"engine KV cache of {self.num_blocks * self.block_size} tokens cannot hold one sequence of "
                f"max_model_len {self.max_model_len}; lower max_model_len or add blocks"
            )
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ValueError(
                f"engine max_num_batched_tokens {self.max_num_batched_tokens} is below max_model_len "
                f"{self.max_model_len}; raise it or allow chunked prefill"
            )
