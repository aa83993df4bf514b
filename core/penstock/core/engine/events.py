"""What an engine tells about its prefix cache, in the order it happened. A hash may be stored more than once."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["BlockEvent", "BlockRemoved", "BlockStored", "CacheCleared"]


class BlockStored(NamedTuple):
    """Consecutive blocks of one sequence became findable."""

    hashes: tuple[int, ...]
    parent: int | None
    """Hash of the block before the first one; None at the start of a prompt."""
    sequence: str
    first_block: int
    """Index in the sequence of the first block; its tokens start at `first_block * block_size`."""


class BlockRemoved(NamedTuple):
    """One copy of a block was overwritten."""

    hash: int


class CacheCleared(NamedTuple):
    """Every block was forgotten."""


BlockEvent = BlockStored | BlockRemoved | CacheCleared
