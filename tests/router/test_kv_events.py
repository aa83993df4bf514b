"""The index fed by real engines over real sockets, and by engines that misbehave."""

import asyncio
import itertools
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import zmq
from penstock.core.fleet import Fleet, Worker
from penstock.core.wire import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Event,
    EventBatch,
    WireError,
    chain_hashes,
    encode_batch,
    encode_batch_as_arrays,
    encode_frames,
    encode_sequence,
    to_integer,
)
from penstock.router.decisions.kv_index import Knowledge
from penstock.router.shell import kv_events
from penstock.router.shell.kv_event_metrics import KvEventCollector
from penstock.router.shell.kv_events import KvEvents
from prometheus_client import CollectorRegistry, generate_latest

BLOCK = 16
BUDGET = 8 << 20
CONFIG = {"enable_kv_cache_events": True, "publisher": "zmq", "topic": "kv@w@tiny"}
ENDPOINTS = {"endpoint": "tcp://127.0.0.1:0", "replay_endpoint": "tcp://127.0.0.1:0"}


async def until(true: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "still not so"
        await asyncio.sleep(0.01)


class Engine:
    """A simulated engine, as a process."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process, self.port = process, port
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)

    @classmethod
    async def start(cls, *flags: str, folder: Path, replay: bool = True) -> "Engine":
        config = {**CONFIG, "endpoint": "tcp://*:0"}
        if replay:
            config["replay_endpoint"] = "tcp://*:0"
        command = [
            *(sys.executable, "-m", "penstock.workers.simulated", "--served-model-name", "tiny"),
            *("--host", "127.0.0.1", "--port", "0", "--profile", '{"prefill":[2,0.01,0],"decode":[2,0.01,0]}'),
            *("--time-scale", "0.05", "--block-size", str(BLOCK), "--enable-prompt-tokens-details"),
            *("--enable-faults", "--kv-events-config", json.dumps(config), *flags),
        ]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, stderr=pipe, cwd=folder, env={"VLLM_SERVER_DEV_MODE": "1"}
        )
        assert process.stderr is not None
        async for line in process.stderr:
            if found := re.search(rb"on port (\d+)", line):
                return cls(process, int(found[1]))
        raise AssertionError("the engine did not start")

    async def complete(self, prompt: list[int], max_tokens: int = 1) -> int:
        """Tokens of the prompt that the engine says were cached."""
        body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens}
        answer = (await self.client.post("/v1/completions", json=body)).json()
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    async def post(self, path: str, body: bytes = b"") -> None:
        assert (await self.client.post(path, content=body)).status_code == 200

    async def close(self) -> None:
        await self.client.aclose()
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


def worker(port: int, name: str = "chat/w") -> Worker:
    return Worker(name, "127.0.0.1", port, "tiny", namespace="chat", deployment="llama", pool="serve")


def join(fleet: Fleet, port: int, name: str = "chat/w") -> int:
    slot = fleet.add(worker(port, name))
    fleet.set_ready(slot, True)
    return slot


@pytest.fixture
async def events() -> AsyncIterator[KvEvents]:
    own = KvEvents(Fleet(), BUDGET, refresh=0.3)
    yield own
    await own.close()


def predicted(events: KvEvents, slot: int, prompt: list[int]) -> int:
    """Tokens the index says an engine will find cached: whole blocks, and never the last token."""
    blocks = int(events.index("tiny").longest_prefix(chain_hashes(prompt, BLOCK), slot + 1)[slot])
    return min(blocks, (len(prompt) - 1) // BLOCK) * BLOCK


async def quiet(events: KvEvents) -> None:
    """Until no event has come for a while."""
    before, now = -1, 0
    while before != now:
        await asyncio.sleep(0.1)
        before, now = now, sum(s.batches for s in events.stats())


async def test_the_index_predicts_the_cached_tokens_the_engine_then_reports(events: KvEvents, tmp_path: Path):
    engine = await Engine.start("--num-gpu-blocks-override", "40", "--max-model-len", "400", folder=tmp_path)
    try:
        slot = join(events._fleet, engine.port)
        await engine.complete([9] * 50)
        events.sync()
        await until(lambda: events.knowledge(events._fleet.worker(slot)) is Knowledge.COMPLETE)
        hits = 0
        # Shared beginnings of many lengths, in a cache too small for all: stores, second copies, evictions.
        for turn in range(36):
            family = turn * 7 % 5
            prompt = [1000 + family] * (17 * (1 + turn % 4)) + [turn % 3] * (turn % 50) + [7]
            await quiet(events)
            expected = predicted(events, slot, prompt)
            assert await engine.complete(prompt, max_tokens=1 + turn % 20) == expected, f"turn {turn}"
            hits += expected > 0
        assert hits > 10
        assert events.index("tiny").stats().removed > 10, "the cache was never full"
        assert events.index("tiny").stats().unknown_removals == 0
        await quiet(events)
        await engine.post("/reset_prefix_cache")
        await until(lambda: events.index("tiny").blocks_of(slot) == 0)
    finally:
        await engine.close()


async def test_lost_batches_are_replayed_and_a_dead_engine_is_forgotten(events: KvEvents, tmp_path: Path):
    engine = await Engine.start(folder=tmp_path)
    try:
        slot = join(events._fleet, engine.port)
        prompts = [[2000 + n] * (3 * BLOCK + 1) for n in range(4)]
        events.sync()
        await until(lambda: events.knowledge(events._fleet.worker(slot)) is Knowledge.COMPLETE)
        await engine.post("/faults", b"drop-events=1")
        for prompt in prompts[:-1]:
            await engine.complete(prompt)
        await quiet(events)
        assert [predicted(events, slot, p) for p in prompts] == [0, 0, 0, 0]
        await engine.post("/faults", b"none")
        await engine.complete(prompts[-1])
        await until(lambda: [predicted(events, slot, p) for p in prompts] == [3 * BLOCK] * 4)
        (stats,) = events.stats()
        assert (stats.gaps, stats.resyncs, stats.knowledge) == (1, 0, Knowledge.COMPLETE)
        events._fleet.remove(slot)
        events.sync()
        assert events.index("tiny").blocks_of(slot) == 0
        assert events.stats() == []
    finally:
        await engine.close()


async def test_a_router_that_comes_late_learns_everything_from_the_replay(events: KvEvents, tmp_path: Path):
    engine = await Engine.start(folder=tmp_path)
    try:
        prompt = [3000] * (5 * BLOCK + 1)
        await engine.complete(prompt)
        slot = join(events._fleet, engine.port)
        events.sync()
        await until(lambda: predicted(events, slot, prompt) == 5 * BLOCK)
        assert events.knowledge(events._fleet.worker(slot)) is Knowledge.COMPLETE
    finally:
        await engine.close()


async def test_an_engine_without_events_is_silent_not_empty(events: KvEvents, tmp_path: Path):
    off = json.dumps({"enable_kv_cache_events": False})
    engine = await Engine.start("--kv-events-config", off, folder=tmp_path)
    try:
        slot = join(events._fleet, engine.port)
        events.sync()
        await engine.complete([1] * 40)
        await asyncio.sleep(0.3)
        assert [w.name for w in events.silent()] == ["chat/w"]
        assert events.knowledge(events._fleet.worker(slot)) is Knowledge.UNKNOWN
        assert not events.tells(events._fleet.worker(slot))
    finally:
        await engine.close()


class Scripted:
    """An engine of the test's own: what it publishes, keeps, and answers is in the test's hands."""

    def __init__(self, replay: bool = True) -> None:
        self.context = zmq.Context()
        self.pub = self.context.socket(zmq.PUB)
        port = self.pub.bind_to_random_port("tcp://127.0.0.1")
        self.source: dict[str, Any] = {"publisher": "zmq", "endpoint": f"tcp://0.0.0.0:{port}", "topic": ""}
        self.router = self.context.socket(zmq.ROUTER)
        if replay:
            self.source["replay_endpoint"] = f"tcp://*:{self.router.bind_to_random_port('tcp://127.0.0.1')}"
        self.history: list[bytes] = []
        self.ts = itertools.count(1000)
        self.encode: Callable[[EventBatch], bytes] = encode_batch
        self.body: bytes | None = None
        self.status = 200
        self.asked = 0

    async def serve(self) -> int:
        self.server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.replaying = asyncio.create_task(self._replay())
        return self.server.sockets[0].getsockname()[1]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        body = json.dumps({"0": self.source}).encode() if self.body is None else self.body
        head = f"HTTP/1.1 {self.status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    async def _replay(self) -> None:
        while True:
            await asyncio.sleep(0.005)
            if not self.router.poll(0):
                continue
            peer, _, start = self.router.recv_multipart()
            first = int.from_bytes(start, "big")
            # As vLLM answers: no topic frame.
            for number, payload in enumerate(self.history):
                if number >= first:
                    self.router.send_multipart([peer, b"", encode_sequence(number), payload])
            self.router.send_multipart([peer, b"", encode_sequence(-1), b""])

    def publish(self, *batch: Event, send: bool = True) -> None:
        payload = self.encode(EventBatch(float(next(self.ts)), list(batch), 0))
        self.history.append(payload)
        if send:
            self.pub.send_multipart(encode_frames("", len(self.history) - 1, payload))

    def close(self) -> None:
        self.replaying.cancel()
        self.server.close()
        self.context.destroy(linger=0)


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    engine = Scripted()
    yield engine
    engine.close()


KEYS = [to_integer(h) for h in chain_hashes(list(range(64)), BLOCK)]


def stored(*keys: int, parent: int | None = None) -> BlockStored:
    return BlockStored(block_hashes=list(keys), parent_block_hash=parent, token_ids=[1], block_size=BLOCK, medium="GPU")


async def follow(events: KvEvents, engine: Scripted) -> int:
    slot = join(events._fleet, await engine.serve())
    events.sync()
    await until(lambda: events.knowledge(events._fleet.worker(slot)) is Knowledge.COMPLETE)
    return slot


def depth(events: KvEvents, slot: int) -> int:
    return int(events.index("tiny").longest_prefix(KEYS, slot + 1)[slot])


async def test_both_wire_forms_are_followed(events: KvEvents, scripted: Scripted):
    slot = await follow(events, scripted)
    scripted.publish(stored(*KEYS[:2]))
    await until(lambda: depth(events, slot) == 2)
    scripted.encode = encode_batch_as_arrays
    scripted.publish(stored(*KEYS[2:], parent=KEYS[1]))
    await until(lambda: depth(events, slot) == 4)
    scripted.publish(BlockRemoved(block_hashes=[KEYS[3]], medium="GPU"))
    await until(lambda: depth(events, slot) == 3)
    scripted.publish(AllBlocksCleared())
    await until(lambda: depth(events, slot) == 0)


DEEP = b"\x93\xcb" + bytes(8) + b"\x91" + b"\x91" * 100_000
"""A batch whose event is a list in a list in a list."""


@pytest.mark.parametrize("rubbish", [b"\xc1rubbish", b"", DEEP])
async def test_rubbish_on_the_wire_clears_and_the_stream_goes_on(events: KvEvents, scripted: Scripted, rubbish: bytes):
    slot = await follow(events, scripted)
    scripted.publish(stored(*KEYS[:2]))
    await until(lambda: depth(events, slot) == 2)
    scripted.pub.send_multipart([b"one frame"])
    scripted.history.append(rubbish)
    scripted.pub.send_multipart(encode_frames("", 1, scripted.history[-1]))
    await until(lambda: depth(events, slot) == 0)
    assert events.stats()[0].knowledge is Knowledge.UNKNOWN
    scripted.publish(stored(*KEYS))
    await until(lambda: depth(events, slot) == 4)
    (stats,) = events.stats()
    assert events.tells(events._fleet.worker(slot))
    assert (stats.unreadable, stats.resyncs, stats.knowledge) == (2, 1, Knowledge.PARTIAL)


async def test_a_gap_that_nobody_can_fill_clears(events: KvEvents, scripted: Scripted):
    del scripted.source["replay_endpoint"]
    slot = join(events._fleet, await scripted.serve())
    events.sync()
    # Nothing says that a subscription has arrived: publish until it has.
    while depth(events, slot) < 1:
        scripted.publish(AllBlocksCleared(), stored(KEYS[0]))
        await asyncio.sleep(0.02)
    await quiet(events)
    scripted.publish(BlockRemoved(block_hashes=[KEYS[0]]), send=False)
    scripted.publish(stored(KEYS[1], parent=KEYS[0]))
    await until(lambda: depth(events, slot) == 0)
    assert events.stats()[0].resyncs == 1


async def test_an_engine_that_moves_to_other_ports_is_followed_there(events: KvEvents, scripted: Scripted):
    slot = await follow(events, scripted)
    scripted.publish(stored(*KEYS))
    await until(lambda: depth(events, slot) == 4)
    other = Scripted()
    other.server, other.replaying = scripted.server, asyncio.create_task(other._replay())
    try:
        other.publish(stored(*KEYS[:1]))
        scripted.source = other.source
        await until(lambda: depth(events, slot) == 1)
    finally:
        other.close()


async def test_a_restart_behind_the_same_ports_is_noticed_though_nothing_is_published(
    events: KvEvents, scripted: Scripted
):
    slot = await follow(events, scripted)
    scripted.publish(stored(*KEYS))
    await until(lambda: depth(events, slot) == 4)
    endpoint = scripted.source["endpoint"].replace("0.0.0.0", "127.0.0.1")
    scripted.pub.close()
    scripted.history.clear()
    await asyncio.sleep(0.1)
    scripted.pub = scripted.context.socket(zmq.PUB)
    scripted.pub.bind(endpoint)
    await until(lambda: depth(events, slot) == 0)
    assert events.stats()[0].knowledge is Knowledge.COMPLETE
    scripted.publish(stored(*KEYS[:3]))
    await until(lambda: depth(events, slot) == 3)


async def test_a_new_worker_in_an_old_slot_inherits_nothing(events: KvEvents, scripted: Scripted):
    slot = await follow(events, scripted)
    scripted.publish(stored(*KEYS))
    await until(lambda: depth(events, slot) == 4)
    events._fleet.remove(slot)
    assert events._fleet.add(worker(1, "chat/next")) == slot
    events.sync()
    assert depth(events, slot) == 0


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense",
        b"[]",
        b'{"0":{"endpoint":"ipc:///etc"}}',
        b'{"0":{"endpoint":"tcp://h:99999"}}',
        b'{"0":5}',
        b" " * 70000,
    ],
)
async def test_sources_that_make_no_sense_are_asked_for_again(events: KvEvents, scripted: Scripted, body: bytes):
    scripted.body = body
    join(events._fleet, await scripted.serve())
    events.sync()
    await until(lambda: scripted.asked >= 2)
    assert events.stats() == []
    scripted.body = None
    await until(lambda: events.stats())


async def test_metrics_say_what_is_known(events: KvEvents, scripted: Scripted):
    slot = await follow(events, scripted)
    scripted.publish(stored(*KEYS))
    await until(lambda: depth(events, slot) == 4)
    registry = CollectorRegistry()
    registry.register(KvEventCollector(events))
    page = generate_latest(registry).decode()
    labels = 'deployment="llama",model="tiny",namespace="chat",pool="serve",rank="0"'
    assert f'penstock_router_kv_event_blocks_total{{{labels},worker="w"}} 4.0' in page
    assert f'penstock_router_kv_cache_known{{{labels[:-9]},rank="0",reason="Complete",worker="w"}} 1.0' in page
    assert 'penstock_router_kv_index_blocks{model="tiny"} 4.0' in page
    assert 'penstock_router_kv_silent_workers{model="tiny"} 0.0' in page


@pytest.mark.parametrize(
    ("endpoint", "reached"),
    [
        ("tcp://*:5557", "tcp://10.0.0.7:5557"),
        ("tcp://127.0.0.1:5557", "tcp://10.0.0.7:5557"),
        ("tcp://[::]:5557", "tcp://10.0.0.7:5557"),
        ("tcp://10.0.0.9:5557", "tcp://10.0.0.9:5557"),
        ("tcp://engine.chat:1", "tcp://engine.chat:1"),
        ("tcp://[fd00::1]:5", "tcp://[fd00::1]:5"),
    ],
)
def test_addresses_are_read_from_where_the_router_is(endpoint: str, reached: str):
    assert kv_events._reachable(endpoint, "10.0.0.7") == reached


def test_addresses_that_are_not_tcp_are_refused():
    with pytest.raises(WireError, match="tcp://host:port"):
        kv_events._reachable("inproc://x", "10.0.0.7")


@pytest.mark.parametrize("body", [b"[]", b'{"0":1}', b'{"0":{"x":"\xad"}}', b'{"0":{"x":' + b"[" * 60_000])
def test_a_list_of_sources_that_is_none_is_refused(body: bytes):
    with pytest.raises(WireError, match="does not list KV event sources"):
        kv_events._parse_sources("w", body)
