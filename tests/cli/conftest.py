"""A real HTTP server that answers completions well or badly, as told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

MODEL = "test-model"


@dataclass
class Server:
    """Answers `/v1/models` and streamed completions; `manner(index)` says how the request of that number is treated."""

    port: int = 0
    max_model_len: int | None = None
    manner: dict[int, str] = field(default_factory=dict)
    default_manner: str = "well"
    delay_s: float = 0.0
    received: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    models_status: int = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:] if line)}
            if lines[0].startswith("GET /v1/models"):
                self._models(writer)
            else:
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                index = int(headers["x-request-id"].rsplit("-", 1)[1])
                self.received.append(body)
                self.headers.append(headers)
                await self._complete(writer, body, self.manner.get(index, self.default_manner))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _models(self, writer: asyncio.StreamWriter) -> None:
        entry: dict[str, Any] = {"id": MODEL, "object": "model"}
        if self.max_model_len:
            entry["max_model_len"] = self.max_model_len
        self._whole(writer, self.models_status, {"object": "list", "data": [entry]})

    def _whole(self, writer: asyncio.StreamWriter, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(text), text)
        )

    async def _complete(self, writer: asyncio.StreamWriter, body: dict[str, Any], manner: str) -> None:
        if manner.isdigit():
            self._whole(writer, int(manner), {"error": {"message": f"said {manner}", "type": "x", "code": int(manner)}})
            return
        if manner == "hang":
            await asyncio.sleep(60)
            return
        if manner == "json":
            self._whole(writer, 200, {"choices": [{"text": "not streamed"}]})
            return
        if manner == "garbage":
            writer.write(b"\x00\x01\x02 this is no HTTP\r\n\r\n")
            return
        await asyncio.sleep(self.delay_s)
        length_known = manner != "until-close"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n" if length_known else b"Connection: close\r\n\r\n")
        for piece in self._pieces(body, manner):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if length_known else piece)
            await writer.drain()
            await asyncio.sleep(0)
        if length_known and manner != "cut":
            writer.write(b"0\r\n\r\n")

    def _pieces(self, body: dict[str, Any], manner: str) -> list[bytes]:
        """Chunks that are neither tokens nor events: the stream is cut anywhere."""
        tokens = body["max_tokens"] // 2 if manner == "short" else body["max_tokens"]
        events: list[Any] = [{"choices": [{"text": ""}]}, {"choices": [{"text": "a b"}]}]
        if manner == "error-event":
            events.append({"error": {"message": "worker lost", "type": "x", "code": 502}})
        finish = {"abort": "abort", "short": "stop"}.get(manner, "length")
        events.append({"choices": [{"text": "c" * 100, "finish_reason": finish}]})
        prompt = body["prompt"]
        count = len(prompt) if isinstance(prompt, list) else len(prompt.split())
        usage = {
            "prompt_tokens": count,
            "completion_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": count // 4},
        }
        events.append({"choices": [], "usage": usage})
        text = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)
        text += b"" if manner in {"cut", "no-done"} else b"data: [DONE]\n\n"
        if manner == "bad-event":
            text = b"data: {broken\n\n" + text
        return [text[at : at + 37] for at in range(0, len(text), 37)]


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server on a free port of loopback."""
    made = Server()
    loop = asyncio.new_event_loop()

    async def start() -> asyncio.Server:
        listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
        made.port = listening.sockets[0].getsockname()[1]
        return listening

    listening = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield made
    asyncio.run_coroutine_threadsafe(_stop(listening), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


async def _stop(listening: asyncio.Server) -> None:
    listening.close()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
