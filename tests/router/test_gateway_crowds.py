"""Crowds over real sockets: equal requests at once are spread, and broken connections leave nothing behind."""

import asyncio
import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from fake_worker import Call
from gateway_stage import Stage, request, running
from penstock.router.shell.prompts import Prompts

EQUAL = json.dumps({"model": "m", "prompt": list(range(8192)), "max_tokens": 16}).encode()
"""Long enough that whoever has it cached would draw the whole crowd by cost alone."""


def read_prompts(stage: Stage, *, profiled: bool) -> None:
    """Let the gateway's policies see prompts, and how fast workers are where `profiled`."""
    gateway = stage.gateway
    gateway.prompts = Prompts(gateway.settings, gateway.fleet, gateway.loop.time)
    if profiled:
        for slot in gateway.fleet.workers().values():
            worker = gateway.fleet.worker(slot)
            gateway.fleet.describe(slot, replace(worker, prefill_ms=(10.0, 0.1, 0.0), decode_ms=(15.0, 0.1, 1e-4)))


@pytest.mark.parametrize("profiled", [False, True], ids=["no profile", "profile"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "cached at one"])
@pytest.mark.parametrize("count", [4, 8])
async def test_no_worker_gets_more_than_twice_its_share_of_a_crowd(count: int, warm: bool, profiled: bool) -> None:
    everyone, crowd = asyncio.Event(), 64
    got: Counter[str] = Counter()

    async def hold(call: Call) -> None:
        """Answer nobody before all are here, so that no request profits from another's end."""
        if warm and not everyone.is_set() and not got:
            got["warming"] += 1
            await call.reply()
            return
        got[call.worker.name] += 1
        if sum(got.values()) - got["warming"] == crowd:
            everyone.set()
        await everyone.wait()
        await call.reply()

    async with running(*[hold] * count, policy="KVAware") as s:
        read_prompts(s, profiled=profiled)
        if warm:
            await s.post(EQUAL)
        answers = await asyncio.wait_for(asyncio.gather(*[s.post(EQUAL) for _ in range(crowd)]), 30)
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
        del got["warming"]
        assert max(got.values()) <= 2 * crowd / count, f"one worker drew the crowd: {got}"
        await s.settled()
        assert s.gateway.prompts is not None
        await s.gateway.prompts.close()


class Breaker:
    """Breaks one connection in a hundred, at a side and a moment drawn by lot; counts what it broke."""

    def __init__(self, seed: int, stream: bool) -> None:
        self.lots = random.Random(seed)
        self.stream = stream
        self.broken: Counter[str] = Counter()
        self.whole = 0

    def draws(self, *moments: str) -> str:
        """The moment to break at, empty mostly."""
        if self.lots.random() >= 0.005:
            return ""
        moment = self.lots.choice(moments)
        self.broken[moment] += 1
        return moment

    async def work(self, call: Call) -> None:
        """Answer as an engine does, unless this is one to break."""
        if call.received.head.startswith(b"POST /tokenize"):
            await call.reply(b'{"tokens":[7]}')
            return
        moment = self.draws("worker before its head", "worker behind its head", "worker in its body")
        if moment == "worker before its head":
            call.die()
            return
        if self.stream:
            await self._stream(call, moment)
        elif moment == "worker behind its head":
            await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n")
            call.die()
        elif moment:
            await call.send(b'HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{"ok"')
            call.die()
        else:
            await call.reply()

    async def _stream(self, call: Call, moment: str) -> None:
        await call.start_stream()
        for number in range(3):
            if moment and moment == ("worker behind its head", "never", "worker in its body")[number]:
                call.die()
                return
            await call.event(b'{"id":"1","choices":[{"index":0,"text":"a"}]}')
            await asyncio.sleep(0)
        await call.event(b'{"id":"1","choices":[{"index":0,"text":"","finish_reason":"length"}]}')
        await call.event(b"[DONE]")
        await call.end_stream()

    async def ask(self, port: int, count: int) -> None:
        """One client: one request after the other on one connection, a new one where it broke."""
        sent = request(
            json.dumps({"model": "m", "prompt": list(range(64)), "max_tokens": 4, "stream": self.stream}).encode()
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count):
            moment = self.draws("client in its request", "client behind its request", "client in the answer")
            writer.write(sent[:-10] if moment == "client in its request" else sent)
            if await self._read(reader, writer, moment):
                self.whole += 1
                continue
            writer.transport.abort()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, moment: str) -> bool:
        """Whether the answer came whole; False also where the client breaks off."""
        if moment in ("client in its request", "client behind its request"):
            await writer.drain()
            await asyncio.sleep(self.lots.choice((0.0, 0.002)))
            return False
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if moment:
                return False
            if b"chunked" in head:
                return (await reader.readuntil(b"0\r\n\r\n")).endswith(b"\n\r\n0\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.partition(b":")[2]))
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        return head.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_broken_connections_leave_no_reservation_behind(stream: bool) -> None:
    breaker, clients, requests = Breaker(seed=7, stream=stream), 20, 2000
    async with running(*[breaker.work] * 4, policy="KVAware") as s:
        read_prompts(s, profiled=True)
        await asyncio.wait_for(
            asyncio.gather(*[breaker.ask(s.port, requests // clients) for _ in range(clients)]), timeout=120
        )
        await s.settled()
        fleet = s.gateway.fleet
        for column in (fleet.in_flight, fleet.outstanding_tokens, fleet.context_tokens, fleet.pending):
            assert not column.any(), "a column of the fleet still holds what a broken request had taken"
        await s.until(lambda: not s.gateway.connections)
        sides = {moment.partition(" ")[0] for moment in breaker.broken}
        assert sides == {"client", "worker"}, "both sides were to break some"
        assert breaker.whole >= requests - sum(breaker.broken.values()), "a request that nobody broke was not answered"
        assert s.gateway.prompts is not None
        await s.gateway.prompts.close()
