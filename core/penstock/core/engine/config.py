"""The limits of one engine, with vLLM's names and meanings, so that a flag of a real engine is a field here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["BatchScheduler", "EngineConfig", "Preemption", "SchedulingPolicy"]


class BatchScheduler(StrEnum):
    """Who goes first when a batch is made up, prompts or output tokens."""

    STALL_FREE = "StallFree"
    """Every running sequence gets its token, prompts what the budget leaves, in chunks (vLLM V1, Sarathi-Serve)."""
    PREFILL_FIRST = "PrefillFirst"
    """Prompts run as soon as there is room, by themselves, and output waits meanwhile (vLLM V0)."""
    DECODE_FIRST = "DecodeFirst"
    """A batch runs until all of it has ended, then the next one is made up (FasterTransformer)."""


class Preemption(StrEnum):
    """What becomes of the KV of a sequence that has to make room."""

    RECOMPUTE = "Recompute"
    """It is dropped and computed again."""
    SWAP = "Swap"
    """It waits in host memory, where there is room, and is copied back."""


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
    """Whether a prompt may be computed over several steps. Without it the token budget must hold the longest prompt,
    but for `PrefillFirst` and `DecodeFirst`, where a prompt above the budget has a step of its own."""
    policy: SchedulingPolicy = SchedulingPolicy.FCFS
    scheduler: BatchScheduler = BatchScheduler.STALL_FREE
    max_stalls: int | None = None
    """How often in its life a sequence's output may wait for a step of prompts; after that it runs along with them.
    None: any number of times. For `PrefillFirst` only; Splitwise has 4."""
    mixed_pass_factor: float | None = None
    """A step of prompts and output together takes so many times what its prompts alone take, and no less than its
    output alone (Splitwise: 1.1); None: what the profile says."""
    preemption: Preemption = Preemption.RECOMPUTE
    num_host_blocks: int = 0
    """Host memory for preempted sequences, in blocks; what finds no room there is recomputed."""
    swap_ms_per_block: float = 0.0
    """What copying one block to or from the host takes, with nothing else on the link; the step waits for it."""

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_size", "max_num_batched_tokens", "max_num_seqs", "max_model_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"engine {name} is {getattr(self, name)}; must be at least 1")
        if self.num_blocks * self.block_size < self.max_model_len:
            raise ValueError(
                f"engine KV cache of {self.num_blocks * self.block_size} tokens cannot hold one sequence of "
                f"max_model_len {self.max_model_len}; lower max_model_len or add blocks"
            )
        whole = self.scheduler is BatchScheduler.STALL_FREE and not self.enable_chunked_prefill
        if whole and self.max_num_batched_tokens < self.max_model_len:
            raise ValueError(
                f"engine max_num_batched_tokens {self.max_num_batched_tokens} is below max_model_len "
                f"{self.max_model_len}; raise it or allow chunked prefill"
            )
        self._check_order()
        self._check_preemption()

    def _check_order(self) -> None:
        if self.max_stalls is not None:
            if self.scheduler is not BatchScheduler.PREFILL_FIRST:
                raise ValueError(f"engine max_stalls is for scheduler PrefillFirst, not {self.scheduler}; leave it out")
            if self.max_stalls < 0:
                raise ValueError(f"engine max_stalls is {self.max_stalls}; must be at least 0")
        factor = self.mixed_pass_factor
        if factor is not None and not 0 < factor < math.inf:
            raise ValueError(f"engine mixed_pass_factor is {factor}; must be above 0")

    def _check_preemption(self) -> None:
        if not 0 <= self.swap_ms_per_block < math.inf:
            raise ValueError(f"engine swap_ms_per_block is {self.swap_ms_per_block}; must be at least 0")
        if self.preemption is Preemption.SWAP and self.num_host_blocks < 1:
            raise ValueError(
                f"engine num_host_blocks is {self.num_host_blocks}; preemption by Swap needs host memory for at least 1"
            )
