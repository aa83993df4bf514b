"""KV events: bytes as vLLM sends them, in every form it has had."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.wire import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    WireError,
    as_integer,
    decode_batch,
    decode_changes,
    decode_frames,
    encode_batch,
    encode_batch_as_arrays,
    encode_frames,
    encode_sequence,
)

STORED = {
    "type": "BlockStored",
    "block_hashes": [10856688133973970702, 9647896037998428985],
    "parent_block_hash": None,
    "token_ids": [1, 308, 309, 310],
    "block_size": 2,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
    "extra_keys": [["tenantA"], None],
    "group_idx": 0,
    "kv_cache_spec_kind": "full_attention",
}
REMOVED = {"type": "BlockRemoved", "block_hashes": [18129236968062958558], "medium": "GPU", "group_idx": 0}
CLEARED = {"type": "AllBlocksCleared"}
DUMP = [1795195164.66, [STORED, REMOVED, CLEARED], 0]
"""What an engine was seen to publish (real values, prompt shortened)."""


def test_the_dump_is_read_and_written_back_to_the_same_bytes():
    payload = msgspec.msgpack.encode(DUMP)
    assert payload.startswith(bytes.fromhex("93cb"))
    batch = decode_batch(payload)
    stored, removed, cleared = batch.events
    assert isinstance(stored, BlockStored)
    assert stored.block_hashes == STORED["block_hashes"]
    assert stored.extra_keys == [["tenantA"], None]
    assert removed == BlockRemoved(block_hashes=[18129236968062958558], medium="GPU", group_idx=0)
    assert cleared == AllBlocksCleared()
    assert batch.data_parallel_rank == 0
    assert encode_batch(batch) == payload


def test_required_fields_are_null_and_optional_ones_left_out():
    event = BlockStored(block_hashes=[1], token_ids=[1], block_size=1)
    written = msgspec.msgpack.decode(encode_batch(EventBatch(0.0, [event], 0)))[1][0]
    assert set(written) == set(STORED) - {"extra_keys", "group_idx", "kv_cache_spec_kind"}
    assert written["lora_name"] is None


@pytest.mark.parametrize("length", [5, 6, 7, 8, 9, 11])
def test_tagged_arrays_of_every_age(length):
    array = list(STORED.values())[:length]
    batch = decode_batch(msgspec.msgpack.encode([1.0, [array, ["BlockRemoved", [7]], ["AllBlocksCleared"]]]))
    stored, removed, cleared = batch.events
    assert isinstance(stored, BlockStored)
    assert stored.token_ids == STORED["token_ids"]
    assert stored.medium == ("GPU" if length > 6 else None)
    assert removed == BlockRemoved(block_hashes=[7])
    assert cleared == AllBlocksCleared()
    assert batch.data_parallel_rank is None


def test_a_batch_that_is_a_map():
    payload = msgspec.msgpack.encode({"ts": 2.0, "events": [STORED], "data_parallel_rank": 3})
    batch = decode_batch(payload)
    assert (batch.ts, batch.data_parallel_rank, len(batch.events)) == (2.0, 3, 1)


def test_fields_nobody_knows_yet_are_passed_over():
    payload = msgspec.msgpack.encode([1.0, [{**STORED, "session_id": "s", "ownership": [1]}], 0])
    assert isinstance(decode_batch(payload).events[0], BlockStored)


def test_hashes_of_32_bytes():
    digest = bytes(range(32))
    batch = decode_batch(msgspec.msgpack.encode([1.0, [{**REMOVED, "block_hashes": [digest]}], 0]))
    event = batch.events[0]
    assert isinstance(event, BlockRemoved)
    assert event.block_hashes == [digest]
    assert as_integer(digest) == int.from_bytes(digest[-8:], "big")
    assert as_integer(5) == 5


hashes = st.lists(st.integers(0, 2**64 - 1) | st.binary(min_size=32, max_size=32), max_size=4)
optional = st.none() | st.text(max_size=5)
events = st.one_of(
    st.builds(
        BlockStored,
        block_hashes=hashes,
        parent_block_hash=st.none() | st.integers(0, 2**64 - 1),
        token_ids=st.lists(st.integers(0, 2**31), max_size=5),
        block_size=st.integers(1, 256),
        lora_id=st.none() | st.integers(0, 9),
        medium=optional,
        lora_name=optional,
        extra_keys=st.none() | st.lists(st.none() | st.lists(st.text(max_size=3), max_size=2), max_size=3),
        group_idx=st.none() | st.integers(0, 3),
        kv_cache_spec_kind=optional,
    ),
    st.builds(BlockRemoved, block_hashes=hashes, medium=optional, group_idx=st.none() | st.integers(0, 3)),
    st.just(AllBlocksCleared()),
)


@given(st.lists(events, max_size=5), st.floats(0, 2e9), st.none() | st.integers(0, 7))
def test_both_forms_carry_the_same(batch_events, ts, rank):
    batch = EventBatch(ts, batch_events, rank)
    assert decode_batch(encode_batch(batch)) == batch
    assert decode_batch(encode_batch_as_arrays(batch)) == batch


NEEDED = ("block_hashes", "parent_block_hash", "medium", "group_idx", "kv_cache_spec_kind")


def what_an_index_needs(event):
    """An event's kind, and what of it an index reads."""
    tokens = getattr(event, "token_ids", None)
    has_tokens = event.has_tokens if hasattr(event, "has_tokens") else bool(tokens)
    kind = type(event).__name__.removesuffix("Array").replace("Run", "")
    known = tuple(getattr(event, name, None) for name in NEEDED)
    return kind.removeprefix("Block"), has_tokens, known


@given(st.lists(events, max_size=5), st.floats(0, 2e9), st.none() | st.integers(0, 7))
def test_changes_are_the_batch_less_what_an_index_has_no_use_for(batch_events, ts, rank):
    batch = EventBatch(ts, batch_events, rank)
    for payload in (encode_batch(batch), encode_batch_as_arrays(batch)):
        lean = decode_changes(payload)
        assert (lean.ts, lean.data_parallel_rank) == (ts, rank)
        assert [what_an_index_needs(e) for e in lean.events] == [what_an_index_needs(e) for e in batch_events]


def test_usual_batches_are_read_without_their_tokens():
    usual = [BlockStored(block_hashes=[1, 2], token_ids=[5] * 32, block_size=16), BlockRemoved(block_hashes=[2])]
    for encode in (encode_batch, encode_batch_as_arrays):
        lean = decode_changes(encode(EventBatch(1.0, usual, 0)))
        assert not any(isinstance(event, BlockStored | BlockRemoved) for event in lean.events)


@given(st.binary(max_size=60))
def test_noise_is_no_change_either(noise):
    try:
        decode_changes(noise)
    except WireError as error:
        assert "KV event batch" in str(error)


@given(st.binary(max_size=60))
def test_noise_is_an_error_or_a_batch_but_never_another_exception(noise):
    try:
        assert isinstance(decode_batch(noise), EventBatch)
    except WireError as error:
        assert "KV event batch" in str(error)


def test_frames_of_publication_and_replay():
    frames = encode_frames("kv@w1@tiny", 7, b"payload")
    assert frames == [b"kv@w1@tiny", b"\0\0\0\0\0\0\0\x07", b"payload"]
    assert decode_frames(frames) == ("kv@w1@tiny", 7, b"payload")
    assert decode_frames([b"", *frames]) == ("kv@w1@tiny", 7, b"payload")
    assert decode_frames([b"", encode_sequence(9), b"x"]) == ("", 9, b"x")
    assert decode_frames([b"", b"t", encode_sequence(-1), b""]) == ("t", -1, b"")


@pytest.mark.parametrize("frames", [[], [b"x"], [b"t", b"short", b"p"], [b""] * 6])
def test_frames_that_are_no_message(frames):
    with pytest.raises(WireError, match="8-byte sequence"):
        decode_frames(frames)
