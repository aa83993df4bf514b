"""What an engine remembers of a sequence while it lives."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from penstock.core.engine.blocks import Block
from penstock.core.engine.sequence import Finished, FinishReason, Held, Sequence, Timing

__all__ = ["Active", "BlockHash", "Phase"]

BlockHash = Callable[[str, int], int | None]
"""(sequence id, block index) -> hash of a block that holds output tokens, None when it is not to be cached."""


class Phase(Enum):
    """Where a sequence is; exactly one of the engine's collections holds it."""

    WAITING = auto()
    TRANSFERRING = auto()
    READY = auto()
    RUNNING = auto()
    SWAPPED = auto()
    ENDED = auto()


class Active:
    """Mutable state of one sequence. Invariants: `computed < total` except inside `Engine.complete`, its blocks hold at
    least `computed` tokens (those on the host, while it is swapped out), and the first of them, `blocks`, have a hash
    and were offered to the prefix cache."""

    __slots__ = (
        "blocks", "cached_tokens", "capacity", "computed", "end_at", "first_token", "generated", "hashes",
        "host_blocks", "id", "last_token", "next_full", "phase", "preemptions", "rank", "remote_tokens", "scheduled",
        "sequence", "stalls", "started", "total", "wants_remote",
    )  # fmt: skip

    def __init__(self, sequence: Sequence, rank: tuple[float, int], now: float, limit: int) -> None:
        self.id = sequence.id
        self.sequence = sequence
        self.rank = rank
        self.phase = Phase.WAITING
        self.total = sequence.prompt_tokens  # Tokens known: prompt and output so far.
        self.computed = 0  # Tokens whose KV is in the blocks.
        self.generated = 0
        room = limit - sequence.prompt_tokens
        self.end_at = min(sequence.max_tokens, sequence.stop_after or room, room)  # Output tokens at the end.
        self.blocks: list[Block] = []  # Those that have a hash; the others are only counted.
        self.capacity = 0  # Tokens that its blocks can hold, those without a hash included.
        self.hashes = list(sequence.block_hashes)
        self.next_full = 0  # Tokens at which the next block to offer to the cache is full.
        self.cached_tokens = 0
        self.remote_tokens = 0
        self.wants_remote = 0
        self.preemptions = 0
        self.stalls = 0  # Steps of prompts that its output has waited for.
        self.host_blocks = 0  # Blocks that hold its KV in host memory, while it is swapped out.
        self.started = sequence.arrival if sequence.arrival is not None else now
        self.scheduled: float | None = None
        self.first_token: float | None = None
        self.last_token = self.started

    def __lt__(self, other: Active) -> bool:
        return self.rank < other.rank

    def start_over(self, block_size: int) -> tuple[list[Block], int]:
        """Forget all KV, keep the output: the blocks to give back, those without a hash as their number."""
        self.computed = 0
        return self.leave_blocks(block_size)

    def leave_blocks(self, block_size: int) -> tuple[list[Block], int]:
        """Have its KV elsewhere or nowhere: the blocks to give back, those without a hash as their number."""
        blocks, nameless = self.blocks, self.nameless(block_size)
        self.blocks = []
        self.capacity = self.next_full = 0
        return blocks, nameless

    def nameless(self, block_size: int) -> int:
        """How many of its blocks have no hash."""
        return self.capacity // block_size - len(self.blocks)

    @property
    def decodes(self) -> bool:
        """Whether all that is left to compute is the token after its own output."""
        return self.generated > 0 and self.computed + 1 == self.total

    def reason(self) -> FinishReason:
        """Why it ends, once it has generated `end_at` tokens."""
        return FinishReason.STOP if self.generated == self.sequence.stop_after else FinishReason.LENGTH

    def finished(self, reason: FinishReason, now: float, held: Held | None = None) -> Finished:
        """The record of its end."""
        timing = Timing(self.started, self.scheduled, self.first_token, now)
        return Finished(
            self.id, reason, self.sequence.prompt_tokens, self.generated, self.cached_tokens, self.remote_tokens,
            self.preemptions, timing, held,
        )  # fmt: skip
