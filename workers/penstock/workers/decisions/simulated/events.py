"""What the engine says of its cache, in vLLM's words: block events become KV events with tokens and extra keys."""

from collections.abc import Sequence

from penstock.core.engine import BlockRemoved, BlockStored, CacheCleared
from penstock.core.wire import AllBlocksCleared, Event
from penstock.core.wire import BlockRemoved as RemovedEvent
from penstock.core.wire import BlockStored as StoredEvent

MEDIUM = "GPU"
GROUP = 0
KIND = "full_attention"


def stored_event(
    event: BlockStored, tokens: Sequence[int], block_size: int, adapter: tuple[str, str] | None, salt: str | None
) -> StoredEvent:
    """`event` of a sequence whose prompt and output so far are `tokens`; `adapter` is (name, path)."""
    first = event.first_block * block_size
    blocks = range(event.first_block, event.first_block + len(event.hashes))
    return StoredEvent(
        block_hashes=list(event.hashes),
        parent_block_hash=event.parent,
        token_ids=list(tokens[first : first + block_size * len(event.hashes)]),
        block_size=block_size,
        lora_id=1 if adapter else None,
        medium=MEDIUM,
        lora_name=adapter[0] if adapter else None,
        extra_keys=[_extra_keys(block, adapter, salt) for block in blocks],
        group_idx=GROUP,
        kv_cache_spec_kind=KIND,
    )


def removed_event(event: BlockRemoved | CacheCleared) -> Event:
    """A block's end, or that of all."""
    if isinstance(event, CacheCleared):
        return AllBlocksCleared()
    return RemovedEvent(block_hashes=[event.hash], medium=MEDIUM, group_idx=GROUP)


def _extra_keys(block: int, adapter: tuple[str, str] | None, salt: str | None) -> list[str] | None:
    """What beside tokens went into a block's hash, as published: without the tags and the adapter's path."""
    keys = [adapter[0]] if adapter else []
    if block == 0 and salt is not None:
        keys.append(salt)
    return keys or None
