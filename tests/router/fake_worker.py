"""A worker that does exactly what a test tells it to, over a real socket."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self


@dataclass
class Received:
    """One request as the worker got it."""

    head: bytes
    body: bytes

    @property
    def fields(self) -> dict[str, str]:
        """Header fields, names in lower case."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines if line)}

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


@dataclass
class Call:
    """One request and the means to answer it."""

    received: Received
    writer: asyncio.StreamWriter
    reader: asyncio.StreamReader
    worker: "FakeWorker"

    async def send(self, data: bytes) -> None:
        """Write bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, body: bytes = b'{"ok":true}', status: bytes = b"200 OK", fields: bytes = b"") -> None:
        """A plain JSON response."""
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n"
        await self.send(head % (status, len(body), fields) + body)

    async def start_stream(self) -> None:
        """Head of a streamed response."""
        await self.send(STREAM_HEAD)

    async def event(self, data: bytes) -> None:
        """One server-sent event as one chunk."""
        event = b"data: " + data + b"\n\n"
        await self.send(b"%x\r\n%b\r\n" % (len(event), event))

    async def end_stream(self) -> None:
        """Last chunk."""
        await self.send(b"0\r\n\r\n")

    def die(self) -> None:
        """Drop the connection without a word."""
        self.writer.transport.abort()

    async def client_left(self) -> bool:
        """Wait until the other side closes."""
        return await self.reader.read(1) == b""


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
Script = Callable[[Call], Awaitable[None]]


async def plain(call: Call) -> None:
    """Answer everything with a plain reply that names the worker."""
    await call.reply(json.dumps({"worker": call.worker.name}).encode())


@dataclass
class FakeWorker:
    """Listens on loopback and runs its script for every request."""

    script: Script = plain
    name: str = "w"
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**26)
        self.port = self._server.sockets[0].getsockname()[1]
        self._writers: set[asyncio.StreamWriter] = set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, dropping every connection."""
        await self.stop()

    async def stop(self) -> None:
        """Refuse connections from now on and drop those there are."""
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                received = Received(head, b"")
                received.body = await reader.readexactly(int(received.fields.get("content-length", "0")))
                self.received.append(received)
                await self.script(Call(received, writer, reader, self))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
