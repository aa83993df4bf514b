"""The sidecar's wire, byte by byte: engines and clients that speak oddly, late, or too much."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from penstock.workers.shell.sidecar.options import Options
from penstock.workers.shell.sidecar.proxy import Proxy

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ASK = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 14\r\n\r\n" + b'{"prompt":"a"}'
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def request_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
    return head + await reader.readexactly(int(fields.get(b"content-length", b"0")))


def says(*pieces: bytes, close: bool = False) -> Script:
    """An engine that gives the same answer to every request, in these pieces."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_of(reader)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.005)
            if close:
                return

    return serve


class Stage:
    """A sidecar in this process, and what its engine was sent."""

    def __init__(self, proxy: Proxy, port: int) -> None:
        self.proxy = proxy
        self.port = port
        self.connections = 0

    async def send(self, data: bytes = ASK, *, end: bytes = b"") -> bytes:
        """Everything that comes back until the connection ends, or until an answer ends with `end`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        try:
            async with asyncio.timeout(10):
                got = b""
                while not (end and got.endswith(end)):
                    piece = await reader.read(65536)
                    if not piece:
                        break
                    got += piece
            return got
        finally:
            writer.close()

    def count(self, name: str, **labels: str) -> float:
        return self.proxy.metrics.registry.get_sample_value(f"penstock_workers_sidecar_{name}", labels) or 0.0


@asynccontextmanager
async def in_front_of(engine: Script, **options: object) -> AsyncIterator[Stage]:
    stage: Stage

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stage.connections += 1
        try:
            await engine(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the sidecar has hung up, or the test is over
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy = Proxy(Options(engine_port=server.sockets[0].getsockname()[1], **options))  # type: ignore[arg-type]
    stage = Stage(proxy, await proxy.server.listen("127.0.0.1", 0))
    try:
        yield stage
        async with asyncio.timeout(5):
            while proxy.running:  # noqa: ASYNC110 - what is under test announces nothing
                await asyncio.sleep(0.01)
    finally:
        proxy.close()
        server.close()


async def test_an_answer_of_known_length_comes_whole_over_a_kept_connection() -> None:
    async with in_front_of(says(OK)) as stage:
        for _ in range(3):
            assert (await stage.send(end=b"ok")).endswith(b"\r\n\r\nok")
        assert stage.connections == 1


async def test_chunks_are_passed_on_as_they_are() -> None:
    chunks = (b"5\r\nda", b"ta:\r\n", b"1;note=x\r\n \r\n", b"0\r\n\r\n")
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    async with in_front_of(says(head, *chunks)) as stage:
        answer = await stage.send(end=b"0\r\n\r\n")
        assert answer.partition(b"\r\n\r\n")[2] == b"".join(chunks)
        await stage.send(end=b"0\r\n\r\n")
        assert stage.connections == 1


async def test_an_answer_that_ends_with_its_connection() -> None:
    async with in_front_of(says(b"HTTP/1.1 200 OK\r\n\r\n", b"all ", b"of it", close=True)) as stage:
        answer = await stage.send()
        assert answer.endswith(b"all of it") and b"connection: close" in answer


async def test_an_interim_answer_is_swallowed_and_a_bodiless_one_ends() -> None:
    async with in_front_of(says(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n")) as stage:
        answer = await stage.send(end=b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 204 ") and answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n"],
)
async def test_what_is_not_http_is_a_503_that_says_so(answer: bytes) -> None:
    async with in_front_of(says(answer, close=True)) as stage:
        assert (await stage.send(end=b"}")).startswith(b"HTTP/1.1 503 ")


async def test_a_second_answer_to_one_request_reaches_nobody() -> None:
    async with in_front_of(says(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret")) as stage:
        for number in range(1, 3):
            answer = await stage.send(end=b"ok")
            assert answer.endswith(b"ok") and b"secret" not in answer
            assert stage.connections == number, "a connection with surplus on it must not be used again"


async def test_a_second_answer_after_chunks_cuts() -> None:
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"
    async with in_front_of(says(answer, b"0\r\n\r\n" + OK)) as stage:
        assert b"0\r\n\r\n" not in await stage.send()
        assert stage.count("cut_answers_total", reason="BadResponse") == 1


async def test_a_silent_engine_is_given_up() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with in_front_of(silent, response_timeout=0.05) as stage:
        answer = await stage.send(end=b"}")
        assert answer.startswith(b"HTTP/1.1 503 ") and b"ResponseTimeout" in answer
        assert stage.connections == 2, "once more, and no more"


async def test_silence_in_the_middle_is_said_in_the_stream() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    async def stops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(head + b"6\r\ndata:1\r\n")
        await reader.read()

    async with in_front_of(stops, stream_timeout=0.1) as stage:
        answer = await stage.send()
        assert b"data:1" in answer and b'"code":"ResponseTimeout"' in answer and answer.endswith(b"0\r\n\r\n")


async def test_a_connection_the_engine_had_closed_costs_no_request() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(OK)
        await writer.drain()
        await request_of(reader)  # takes the next request, and goes without a word

    async with in_front_of(once) as stage:
        for _ in range(4):
            assert (await stage.send(end=b"ok")).endswith(b"ok")


async def test_a_client_that_reads_nothing_is_cut() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(head)
        while True:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()

    async with in_front_of(floods, stream_timeout=0.2) as stage:
        _, writer = await asyncio.open_connection("127.0.0.1", stage.port, limit=1024)
        writer.write(ASK)
        async with asyncio.timeout(20):
            while stage.count("requests_total", code="499") < 1:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)
        writer.close()


async def test_only_the_fields_of_one_connection_are_dropped() -> None:
    seen: list[bytes] = []

    async def notes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await request_of(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-Keep: 2\r\ncontent-length: 2\r\n\r\nok")

    fields = b"Authorization: Bearer k\r\nConnection: keep-alive, x-mine\r\nX-Mine: 1\r\n"
    fields += b"TE: trailers\r\nTraceparent: 00-1\r\n"
    async with in_front_of(notes) as stage:
        answer = await stage.send(ASK.replace(b"host: x\r\n", b"host: x\r\n" + fields), end=b"ok")
    assert b"authorization: Bearer k\r\n" in seen[0] and b"traceparent: 00-1\r\n" in seen[0]
    assert b"x-mine" not in seen[0] and b"\r\nte:" not in seen[0] and seen[0].count(b"x-request-id:") == 1
    assert b"X-Keep: 2" in answer and b"X-Hop" not in answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (ASK.replace(b"HTTP/1.1", b"HTTP/1.0"), b"505"),
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", b"200"),
        (b"DELETE /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", b"405"),
        (b"nonsense\r\n\r\n", b"400"),
        (ASK.replace(b'{"prompt":"a"}', b'{"kv_transfer_p').replace(b"14", b"15"), b"200"),
        (ASK.replace(b'{"prompt":"a"}', b'{"kv_transfer_params').replace(b"14", b"20"), b"400"),
        (ASK.replace(b"14", b"999999"), b""),
    ],
)
async def test_odd_requests(data: bytes, status: bytes) -> None:
    async with in_front_of(says(OK)) as stage:
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
        writer.write(data)
        writer.write_eof() if not status else None
        async with asyncio.timeout(5):
            answer = await reader.read(65536)
        writer.close()
        assert answer[9:12] == status


async def test_bodies_and_requests_are_bounded() -> None:
    held = asyncio.Event()

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        await held.wait()
        writer.write(OK)

    async with in_front_of(waits, max_body_bytes=64, max_buffered_bytes=40, max_requests=3) as stage:
        assert b" 413 " in await stage.send(ASK.replace(b"14", b"65") + b" " * 51)
        running = [asyncio.create_task(stage.send(end=b"ok")) for _ in range(2)]
        while len(stage.proxy.running) < 2:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        assert b"TooManyBytes" in await stage.send(end=b"}")
        running.append(asyncio.create_task(stage.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", end=b"ok")))
        while len(stage.proxy.running) < 3:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        assert b"TooManyRequests" in await stage.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", end=b"}")
        held.set()
        assert all(answer.endswith(b"ok") for answer in await asyncio.gather(*running))
        assert (await stage.send(end=b"ok")).endswith(b"ok"), "what was held is given back"


async def test_bodies_that_do_not_end_are_bounded_too() -> None:
    begun = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 60\r\n\r\n" + b" " * 30
    async with in_front_of(says(OK), max_body_bytes=64, max_buffered_bytes=40) as stage:
        _, slow = await asyncio.open_connection("127.0.0.1", stage.port)
        slow.write(begun)
        while stage.proxy.server.arriving_bytes < 30:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        assert b" 503 " in await stage.send(end=b"shortly")
        slow.close()
        while stage.proxy.server.arriving_bytes:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        assert b" 200 " in await stage.send(end=b"ok")
