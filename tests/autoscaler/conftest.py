"""Engines that answer /metrics well or badly, over real sockets."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the helper modules of this folder

PAGE = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="m"}} 2
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} 0.25
vllm:generation_tokens_total{{engine="0",model_name="m"}} {tokens}
vllm:request_success_total{{engine="0",model_name="m",finished_reason="length"}} {tokens}
vllm:time_to_first_token_seconds_sum{{engine="0",model_name="m"}} {tokens}
vllm:time_to_first_token_seconds_count{{engine="0",model_name="m"}} {tokens}
"""


@dataclass
class Engine:
    """One engine; `manner` says how it answers from now on."""

    manner: str = "well"
    running: int = 3
    tokens: int = 0
    port: int = 0
    asked: int = 0
    connections: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/metrics"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.asked += 1
                self.tokens += 10
                if not await self._answer(writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> bool:
        """Write one answer; false ends the connection."""
        page = PAGE.format(running=self.running, tokens=self.tokens).encode()
        if self.manner == "hang":
            await asyncio.sleep(60)
        elif self.manner == "drip":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not writer.is_closing():
                writer.write(b"#")
                await writer.drain()
                await asyncio.sleep(0.05)
        elif self.manner == "garbage":
            writer.write(b"\x00\xff not http at all\r\n\r\n")
        elif self.manner == "endless":
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            while not writer.is_closing():
                writer.write(b"#" * 65536)
                await writer.drain()
        elif self.manner == "redirect":
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
            return True
        else:
            status, body = {
                "well": (200, page),
                "error": (500, b"oops"),
                "no-engine": (200, b"some_other_metric 1\n"),
                "nonsense": (200, b'vllm:num_requests_running{engine="0"} +Inf\nvllm:num_requests_waiting{ x\n'),
            }[self.manner]
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
            await writer.drain()
            return True
        return False


class Engines:
    """Makes engines and ends them with the test."""

    def __init__(self) -> None:
        self._servers: list[tuple[asyncio.Server, Engine]] = []

    async def start(self, **options: object) -> Engine:
        engine = Engine(**options)  # type: ignore[arg-type]
        server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
        engine.port = server.sockets[0].getsockname()[1]
        self._servers.append((server, engine))
        return engine

    async def stop(self) -> None:
        for server, engine in self._servers:
            server.close()
            for writer in engine.connections:
                writer.transport.abort()
        await asyncio.sleep(0)


@pytest.fixture
async def engines() -> AsyncIterator[Engines]:
    made = Engines()
    yield made
    await made.stop()
    others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task() and "serve" in repr(t.get_coro())]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
