"""vLLM's KV events: which prefix blocks a worker has stored and dropped.

Frames on the PUB socket are topic, 8-byte big-endian sequence number, msgpack payload. The payload is a batch
`[ts, events, rank]`. Since vLLM 0.26 every event is a map with a `type`; before, it was an array that begins with the
tag; one upstream revision sends the batch as a map, too. `decode_batch` takes all of them; `encode_batch` writes the
map form of vLLM 0.32, `encode_batch_as_arrays` the older one, for peers and tests that need it.

An index of blocks has no use for most of a batch: token ids are 256 of some 300 values in a common one. For it there
is `decode_changes`, which passes over them without making objects, and falls back where anything is unusual.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from penstock.core.wire.errors import WireError

BlockHash = int | bytes
"""A block's hash: an unsigned 64-bit integer, or all 32 bytes where the worker is told to send them."""

REPLAY_END = -1
"""Sequence number that ends a replay."""
_MASK = (1 << 64) - 1


class BlockStored(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Blocks are now in the worker's cache, chained one behind the other after `parent_block_hash`.

    The same hash may be stored more than once (a full hit recomputes its last block into a second copy) and is then
    removed as often: count, do not collect.
    """

    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None = None
    token_ids: list[int] = []
    block_size: int = 0
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    """Per block, what beside tokens went into its hash (cache salt, adapter name), without the hash's own tags."""
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class BlockRemoved(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """One copy of each of these blocks has left the worker's cache."""

    block_hashes: list[BlockHash]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, frozen=True, tag=True):
    """The worker's cache is empty."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(msgspec.Struct, frozen=True):
    """What one publication carries: seconds since the epoch, events in order, data-parallel rank."""

    ts: float
    events: list[Event]
    data_parallel_rank: int | None = None


class _StoredArray(msgspec.Struct, frozen=True, tag="BlockStored", array_like=True):
    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class _RemovedArray(msgspec.Struct, frozen=True, tag="BlockRemoved", array_like=True):
    block_hashes: list[BlockHash]
    medium: str | None = None
    group_idx: int | None = None


class _ClearedArray(msgspec.Struct, frozen=True, tag="AllBlocksCleared", array_like=True):
    pass


class _NewBatch(msgspec.Struct, frozen=True, array_like=True):
    ts: float
    events: list[Event]
    data_parallel_rank: int | None = None


class _RawArray(msgspec.Struct, frozen=True, array_like=True):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


class _RawMap(msgspec.Struct, frozen=True):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


class StoredRun(msgspec.Struct, frozen=True, tag="BlockStored", kw_only=True):
    """Of a `BlockStored` what an index of blocks needs, where the hashes are integers."""

    block_hashes: list[int]
    parent_block_hash: int | None = None
    token_ids: msgspec.Raw = msgspec.Raw(b"\x90")
    """As msgpack; see `has_tokens`."""
    medium: str | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None

    @property
    def has_tokens(self) -> bool:
        """Whether the event names any token."""
        return _is_filled_array(self.token_ids)


class RemovedRun(msgspec.Struct, frozen=True, tag="BlockRemoved", kw_only=True):
    """Of a `BlockRemoved` what an index of blocks needs, where the hashes are integers."""

    block_hashes: list[int]
    medium: str | None = None
    group_idx: int | None = None


class StoredRunArray(msgspec.Struct, frozen=True, tag="BlockStored", array_like=True):
    """`StoredRun` in the older form."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: msgspec.Raw
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: msgspec.Raw = msgspec.Raw(b"\xc0")
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None

    @property
    def has_tokens(self) -> bool:
        """Whether the event names any token."""
        return _is_filled_array(self.token_ids)


class RemovedRunArray(msgspec.Struct, frozen=True, tag="BlockRemoved", array_like=True):
    """`RemovedRun` in the older form."""

    block_hashes: list[int]
    medium: str | None = None
    group_idx: int | None = None


Change = StoredRun | StoredRunArray | RemovedRun | RemovedRunArray | Event
"""An event as `decode_changes` gives it: a run where that suffices, else the whole event."""


class ChangeBatch(msgspec.Struct, frozen=True, array_like=True):
    """A batch as an index of blocks reads it: as `EventBatch`, less what it has no use for."""

    ts: float
    events: Sequence[Change]
    data_parallel_rank: int | None = None


class _RunBatch(ChangeBatch, frozen=True, array_like=True):
    events: list[StoredRun | RemovedRun | AllBlocksCleared]


class _RunArrayBatch(ChangeBatch, frozen=True, array_like=True):
    events: list[StoredRunArray | RemovedRunArray]


_ArrayEvent = _StoredArray | _RemovedArray | _ClearedArray

_new_batch = msgspec.msgpack.Decoder(_NewBatch)
_raw_array = msgspec.msgpack.Decoder(_RawArray)
_raw_map = msgspec.msgpack.Decoder(_RawMap)
_run_batch: msgspec.msgpack.Decoder[ChangeBatch] = msgspec.msgpack.Decoder(_RunBatch)
_run_array_batch: msgspec.msgpack.Decoder[ChangeBatch] = msgspec.msgpack.Decoder(_RunArrayBatch)
_map_event: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
_array_event: msgspec.msgpack.Decoder[_ArrayEvent] = msgspec.msgpack.Decoder(_ArrayEvent)
_encoder = msgspec.msgpack.Encoder()
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)


def decode_batch(payload: bytes) -> EventBatch:
    """Read one payload in any of vLLM's forms; raises `WireError` for anything else."""
    try:
        batch = _new_batch.decode(payload)
        return EventBatch(batch.ts, batch.events, batch.data_parallel_rank)
    except _UNREADABLE:
        return _decode_any_form(payload)


def decode_changes(payload: bytes) -> ChangeBatch:
    """Read one payload in any of vLLM's forms, for an index of blocks; raises `WireError` for anything else."""
    for decoder in (_run_batch, _run_array_batch):
        try:
            return decoder.decode(payload)
        except _UNREADABLE:
            continue
    batch = decode_batch(payload)
    return ChangeBatch(batch.ts, batch.events, batch.data_parallel_rank)


def _is_filled_array(raw: msgspec.Raw) -> bool:
    """Whether a msgpack value is an array with something in it."""
    head = memoryview(raw)[0]
    return 0x91 <= head <= 0x9F or head in (0xDC, 0xDD)


def _decode_any_form(payload: bytes) -> EventBatch:
    """The forms before vLLM 0.26, told apart event by event."""
    try:
        raw = (_raw_array if _is_array(payload) else _raw_map).decode(payload)
        events = [_decode_event(bytes(event)) for event in raw.events]
    except _UNREADABLE as error:
        raise WireError(f"a KV event batch of {len(payload)} bytes cannot be read: {error}") from error
    return EventBatch(raw.ts, events, raw.data_parallel_rank)


def _is_array(payload: bytes) -> bool:
    """Whether a msgpack value is an array: its first byte is 0x9n, 0xdc or 0xdd."""
    return bool(payload) and (payload[0] >> 4 == 0x9 or payload[0] in (0xDC, 0xDD))


def _decode_event(payload: bytes) -> Event:
    return _as_map(_array_event.decode(payload)) if _is_array(payload) else _map_event.decode(payload)


def _as_map(event: _ArrayEvent) -> Event:
    """The event in the one form the rest of the house knows."""
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    match event:
        case _StoredArray():
            return BlockStored(**fields)
        case _RemovedArray():
            return BlockRemoved(**fields)
        case _ClearedArray():
            return AllBlocksCleared()


_ALWAYS: dict[type, tuple[str, ...]] = {
    BlockStored: (
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
    ),
    BlockRemoved: ("block_hashes", "medium"),
    AllBlocksCleared: (),
}
"""Fields vLLM 0.32 writes even where they are null; it leaves the others out then."""


def _event_map(event: Event) -> dict[str, Any]:
    always = _ALWAYS[type(event)]
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    kept = {name: value for name, value in fields.items() if value is not None or name in always}
    return {"type": type(event).__name__, **kept}


def encode_batch(batch: EventBatch) -> bytes:
    """The payload of a batch, events as maps (vLLM 0.26 and later)."""
    return _encoder.encode([batch.ts, [_event_map(event) for event in batch.events], batch.data_parallel_rank])


def encode_batch_as_arrays(batch: EventBatch) -> bytes:
    """The payload of a batch, events as tagged arrays (vLLM before 0.26)."""
    events = [[type(e).__name__, *(getattr(e, name) for name in e.__struct_fields__)] for e in batch.events]
    return _encoder.encode([batch.ts, events, batch.data_parallel_rank])


def encode_frames(topic: str, sequence: int, payload: bytes) -> list[bytes]:
    """The three frames of one publication."""
    return [topic.encode(), encode_sequence(sequence), payload]


def encode_sequence(sequence: int) -> bytes:
    """A sequence number as eight big-endian bytes; `REPLAY_END` is -1."""
    return sequence.to_bytes(8, "big", signed=True)


def decode_frames(frames: Sequence[bytes]) -> tuple[str, int, bytes]:
    """Topic, sequence number and payload of a publication or of one replayed message.

    Older engines replay without the topic frame; the topic is then empty. A leading empty frame (the delimiter a
    DEALER receives) is skipped.
    """
    # The sequence is the frame before the payload; what stands before it is a topic, a delimiter, or both.
    if len(frames) < 2 or len(frames[-2]) != 8 or len(frames) > 4:
        sizes = [len(frame) for frame in frames]
        raise WireError(f"a KV event message needs topic, 8-byte sequence and payload; got frames of {sizes} bytes")
    topic = frames[-3].decode(errors="replace") if len(frames) > 2 else ""
    return topic, int.from_bytes(frames[-2], "big", signed=True), frames[-1]


def as_integer(block_hash: BlockHash) -> int:
    """The hash as the unsigned 64-bit integer vLLM publishes by default: the last eight bytes of the digest."""
    return block_hash if isinstance(block_hash, int) else int.from_bytes(block_hash, "big") & _MASK
