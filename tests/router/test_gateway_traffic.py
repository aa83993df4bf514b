"""What a well-behaved client gets through the gateway."""

import asyncio
import json

import httptools
import httpx
import pytest
from fake_worker import Call, plain
from gateway_stage import request, running

BODY = b'{"model":"m","prompt":"hello","future_field":{"a":[1,2.50,"\\u00e9"]}}'


def status(answer: bytes) -> int:
    """Status code of a raw response."""
    return int(answer.split(b" ", 2)[1])


def payload(answer: bytes) -> bytes:
    """Body bytes of a raw response with a length."""
    return answer.partition(b"\r\n\r\n")[2]


async def stream_three(call: Call) -> None:
    """Three events and [DONE]."""
    await call.start_stream()
    for i in range(3):
        await call.event(b'{"i":%d}' % i)
    await call.event(b"[DONE]")
    await call.end_stream()


async def test_body_reaches_the_worker_byte_for_byte_and_the_answer_comes_back() -> None:
    async with running() as s:
        answer = await s.post(BODY)
        assert status(answer) == 200
        assert json.loads(payload(answer)) == {"worker": "w0"}
        assert s.workers[0].received[0].body == BODY


@pytest.mark.parametrize("path", [b"/v1/completions", b"/v1/chat/completions"])
async def test_path_and_query_are_kept(path: bytes) -> None:
    async with running() as s:
        assert status(await s.post(BODY, path + b"?x=1")) == 200
        assert s.workers[0].received[0].head.startswith(b"POST " + path + b"?x=1 HTTP/1.1\r\n")


async def test_a_stream_comes_as_the_worker_wrote_it() -> None:
    async with running(stream_three) as s:
        answer = await s.post(BODY)
        events = [b'data: {"i":%d}\n\n' % i for i in range(3)] + [b"data: [DONE]\n\n"]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(e), e) for e in events)
        assert payload(answer) == chunks + b"0\r\n\r\n"


async def test_first_event_arrives_before_the_second_is_made() -> None:
    go_on = asyncio.Event()

    async def waits(call: Call) -> None:
        await call.start_stream()
        await call.event(b"1")
        await go_on.wait()
        await call.event(b"2")
        await call.end_stream()

    async with (
        running(waits) as s,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{s.port}") as client,
        client.stream("POST", "/v1/completions", content=BODY) as response,
    ):
        lines = response.aiter_lines()
        assert await anext(lines) == "data: 1"
        go_on.set()
        assert [line async for line in lines if line] == ["data: 2"]


async def test_request_id_is_kept_passed_on_and_echoed() -> None:
    async with running() as s:
        answer = await s.post(BODY, fields=b"X-Request-Id: mine-1\r\n")
        assert b"\r\nx-request-id: mine-1\r\n" in answer
        assert s.workers[0].received[0].fields["x-request-id"] == "mine-1"


async def test_request_id_is_made_when_there_is_none_and_unique() -> None:
    async with running() as s:
        for _ in range(2):
            await s.post(BODY)
        first, second = (r.fields["x-request-id"] for r in s.workers[0].received)
        assert first and second and first != second


async def test_connection_fields_stay_on_their_side() -> None:
    async def with_fields(call: Call) -> None:
        await call.reply(fields=b"Keep-Alive: timeout=5\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Stays: 2\r\n")

    fields = b"Connection: close, X-Mine\r\nX-Mine: 1\r\nTE: trailers\r\nAuthorization: Bearer t\r\nX-Kept: 3\r\n"
    async with running(with_fields) as s:
        answer = await s.raw(request(BODY, fields=fields))
        got = s.workers[0].received[0].fields
        assert "x-mine" not in got and "te" not in got
        assert (got["authorization"], got["x-kept"], got["x-forwarded-for"]) == ("Bearer t", "3", "127.0.0.1")
        assert got["host"] == f"127.0.0.1:{s.workers[0].port}"
        lower = answer.lower()
        assert b"x-hop" not in lower and b"keep-alive" not in lower
        assert b"\r\nx-stays: 2\r\n" in lower and b"\r\nconnection: close\r\n" in lower


async def test_chunked_request_body_is_put_together() -> None:
    async with running() as s:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        pieces = b"".join(
            b"%x;ext=1\r\n%b\r\n" % (len(BODY[i : i + 7]), BODY[i : i + 7]) for i in range(0, len(BODY), 7)
        )
        assert status(await s.raw(head + pieces + b"0\r\nX-Trailer: 1\r\n\r\n")) == 200
        got = s.workers[0].received[0]
        assert got.body == BODY
        assert "x-trailer" not in got.fields and "transfer-encoding" not in got.fields


async def test_one_byte_at_a_time_both_ways() -> None:
    async def dribble(call: Call) -> None:
        answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
        for i in range(len(answer)):
            await call.send(answer[i : i + 1])
            await asyncio.sleep(0)

    async with running(dribble) as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
        for byte in request(BODY, fields=b"Connection: close\r\n"):
            writer.write(bytes([byte]))
            await writer.drain()
        answer = await asyncio.wait_for(reader.read(), 10)
        assert status(answer) == 200
        assert payload(answer).endswith(b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")


async def test_http_1_0_gets_plain_bytes_and_a_close() -> None:
    async with running(stream_three) as s:
        answer = await s.raw(request(BODY, version=b"1.0"))
        assert b"transfer-encoding" not in answer.lower()
        assert payload(answer) == b'data: {"i":0}\n\ndata: {"i":1}\n\ndata: {"i":2}\n\ndata: [DONE]\n\n'


async def test_http_1_0_with_a_length() -> None:
    async with running() as s:
        assert json.loads(payload(await s.raw(request(BODY, version=b"1.0")))) == {"worker": "w0"}


async def test_a_body_that_ends_with_the_connection_is_chunked_for_the_client() -> None:
    async def until_close(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nhello")
        await asyncio.sleep(0.01)
        await call.send(b" world")
        call.writer.close()

    async with running(until_close) as s, httpx.AsyncClient(base_url=f"http://127.0.0.1:{s.port}") as client:
        response = await client.post("/v1/completions", content=BODY)
        assert (response.status_code, response.text) == (200, "hello world")
        assert response.headers["transfer-encoding"] == "chunked"


async def test_expect_100_continue() -> None:
    async with running() as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
        whole = request(BODY, fields=b"Expect: 100-continue\r\nConnection: close\r\n")
        head, _, body = whole.partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert status(await asyncio.wait_for(reader.read(), 5)) == 200
        assert "expect" not in s.workers[0].received[0].fields


async def test_expect_with_a_body_too_large_is_refused_before_it_is_sent() -> None:
    async with running(max_body_bytes=10) as s:
        whole = request(BODY, fields=b"Expect: 100-continue\r\n")
        answer = await s.raw(whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        assert status(answer) == 413


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def slow_then_fast(call: Call) -> None:
        await asyncio.sleep(0.05 if call.received.json["prompt"] == "0" else 0)
        await call.reply(call.received.body)

    async with running(slow_then_fast, slow_then_fast) as s:
        bodies = [b'{"model":"m","prompt":"%d"}' % i for i in range(5)]
        wire = b"".join(request(b) for b in bodies[:-1]) + request(bodies[-1], fields=b"Connection: close\r\n")
        answer = await s.raw(wire)
        positions = [answer.index(b) for b in bodies]
        assert positions == sorted(positions)
        assert answer.count(b"HTTP/1.1 200") == 5


async def test_long_pipeline_is_served_whole() -> None:
    async with running(max_pipelined=4) as s:
        one, last = request(BODY), request(BODY, fields=b"Connection: close\r\n")
        answer = await s.raw(one * 199 + last)
        assert answer.count(b"HTTP/1.1 200 OK") == 200


async def test_keep_alive_reuses_both_connections() -> None:
    async with running() as s, httpx.AsyncClient(base_url=f"http://127.0.0.1:{s.port}") as client:
        for _ in range(5):
            assert (await client.post("/v1/completions", content=BODY)).status_code == 200
        assert s.workers[0].connections == 1
        assert s.gateway.counters.accepted_connections == 1


async def test_round_robin_alternates() -> None:
    async with running(plain, plain) as s:
        for _ in range(6):
            await s.post(BODY)
        assert [len(w.received) for w in s.workers] == [3, 3]


async def test_models_in_openai_form() -> None:
    async with running() as s, httpx.AsyncClient(base_url=f"http://127.0.0.1:{s.port}") as client:
        listing = (await client.get("/v1/models")).json()
        assert listing["object"] == "list"
        assert [m["id"] for m in listing["data"]] == ["m"]
        assert (await client.get("/v1/models/m")).json()["object"] == "model"
        assert (await client.get("/v1/models/x")).status_code == 404
        assert (await client.get("/health")).status_code == 200
        head = await client.head("/v1/models")
        assert (head.status_code, head.content) == (200, b"")


async def test_error_of_the_worker_passes_through() -> None:
    async def teapot(call: Call) -> None:
        await call.reply(b'{"error":{"message":"x"}}', b"500 Oh No")

    async with running(teapot, teapot) as s:
        answer = await s.post(BODY)
        assert answer.startswith(b"HTTP/1.1 500 Oh No\r\n")
        assert payload(answer) == b'{"error":{"message":"x"}}'
        assert sum(len(w.received) for w in s.workers) == 1


async def test_interim_responses_are_swallowed() -> None:
    async def early_hints(call: Call) -> None:
        await call.send(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        await call.reply()

    async with running(early_hints) as s:
        answer = await s.post(BODY)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and b"Link" not in answer


@pytest.mark.parametrize(
    "injected",
    [
        b'"kv_transfer_params":{"do_remote_prefill":true}',
        b'"kv\\u005ftransfer_params":{"do_remote_prefill":true}',
        b'"kv_transfer_params":1,"kv_transfer_params":{"x":[1]}',
        b'"vllm_xargs":{"kv_transfer_params":{"x":1},"kept":1.50}',
    ],
)
async def test_clients_cannot_inject_transfer_parameters(injected: bytes) -> None:
    async with running() as s:
        assert status(await s.post(b'{"model":"m","t":0.10,' + injected + b"}")) == 200
        got = s.workers[0].received[0]
        assert "kv_transfer_params" not in json.dumps(got.json)
        assert b'"t":0.10' in got.body
        if b"kept" in injected:
            assert got.json["vllm_xargs"] == {"kept": 1.5} and b"1.50" in got.body


async def test_answers_parse_strictly() -> None:
    """Everything the gateway writes is HTTP to a strict parser."""

    class Seen:
        done = 0

        def on_message_complete(self) -> None:
            self.done += 1

    async with running(stream_three, plain) as s:
        for body in (BODY, BODY, b"{", b'{"model":"x"}'):
            seen = Seen()
            httptools.HttpResponseParser(seen).feed_data(await s.post(body))
            assert seen.done == 1
