"""Requests no gateway should have to see: the right status, OpenAI's error form, bounded memory."""

import asyncio
import json
import resource

import pytest
from fake_worker import Call
from gateway_stage import request, running

BODY = b'{"model":"m","prompt":"hello"}'
HOST = b"Host: g\r\n"


def parsed(answer: bytes) -> tuple[int, dict[str, object]]:
    """Status and error object; asserts OpenAI's form."""
    head, _, body = answer.partition(b"\r\n\r\n")
    found = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["message"] and found["code"]
    assert b"content-type: application/json" in head and b"x-request-id: " in head
    return int(head.split(b" ")[1]), found


def post(fields: bytes, rest: bytes = b"") -> bytes:
    """A POST with these fields, after them these bytes."""
    return b"POST /v1/completions HTTP/1.1\r\n" + HOST + fields + b"\r\n" + rest


BAD_BODIES = [
    (b"", 400, "invalid_json"),
    (b"{", 400, "invalid_json"),
    (b'{"model":"m"} x', 400, "invalid_json"),
    (b"[]", 400, "invalid_type"),
    (b'"m"', 400, "invalid_type"),
    (b"null", 400, "invalid_type"),
    (b"{}", 400, "missing_model"),
    (b'{"prompt":"x"}', 400, "missing_model"),
    (b'{"model":7}', 400, "invalid_type"),
    (b'{"model":"m","stream":"yes"}', 400, "invalid_type"),
    (b'{"model":"m","max_tokens":"many"}', 400, "invalid_type"),
    (b'{"model":"\xff"}', 400, "invalid_json"),
    (b'{"model":"m","x":' + b"[" * 200_000, 400, "invalid_json"),
    (b'{"model":"other"}', 404, "model_not_found"),
    (b'{"model":""}', 404, "model_not_found"),
    (b'{"model":"' + b"x" * 100_000 + b'"}', 404, "model_not_found"),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD_BODIES, ids=[str(b[:40]) for b, _, _ in BAD_BODIES])
async def test_bad_body(body: bytes, status: int, code: str) -> None:
    async with running() as s:
        answer = await s.post(body)
        got, error = parsed(answer)
        assert (got, error["code"]) == (status, code)
        assert len(answer) < 2000
        assert not s.workers[0].received


async def test_unknown_model_names_the_known_ones() -> None:
    async with running() as s:
        _, error = parsed(await s.post(b'{"model":"gpt-9"}'))
        assert "'gpt-9'" in str(error["message"]) and str(error["message"]).endswith("Models served here: m.")
        assert error["param"] == "model"


async def test_connection_survives_a_bad_body() -> None:
    async with running() as s:
        answer = await s.raw(request(b"{") + request(b"{}") + request(BODY, fields=b"Connection: close\r\n"))
        assert [int(part.split(b" ")[0]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [400, 400, 200]


BAD_WIRE = [
    ("both length and chunks", post(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    ("chunks and length", post(b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", b"0\r\n\r\n"), 400),
    ("two lengths", post(b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abcd"), 400),
    ("two equal lengths", post(b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc"), 400),
    ("signed length", post(b"Content-Length: +3\r\n", b"abc"), 400),
    ("huge length", post(b"Content-Length: 99999999999999999999999\r\n"), 400),
    ("unknown coding", post(b"Transfer-Encoding: gzip\r\n", b"abc"), 400),
    ("chunked not last", post(b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n"), 400),
    ("bad chunk size", post(b"Transfer-Encoding: chunked\r\n", b"zz\r\nabc\r\n0\r\n\r\n"), 400),
    ("chunk longer than said", post(b"Transfer-Encoding: chunked\r\n", b"3\r\nabcdef\r\n0\r\n\r\n"), 400),
    ("space before colon", post(b"Content-Length : 3\r\n", b"abc"), 400),
    ("folded field", post(b"X: a\r\n b\r\n"), 400),
    ("bare line feed", b"POST /v1/completions HTTP/1.1\nHost: g\n\n", 400),
    ("NUL in a field", post(b"X: a\x00b\r\n"), 400),
    ("no host", b"POST /v1/completions HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
    ("two hosts", post(HOST + b"Content-Length: 0\r\n"), 400),
    ("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ("unknown version", b"POST / HTTP/9.9\r\nHost: g\r\n\r\n", 400),
    ("upgrade", post(b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 3\r\n", b"abc"), 400),
    ("unknown expectation", post(b"Expect: miracles\r\nContent-Length: 3\r\n", b"abc"), 417),
    ("unknown path", b"GET /v1/embeddings HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n", 404),
    ("bad method", b"GET /v1/completions HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n", 405),
    ("bad method on models", b"DELETE /v1/models HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n", 405),
    ("many fields", post(b"".join(b"X-%d: y\r\n" % i for i in range(200))), 431),
    ("long field", post(b"X: " + b"y" * 40_000 + b"\r\n"), 431),
    ("long target", b"POST /" + b"x" * 300_000, 431),
    ("field without end", b"POST /v1/completions HTTP/1.1\r\nHost: g\r\nX: " + b"y" * 400_000, 431),
    ("length over the limit", post(b"Content-Length: 17000000\r\n"), 413),
]


@pytest.mark.parametrize(("wire", "status"), [row[1:] for row in BAD_WIRE], ids=[row[0] for row in BAD_WIRE])
async def test_bad_wire(wire: bytes, status: int) -> None:
    async with running() as s:
        got, error = parsed(await s.raw(wire))
        assert got == status, error
        assert not s.workers[0].received


async def test_405_says_what_is_allowed() -> None:
    async with running() as s:
        answer = await s.raw(b"GET /v1/completions HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
        assert b"\r\nallow: POST\r\n" in answer


async def test_smuggled_second_request_is_never_served() -> None:
    async with running() as s:
        hidden = request(BODY)
        length = b"Content-Length: %d\r\n" % (len(hidden) + 5)
        answer = await s.raw(post(length + b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n" + hidden))
        assert answer.count(b"HTTP/1.1 ") == 1
        assert not s.workers[0].received


@pytest.mark.parametrize(
    "wire",
    [
        post(b"Content-Length: 100\r\n", b"only this"),
        post(b"Transfer-Encoding: chunked\r\n", b"20\r\nonly this"),
        b"POST /v1/completions HTTP/1.1\r\nHost: g\r\nX-Hal",
    ],
)
async def test_truncated_request_is_400(wire: bytes) -> None:
    async with running() as s:
        status, error = parsed(await s.raw(wire, half_close=True))
        assert (status, error["code"]) == (400, "truncated_request")


@pytest.mark.parametrize(
    "wire",
    [b"", b"POST /v1/compl", post(b"Content-Length: 100\r\n", b"only this"), request(BODY) + b"POST /v1"],
    ids=["nothing", "head", "body", "second head"],
)
async def test_silence_is_ended(wire: bytes) -> None:
    async with running(header_timeout=0.2, body_timeout=0.2, keepalive_timeout=0.2) as s:
        answer = await s.raw(wire)
        statuses = [int(part.split(b" ")[0]) for part in answer.split(b"HTTP/1.1 ")[1:]]
        assert statuses == {0: [], 14: [408]}.get(len(wire), [408] if b"only" in wire else [200, 408])
        await s.settled()


async def test_dripping_head_buys_no_time() -> None:
    async with running(header_timeout=0.3) as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)

        async def drip() -> None:
            for byte in b"POST /v1/completions HTTP/1.1\r\n" + b"X: y\r\n" * 1000:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert parsed(await asyncio.wait_for(reader.read(), 10))[0] == 408
        dripping.cancel()


async def test_dripping_body_is_ended_too() -> None:
    async with running(body_timeout=5.0, receive_timeout=0.3) as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
        writer.write(post(b"Content-Length: 100000\r\n"))

        async def drip() -> None:
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert parsed(await asyncio.wait_for(reader.read(), 10))[0] == 408
        dripping.cancel()


async def test_too_many_connections_are_told_so() -> None:
    async with running(max_connections=3) as s:
        held = [await asyncio.open_connection("127.0.0.1", s.port) for _ in range(3)]
        await s.until(lambda: len(s.gateway.connections) == 3)
        status, error = parsed(await s.raw(request(BODY)))
        assert (status, error["code"]) == (503, "TooManyConnections")
        for _, writer in held:
            writer.close()
        await s.until(lambda: not s.gateway.connections)
        assert (await s.post(BODY)).startswith(b"HTTP/1.1 200")


async def test_buffer_budget_is_shared_and_given_back() -> None:
    async with running(max_buffered_bytes=100_000) as s:
        _, writer = await asyncio.open_connection("127.0.0.1", s.port)
        writer.write(post(b"Content-Length: 95000\r\n", b" " * 90_000))
        await s.until(lambda: s.gateway.buffered_bytes == 90_000)
        status, error = parsed(await s.post(b'{"model":"m","prompt":"' + b"x" * 20_000 + b'"}'))
        assert (status, error["code"]) == (503, "TooManyBytes")
        writer.close()
        await s.settled()
        assert (await s.post(BODY)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("chunked", [True, False])
async def test_hundred_megabytes_do_not_stay_in_memory(chunked: bool) -> None:
    """100 MB of body: 413 and next to no memory, whether announced or not."""
    size, piece = 100 * 2**20, b"x" * 2**20
    async with running() as s:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
        writer.write(post(b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: %d\r\n" % size))

        async def pour() -> None:
            for _ in range(100):
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                await writer.drain()

        pouring = asyncio.create_task(pour())
        status, error = parsed(await asyncio.wait_for(reader.read(), 20))
        assert (status, error["code"]) == (413, "body_too_large")
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)
        writer.transport.abort()
        await s.settled()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 80 * 1024, f"resident size grew by {grown} KiB"


async def test_slow_reader_does_not_fill_memory() -> None:
    """A worker pours 200 MB at a client that reads nothing: the worker is slowed down instead."""
    written = 0

    async def pours(call: Call) -> None:
        nonlocal written
        await call.start_stream()
        event = b"data: " + b"x" * 65_000 + b"\n\n"
        for _ in range(3200):
            await call.send(b"%x\r\n%b\r\n" % (len(event), event))
            written += len(event)
        await call.end_stream()

    async with running(pours) as s:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port, limit=4096)
        writer.write(request(BODY))
        await reader.readuntil(b"\r\n\r\n")
        seen = -1
        while seen != written:
            seen = written
            await asyncio.sleep(0.2)
        assert written < 40 * 2**20, "the worker was never slowed down"
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 60 * 1024, f"resident size grew by {grown} KiB"
        writer.transport.abort()
        await s.settled()


async def test_pipelining_without_reading_does_not_fill_memory() -> None:
    """Answers that nobody takes are not fetched: what the sockets hold is all there is."""

    async def large(call: Call) -> None:
        await call.reply(b"x" * 100_000)

    async with running(large) as s:
        _, writer = await asyncio.open_connection("127.0.0.1", s.port, limit=4096)
        writer.transport.pause_reading()
        writer.write(request(BODY) * 600)
        seen = -1
        while seen != len(s.workers[0].received):
            seen = len(s.workers[0].received)
            await asyncio.sleep(0.3)
        assert 0 < seen < 300, f"{seen} answers of 100 kB were fetched for a client that reads none"
        writer.transport.abort()
        await s.settled()


async def test_client_that_never_reads_is_cut() -> None:
    async def pours(call: Call) -> None:
        await call.start_stream()
        while True:
            await call.event(b"x" * 65_000)

    async with running(pours, send_timeout=0.2) as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port, limit=4096)
        writer.write(request(BODY))
        await reader.readuntil(b"\r\n\r\n")
        await s.settled()
        assert s.gateway.counters.client_gone["m"] == 1
        writer.close()
