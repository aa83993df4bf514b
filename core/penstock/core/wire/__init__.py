"""What engines say and are told, byte for byte: metrics, KV events, block hashes, transfer legs, OpenAI's forms.

Everything here is pure: bytes in, values out. Sockets, clocks and retries belong to the rooms that use it.
"""

from penstock.core.wire import openai
from penstock.core.wire.block_hash import chain_hashes, root_hash, to_integer
from penstock.core.wire.errors import WireError
from penstock.core.wire.kv_events import (
    AllBlocksCleared,
    BlockHash,
    BlockRemoved,
    BlockStored,
    Change,
    ChangeBatch,
    Event,
    EventBatch,
    RemovedRun,
    RemovedRunArray,
    StoredRun,
    StoredRunArray,
    as_integer,
    decode_batch,
    decode_changes,
    decode_frames,
    encode_batch,
    encode_batch_as_arrays,
    encode_frames,
    encode_sequence,
)
from penstock.core.wire.kv_transfer import (
    PREFILL_LEG,
    RemoteBlocks,
    decode_remote_blocks,
    strip_transfer_params,
    wants_decode_leg,
    wants_prefill_leg,
)
from penstock.core.wire.metrics import ENGINE_METRICS, Kind, Metric, When
from penstock.core.wire.scrape import EngineSample, Total, parse_labels, parse_scrape

__all__ = [
    "ENGINE_METRICS",
    "PREFILL_LEG",
    "AllBlocksCleared",
    "BlockHash",
    "BlockRemoved",
    "BlockStored",
    "Change",
    "ChangeBatch",
    "EngineSample",
    "Event",
    "EventBatch",
    "Kind",
    "Metric",
    "RemoteBlocks",
    "RemovedRun",
    "RemovedRunArray",
    "StoredRun",
    "StoredRunArray",
    "Total",
    "When",
    "WireError",
    "as_integer",
    "chain_hashes",
    "decode_batch",
    "decode_changes",
    "decode_frames",
    "decode_remote_blocks",
    "encode_batch",
    "encode_batch_as_arrays",
    "encode_frames",
    "encode_sequence",
    "openai",
    "parse_labels",
    "parse_scrape",
    "root_hash",
    "strip_transfer_params",
    "to_integer",
    "wants_decode_leg",
    "wants_prefill_leg",
]
