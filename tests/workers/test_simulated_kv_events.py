"""KV events over real ZeroMQ sockets: what a router subscribes to, and what it does when it has missed something."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator

import pytest
import zmq
from penstock.core.wire import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    chain_hashes,
    decode_batch,
    decode_frames,
    encode_sequence,
    to_integer,
)
from penstock.core.wire.kv_events import REPLAY_END

from .conftest import EngineProcess, StartEngine, until

BLOCK = 16
CONFIG = {
    "enable_kv_cache_events": True,
    "publisher": "zmq",
    "endpoint": "tcp://*:0",
    "replay_endpoint": "tcp://127.0.0.1:0",
    "topic": "kv@w1@tiny",
}


_fresh = itertools.count(20_000)
"""Tokens of prompts that nobody has sent before."""


class Subscriber:
    """A subscriber that has been joined before anything it wants to see is published."""

    def __init__(self, context: zmq.Context, engine: EngineProcess) -> None:
        self.source = engine.get("/kv_event_sources").json()["0"]
        self.socket = context.socket(zmq.SUB)
        self.socket.subscribe(b"kv@")
        self.socket.connect(self.source["endpoint"])
        self.batches: list[tuple[int, EventBatch]] = []
        # ZeroMQ tells nobody when a subscription has arrived: publish until one batch comes through.
        for _ in range(200):
            if self.socket.poll(50):
                break
            engine.complete(prompt=[next(_fresh)] * BLOCK, max_tokens=1)
        else:
            pytest.fail("no KV event arrived")
        self.read()
        self.batches.clear()

    def read(self, wait_ms: int = 300) -> None:
        while self.socket.poll(wait_ms):
            topic, sequence, payload = decode_frames(self.socket.recv_multipart())
            assert topic == "kv@w1@tiny"
            self.batches.append((sequence, decode_batch(payload)))

    def events(self) -> list:
        self.read()
        return [event for _, batch in self.batches for event in batch.events]


FLAGS = ("--time-scale", "0.05", "--block-size", str(BLOCK), "--kv-events-config", json.dumps(CONFIG))


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    own = zmq.Context()
    yield own
    own.destroy(linger=0)


@pytest.fixture(scope="module")
def publisher() -> Iterator[EngineProcess]:
    """One engine with events; every test has prompts of its own."""
    engine = EngineProcess(
        *FLAGS,
        *("--enable-lora", "--enable-faults", "--enable-prompt-tokens-details"),
        env={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1"},
    )
    yield engine
    engine.close()


def test_stored_blocks_have_the_hashes_a_router_computes(publisher: EngineProcess, context: zmq.Context):
    engine = publisher
    subscriber = Subscriber(context, engine)
    prompt = list(range(2000, 2000 + 3 * BLOCK + 5))
    engine.complete(prompt=prompt, max_tokens=1)
    stored = [event for event in subscriber.events() if isinstance(event, BlockStored)]
    hashes = [block for event in stored for block in event.block_hashes]
    assert hashes == [to_integer(h) for h in chain_hashes(prompt, BLOCK)]
    assert [t for event in stored for t in event.token_ids] == prompt[: 3 * BLOCK]
    first = stored[0]
    assert (first.parent_block_hash, first.block_size, first.medium) == (None, BLOCK, "GPU")
    assert (first.group_idx, first.kv_cache_spec_kind, first.lora_id) == (0, "full_attention", None)


def test_blocks_of_the_output_are_stored_and_hit_by_the_next_turn(publisher: EngineProcess, context: zmq.Context):
    engine = publisher
    subscriber = Subscriber(context, engine)
    prompt = list(range(3000, 3000 + BLOCK))
    text = engine.complete(prompt=prompt, max_tokens=2 * BLOCK)["choices"][0]["text"]
    output = engine.post("/tokenize", {"prompt": text}).json()["tokens"]
    whole = prompt + output
    hashes = [block for event in subscriber.events() for block in event.block_hashes]
    assert hashes == [to_integer(h) for h in chain_hashes(whole, BLOCK)][: len(hashes)]
    assert len(hashes) == 2, "the last block is not full: its last token's KV was never needed"
    next_turn = engine.complete(prompt=[*whole, 7000], max_tokens=1)
    assert next_turn["usage"]["prompt_tokens_details"]["cached_tokens"] == 2 * BLOCK


def test_salt_and_adapter_are_told(publisher: EngineProcess, context: zmq.Context):
    engine = publisher
    engine.post("/v1/load_lora_adapter", {"lora_name": "styleA", "lora_path": "org/styleA"})
    subscriber = Subscriber(context, engine)
    prompt = list(range(4000, 4000 + 2 * BLOCK))
    engine.complete(prompt=prompt, max_tokens=1, cache_salt="tenantA")
    engine.complete(prompt=prompt, max_tokens=1, model="styleA")
    salted, styled = subscriber.events()
    assert salted.extra_keys == [["tenantA"], None]
    assert salted.block_hashes == [to_integer(h) for h in chain_hashes(prompt, BLOCK, salt="tenantA")]
    assert (styled.lora_name, styled.extra_keys) == ("styleA", [["styleA"], ["styleA"]])
    assert styled.block_hashes == [to_integer(h) for h in chain_hashes(prompt, BLOCK, adapter=("styleA", "org/styleA"))]


def test_a_full_cache_tells_what_it_drops_and_the_count_stays_true(start_engine: StartEngine, context: zmq.Context):
    engine = start_engine(*FLAGS, "--num-gpu-blocks-override", "8", "--max-model-len", "128")
    subscriber = Subscriber(context, engine)
    held: Counter[int] = Counter()
    for turn in range(12):
        prompt = [5000 + 100 * (turn % 5)] * (3 * BLOCK)
        engine.complete(prompt=prompt, max_tokens=1)
    removed = 0
    known = True
    for event in subscriber.events():
        if isinstance(event, BlockStored):
            held.update(event.block_hashes)
        elif isinstance(event, BlockRemoved):
            removed += 1
            known &= held[event.block_hashes[0]] > 0 or removed <= 8
            held.subtract(event.block_hashes)
    assert removed > 8
    assert known, "a block was removed that was never stored"
    assert sum(count for count in held.values() if count > 0) <= 8


def test_a_reset_is_told(publisher: EngineProcess, context: zmq.Context):
    engine = publisher
    subscriber = Subscriber(context, engine)
    assert engine.post("/reset_prefix_cache").status_code == 200
    assert subscriber.events() == [AllBlocksCleared()]


def test_lost_batches_leave_a_gap_that_a_replay_fills(publisher: EngineProcess, context: zmq.Context):
    engine = publisher
    subscriber = Subscriber(context, engine)
    engine.post("/faults", b"drop-events=1")
    for number in range(4):
        engine.complete(prompt=[6000 + number] * BLOCK, max_tokens=1)
    engine.post("/faults", b"none")
    engine.complete(prompt=[6100] * BLOCK, max_tokens=1)
    subscriber.read()
    ((sequence, _),) = subscriber.batches
    dealer = context.socket(zmq.DEALER)
    dealer.connect(subscriber.source["replay_endpoint"])
    dealer.send_multipart([b"", encode_sequence(sequence - 4)])
    replayed = []
    while not replayed or replayed[-1][0] != REPLAY_END:
        assert dealer.poll(10_000), "the replay did not end"
        topic, number, payload = decode_frames(dealer.recv_multipart())
        assert topic == "kv@w1@tiny"
        replayed.append((number, payload))
    assert [number for number, _ in replayed[:-1]] == list(range(sequence - 4, sequence + 1))
    assert replayed[-1][1] == b""
    tokens = [decode_batch(payload).events[0].token_ids[0] for _, payload in replayed[:-1]]
    assert tokens == [6000, 6001, 6002, 6003, 6100]


def test_a_replay_request_of_nonsense_harms_nobody(publisher: EngineProcess, context: zmq.Context):
    engine = publisher
    source = engine.get("/kv_event_sources").json()["0"]
    dealer = context.socket(zmq.DEALER)
    dealer.connect(source["replay_endpoint"])
    dealer.send_multipart([b"what"])
    dealer.send_multipart([b"", encode_sequence(1 << 40)])
    assert dealer.poll(10_000)
    assert decode_frames(dealer.recv_multipart())[1] == REPLAY_END


def test_an_address_without_a_wildcard_is_connected_to(start_engine: StartEngine, context: zmq.Context):
    sub = context.socket(zmq.SUB)
    sub.subscribe(b"")
    port = sub.bind_to_random_port("tcp://127.0.0.1")
    config = {**CONFIG, "endpoint": f"tcp://127.0.0.1:{port}", "replay_endpoint": None}
    engine = start_engine("--time-scale", "0.05", "--kv-events-config", json.dumps(config))

    def arrived() -> int:
        engine.complete(prompt=[next(_fresh)] * BLOCK, max_tokens=1)
        return sub.poll(50)

    until(arrived)
    assert engine.get("/kv_event_sources").json()["0"]["endpoint"] == f"tcp://127.0.0.1:{port}"
