"""Throws what nobody thought of at a whole router: KV events, gRPC messages, gateway bodies; says whether it held.

    python hack/fuzz.py [--seconds 600] [--seed 1] [--json FILE]

One router process, its three inputs attacked at once from here, over real sockets:

- *events*: this process plays the engines, whose KV events (both wire forms, 64-bit and 32-byte hashes) come whole,
  torn, with wrong types, with values turned into others, deeply nested, huge, out of order, twice;
- *proto*: every RPC method gets messages that are whole, torn or noise, on calls and on streams;
- *gateway*: completions and chats with any field as anything, torn JSON, noise, raw bytes that are no HTTP.

It holds when the process lives, answers no 5xx and no gRPC `UNKNOWN` or `INTERNAL`, writes no traceback, still serves
a plain request at the end, and its memory grew by less than 5 % after the first fifth of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import grpc
import httpx
import msgspec
import zmq
import zmq.asyncio
from penstock.core.wire import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Event,
    EventBatch,
    encode_batch,
    encode_batch_as_arrays,
    encode_sequence,
)
from penstock.router.v1 import router_pb2

GROWTH = 0.05
"""Share by which memory may grow after the first fifth of the time."""
WORKERS = 3
BLOCK = 16
_ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, 1e308, -0.0, "", "x", "\x00", "m" * 300, b"\xff" * 8,
    [], [None], [[]], {}, {"type": "BlockStored"}, [1, "a"],
)  # fmt: skip
_HUGE = 1 << 20
_GIVEN_UP = (httpx.TransportError, TimeoutError, OSError)


@dataclass
class Account:
    """What was sent and what came of it."""

    sent: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, what: str) -> None:
        """Note a failure; the first hundred are kept."""
        if len(self.faults) < 100:
            self.faults.append(what)


# ---- mutations --------------------------------------------------------------------------------------


def torn(rng: random.Random, data: bytes) -> bytes:
    """A part of it cut out, doubled, flipped or replaced by noise."""
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    match rng.randrange(4):
        case 0:
            return data[:start]
        case 1:
            return data[:end] + data[start:]
        case 2:
            return data[:start] + rng.randbytes(min(end - start, 64)) + data[end:]
        case _:
            spot = rng.randrange(len(data)) if data else 0
            return data[:spot] + bytes([rng.randrange(256)]) + data[spot + 1 :]


def twisted(rng: random.Random, value: Any) -> Any:
    """The value with one of its parts turned into something else."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        rest = {k: v for k, v in value.items() if k != key}
        return rest if rng.random() < 0.2 else rest | {key: twisted(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        spot = rng.randrange(len(value))
        return [*value[:spot], twisted(rng, value[spot]), *value[spot + 1 :]]
    return rng.choice(_ODD)


def nested(depth: int) -> bytes:
    """msgpack arrays in arrays."""
    return b"\x91" * depth + b"\xc0"


# ---- KV events --------------------------------------------------------------------------------------


class Engine:
    """Plays an engine: answers everything 200, and publishes KV events of every kind."""

    def __init__(self, account: Account, seed: int) -> None:
        """Bound, but not serving yet."""
        self.rng = random.Random(seed)
        self.port = 0
        self._account = account
        self._context = zmq.asyncio.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._endpoint = f"tcp://127.0.0.1:{self._pub.bind_to_random_port('tcp://127.0.0.1')}"
        self._sequence = itertools.count()
        self._known: list[int] = []

    async def serve(self, connection: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        """HTTP, as little as the router asks for."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while True:
                head = (await connection.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                await connection.readexactly(length)
                await self._answer(head, answer)
        answer.close()

    async def _answer(self, head: bytes, answer: asyncio.StreamWriter) -> None:
        body = b'{"usage":{"prompt_tokens":5,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":3}}}'
        if b" /kv_event_sources" in head:
            source = {"endpoint": self._endpoint, "replay_endpoint": None, "topic": "", "publisher": "zmq"}
            body = json.dumps({"0": source}).encode()
        elif b" /metrics" in head:
            body = b""
        answer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
        answer.write(body)
        await answer.drain()

    async def publish(self, until: float) -> None:
        """Publish until then; a little at a time, so that none is dropped on the way."""
        while time.monotonic() < until:
            for _ in range(20):
                await self._pub.send_multipart(self._frames())
                self._account.sent["events"] += 1
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)

    def _frames(self) -> list[bytes]:
        rng, sequence = self.rng, next(self._sequence)
        payload = self._payload()
        match rng.randrange(60):
            case 0:
                return [rng.randbytes(rng.randrange(12)) for _ in range(rng.randrange(1, 6))]
            case 1:
                return [b"", encode_sequence(rng.choice((0, -1, sequence - 1, sequence + 9, 2**62))), payload]
            case 2:
                next(self._sequence)  # one is lost
        return [b"", encode_sequence(sequence), payload]

    def _payload(self) -> bytes:
        rng = self.rng
        batch = EventBatch(time.time(), [self._event() for _ in range(rng.randrange(1, 4))], rng.choice((None, 0, 1)))
        whole = (encode_batch if rng.random() < 0.5 else encode_batch_as_arrays)(batch)
        match rng.randrange(12):
            case 0:
                return torn(rng, whole)
            case 1 | 2:
                with contextlib.suppress(OverflowError, TypeError, ValueError):
                    return msgspec.msgpack.encode(twisted(rng, msgspec.msgpack.decode(whole)))
            case 3:
                return rng.randbytes(rng.randrange(200))
            case 4:
                kinds = (lambda: nested(rng.randrange(1, 5000)), lambda: b"\xdd\xff\xff\xff\xff" + whole)
                return rng.choice(kinds)() if rng.random() < 0.98 else rng.randbytes(_HUGE)
        return whole

    def _event(self) -> Event:
        rng = self.rng
        medium = rng.choice(("GPU", "GPU", "GPU", None, "CPU", "disk"))
        if rng.random() < 0.01:
            return AllBlocksCleared()
        if self._known and rng.random() < 0.45:
            spots = [rng.randrange(len(self._known)) for _ in range(rng.randrange(1, 17))]
            return BlockRemoved(block_hashes=[self._hash(self._known[spot]) for spot in spots], medium=medium)
        parent = rng.choice(self._known) if self._known and rng.random() < 0.6 else None
        fresh = [rng.getrandbits(64) if rng.random() < 0.7 else rng.getrandbits(8) for _ in range(rng.randrange(17))]
        self._known = [*self._known, *fresh][-2000:]
        tokens = [rng.getrandbits(17) for _ in range(BLOCK * len(fresh))]
        hashes = [self._hash(block) for block in fresh]
        kind = rng.choice((None, "full_attention", "sliding_window"))
        return BlockStored(
            block_hashes=hashes, parent_block_hash=parent, token_ids=tokens, block_size=BLOCK, medium=medium,
            group_idx=rng.choice((None, 0, 1)), kv_cache_spec_kind=kind,
        )  # fmt: skip

    def _hash(self, block: int) -> int | bytes:
        return block.to_bytes(32, "big") if self.rng.random() < 0.1 else block


# ---- gRPC -------------------------------------------------------------------------------------------


def messages(rng: random.Random) -> dict[str, bytes]:
    """A message that makes sense for each method."""
    hashes = router_pb2.BlockHashes(hashes=[rng.randbytes(rng.choice((8, 32))) for _ in range(20)], prompt_tokens=330)
    prompts: tuple[dict[str, Any], ...] = (
        {"block_hashes": hashes}, {"prompt_tokens": rng.getrandbits(31)}, {"text": "word " * rng.randrange(50)},
        {"token_ids": router_pb2.TokenIds(ids=[rng.getrandbits(17) for _ in range(64)])}, {},
    )  # fmt: skip
    pick = router_pb2.PickRequest(
        model=rng.choice(("m", "m", "other")), max_tokens=rng.choice((0, 16, 2**32 - 1)), lease_ttl_ms=500,
        exclude_workers=[str(rng.random())] * rng.randrange(3), **rng.choice(prompts),
    )  # fmt: skip
    usage = router_pb2.Usage(cached_tokens=rng.getrandbits(32))
    release = router_pb2.ReleaseRequest(lease_id=str(rng.random()), outcome=router_pb2.OUTCOME_RESET, usage=usage)
    question = {"pick": pick} if rng.random() < 0.6 else {"release": release}
    return {
        "Pick": pick.SerializeToString(),
        "Release": release.SerializeToString(),
        "PickStream": router_pb2.PickStreamRequest(correlation_id=7, **question).SerializeToString(),
        "Explain": router_pb2.ExplainRequest(request_id=str(rng.random())).SerializeToString(),
        "Watch": router_pb2.WatchRequest(model="m", interval_ms=rng.choice((0, 100, 2**32 - 1))).SerializeToString(),
    }


def _disturbed(rng: random.Random, message: bytes) -> bytes:
    match rng.randrange(4):
        case 0:
            return message
        case 1:
            return rng.randbytes(rng.randrange(300))
        case _:
            return torn(rng, message)


async def attack_grpc(port: int, account: Account, until: float, seed: int) -> None:
    """Calls and streams of any bytes."""
    rng = random.Random(seed)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        while time.monotonic() < until:
            for method, message in messages(rng).items():
                path = f"/penstock.router.v1.Router/{method}"
                sent = [_disturbed(rng, message) for _ in range(rng.randrange(1, 4) if method == "PickStream" else 1)]
                account.sent["proto"] += len(sent)
                code = await _call(channel, path, method, sent)
                account.answers[f"gRPC {code}"] += 1
                if code.startswith(("UNKNOWN", "INTERNAL")):
                    account.fault(f"gRPC {method} answered {code} to {sent!r}"[:400])


async def _call(channel: grpc.aio.Channel, path: str, method: str, sent: list[bytes]) -> str:
    try:
        if method == "PickStream":
            stream = channel.stream_stream(path)(iter(sent), timeout=5)
            return await _read(stream)
        if method == "Watch":
            return await _read(channel.unary_stream(path)(sent[0], timeout=0.3), most=2)
        await channel.unary_unary(path)(sent[0], timeout=5)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def _read(stream: Any, most: int = 100) -> str:
    count = 0
    async for _ in stream:
        count += 1
        if count >= most:
            stream.cancel()
            return "OK"
    return "OK"


# ---- the gateway ------------------------------------------------------------------------------------

_BODY: dict[str, Any] = {
    "model": "m", "prompt": "word " * 40, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    "stream": False, "max_tokens": 16, "n": 1, "stream_options": {"include_usage": True}, "priority": 0, "echo": False,
    "kv_transfer_params": {"do_remote_decode": True}, "cache_salt": "s", "tools": [{"type": "function"}], "stop": ["x"],
    "add_generation_prompt": True, "logprobs": 1, "vllm_xargs": {"a": 1}, "max_completion_tokens": 5, "seed": 3,
}  # fmt: skip


def body(rng: random.Random) -> bytes:
    """A completion or a chat, disturbed."""
    chosen = {"model": "m"} | {key: _BODY[key] for key in rng.sample(list(_BODY), rng.randrange(1, 8))}
    for _ in range(rng.randrange(3)):
        chosen = twisted(rng, chosen)
        if not isinstance(chosen, dict):
            break
    whole = json.dumps(chosen, default=lambda value: value.hex()).encode()
    match rng.randrange(8):
        case 0:
            return torn(rng, whole)
        case 1:
            return rng.randbytes(rng.randrange(100))
        case 2:
            return b"[" * rng.randrange(1, 3000)
        case 3:
            return whole[:-1] + b',"prompt":"' + b"x" * rng.randrange(200_000) + b'"}'
    return whole


async def attack_gateway(port: int, account: Account, until: float, seed: int) -> None:
    """Requests with any body."""
    rng = random.Random(seed)
    paths = ("/v1/completions", "/v1/chat/completions", "/v1/chat/completions", "/v1/models/m", "/other")
    limits = httpx.Limits(max_keepalive_connections=4)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, limits=limits) as client:
        while time.monotonic() < until:
            sent = body(rng)
            account.sent["gateway"] += 1
            try:
                answer = await client.post(rng.choice(paths), content=sent)
            except _GIVEN_UP as problem:
                account.answers[f"HTTP {type(problem).__name__}"] += 1
                continue
            account.answers[f"HTTP {answer.status_code}"] += 1
            if answer.status_code >= 500:
                account.fault(f"HTTP {answer.status_code} {answer.text[:120]} to {sent[:200]!r}")


async def attack_sockets(port: int, account: Account, until: float, seed: int) -> None:
    """Bytes that are no HTTP, or hardly."""
    rng = random.Random(seed)
    plain = (
        b"POST /v1/completions HTTP/1.1\r\nHost: g\r\nContent-Length: 30\r\n\r\n" + b'{"model":"m","prompt":"hello"}'
    )
    while time.monotonic() < until:
        account.sent["sockets"] += 1
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(torn(rng, plain) if rng.random() < 0.7 else rng.randbytes(rng.randrange(400)))
                    writer.write_eof()
                    status = (await reader.read(4096))[9:12]
                finally:
                    writer.close()
                account.answers[f"socket {status.decode('latin-1') or 'closed'}"] += 1
                if status[:1] == b"5":
                    account.fault(f"raw bytes were answered {status!r}")


# ---- the router -------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """Ports of loopback that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def resident(pid: int) -> int:
    """Bytes of memory a process has in use."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.asynccontextmanager
async def router(ports: list[int], workers: str, log: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """A router process that is ready."""
    gateway, health, rpc = ports
    flags = [f"--port={gateway}", f"--health-port={health}", f"--grpc-port={rpc}", "--metrics-port=0"]
    # Small stores, so that they are full, and memory level, early.
    flags += ["--host=127.0.0.1", f"--workers={workers}", "--kv-index-bytes=8388608", "--explain-picks=256"]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "penstock.router", *flags, stderr=log)
    try:
        async with httpx.AsyncClient() as client, asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"http://127.0.0.1:{health}/readyz")).status_code == 200:
                        break
                await asyncio.sleep(0.1)
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 30)
            except TimeoutError:
                process.kill()


async def sampled(pid: int, until: float, every: float, found: list[int]) -> None:
    """Sample the memory."""
    while time.monotonic() < until:
        with contextlib.suppress(OSError, IndexError):
            found.append(resident(pid))
        await asyncio.sleep(every)


async def plain_request(port: int, account: Account) -> None:
    """After all that: is a plain request served?"""
    async with httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}/v1/completions"
        try:
            answer = await client.post(url, json={"model": "m", "prompt": "hello"}, timeout=20)
        except httpx.HTTPError as problem:
            account.fault(f"a plain request failed at the end: {problem!r}")
            return
        if answer.status_code != 200:
            account.fault(f"a plain request was answered {answer.status_code} at the end")


async def attack(seconds: float, seed: int) -> dict[str, Any]:
    """Everything at once for so long; what was sent, answered and wrong."""
    account = Account()
    memory: list[int] = []
    engines = [Engine(account, seed + number) for number in range(WORKERS)]
    servers = [await asyncio.start_server(engine.serve, "127.0.0.1", 0) for engine in engines]
    workers = ",".join(f"m=http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers)
    ports = free_ports(3)
    with TemporaryFile() as log:
        async with router(ports, workers, log) as process:
            until = time.monotonic() + seconds
            await asyncio.gather(
                *(engine.publish(until) for engine in engines),
                attack_grpc(ports[2], account, until, seed),
                attack_gateway(ports[0], account, until, seed),
                attack_gateway(ports[0], account, until, seed + 100),
                attack_sockets(ports[0], account, until, seed),
                sampled(process.pid, until, seconds / 100, memory),
            )
            await plain_request(ports[0], account)
            if process.returncode is not None:
                account.fault(f"the router ended with status {process.returncode}")
        log.seek(0)
        account.faults += _tracebacks(log.read())
    for server in servers:
        server.close()
    for engine in engines:
        engine.close()
    return _summary(account, memory, seconds)


def _tracebacks(log: bytes) -> list[str]:
    lines = log.decode(errors="replace").splitlines()
    return [line[:2000] for line in lines if "Traceback" in line or "Task exception was never retrieved" in line][:20]


def _summary(account: Account, memory: list[int], seconds: float) -> dict[str, Any]:
    # The mean of some samples on either side: a single one may meet a long body.
    settled, last = memory[len(memory) // 5 :][:10], memory[-10:]
    before, after = (sum(part) / max(1, len(part)) for part in (settled, last))
    growth = after / before - 1.0 if before else 0.0
    return {
        "seconds": seconds,
        "sent": dict(account.sent),
        "answers": dict(sorted(account.answers.items())),
        "rss_mb": [round(before / 1e6, 1), round(after / 1e6, 1)],
        "rss_growth": round(growth, 4),
        "faults": account.faults,
    }


def _told(summary: dict[str, Any]) -> Iterator[str]:
    for name in ("seconds", "sent", "answers", "rss_mb", "rss_growth"):
        yield f"{name}: {summary[name]}"
    yield from (f"fault: {fault}" for fault in summary["faults"][:20])


def main(print_line: Callable[[str], None] = print) -> int:
    """Attack, tell; exit status 1 where the router did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    summary = asyncio.run(attack(given.seconds, given.seed))
    for line in _told(summary):
        print_line(line)
    if given.json is not None:
        given.json.write_text(json.dumps(summary, indent=1) + "\n")
    return int(bool(summary["faults"]) or summary["rss_growth"] >= GROWTH)


if __name__ == "__main__":
    sys.exit(main())
