"""Workers that fail in every way, and clients that leave: who is told what, and what is tried again."""

import asyncio
import json

import httpx
import pytest
from fake_worker import STREAM_HEAD, Call, FakeWorker, plain
from gateway_stage import request, running
from penstock.core.fleet import Breaker, Worker

BODY = b'{"model":"m","prompt":"hello"}'


def status(answer: bytes) -> int:
    """Status code of a raw response."""
    return int(answer.split(b" ", 2)[1])


def error(answer: bytes) -> dict[str, object]:
    """The error object of a raw response."""
    found: dict[str, object] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


async def dies(call: Call) -> None:
    """Drops the connection before a byte."""
    call.die()


async def half_head(call: Call) -> None:
    """Drops the connection in the middle of the head."""
    await call.send(b"HTTP/1.1 200 OK\r\ncontent-le")
    call.die()


async def garbage(call: Call) -> None:
    """Is not HTTP."""
    await call.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


async def endless_head(call: Call) -> None:
    """A head that never ends."""
    await call.send(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000)


async def bad_length(call: Call) -> None:
    """Length and chunks at once."""
    await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")


async def draining(call: Call) -> None:
    """Takes nothing any more."""
    await call.reply(b'{"error":{"message":"draining"}}', b"503 Service Unavailable", b"Connection: close\r\n")


@pytest.mark.parametrize("script", [dies, half_head, garbage, endless_head, bad_length, draining])
async def test_failure_before_the_first_byte_goes_to_another_worker(script: object) -> None:
    async with running(script, plain) as s:  # type: ignore[arg-type]
        for _ in range(4):
            answer = await s.post(BODY)
            assert status(answer) == 200
            assert b'"worker": "w1"' in answer
        await s.settled()
        assert sum(s.gateway.counters.retries.values()) >= 2


async def test_refused_connection_goes_to_another_worker() -> None:
    async with running(plain, plain) as s:
        await s.workers[0].stop()
        for _ in range(4):
            assert status(await s.post(BODY)) == 200
        assert len(s.workers[1].received) == 4


async def test_every_worker_failing_is_a_502_with_a_reason() -> None:
    async with running(dies, garbage, attempts=3) as s:
        answer = await s.post(BODY)
        assert status(answer) == 502
        assert error(answer)["code"] == "RetriesExhausted"
        assert b"\r\nretry-after: " in answer
        assert sum(len(w.received) for w in s.workers) == 3
        await s.settled()


async def test_every_worker_draining_passes_their_503_through() -> None:
    async with running(draining, draining) as s:
        answer = await s.post(BODY)
        assert status(answer) == 503 and b"draining" in answer
        assert [len(w.received) for w in s.workers] == [1, 1]


async def test_worker_is_ejected_after_failures_in_a_row_and_comes_back() -> None:
    state = {"broken": True}

    async def sometimes(call: Call) -> None:
        if state["broken"]:
            call.die()
        else:
            await plain(call)

    async with running(sometimes, plain) as s:
        fleet = s.gateway.fleet
        for _ in range(12):
            assert status(await s.post(BODY)) == 200
        assert len(s.workers[0].received) == 3, "picked again while it was ejected"
        assert fleet.breaker[0] == Breaker.OPEN
        state["broken"] = False
        fleet.eject(0, until=s.gateway.loop.time())
        for _ in range(4):
            assert status(await s.post(BODY)) == 200
        assert fleet.breaker[0] == Breaker.CLOSED
        assert len(s.workers[0].received) > 4


async def test_stale_pooled_connection_is_replaced_without_blame() -> None:
    async def one_then_close(call: Call) -> None:
        await plain(call)
        call.writer.close()

    async with running(one_then_close) as s, httpx.AsyncClient(base_url=f"http://127.0.0.1:{s.port}") as client:
        for _ in range(5):
            assert (await client.post("/v1/completions", content=BODY)).status_code == 200
        assert s.gateway.fleet.failures[0] == 0


async def test_pooled_connection_that_dies_under_the_request_is_not_blamed() -> None:
    """The worker closes an idle connection just as a request is written to it."""
    count = 0

    async def second_time_dies(call: Call) -> None:
        nonlocal count
        count += 1
        if count == 2:
            call.die()
        else:
            await plain(call)

    async with running(second_time_dies, attempts=1) as s:
        for _ in range(3):
            assert status(await s.post(BODY)) == 200
        assert s.gateway.fleet.failures[0] == 0
        assert not s.gateway.counters.retries


async def test_no_second_worker_after_the_first_byte_and_an_error_event() -> None:
    async def dies_in_stream(call: Call) -> None:
        await call.start_stream()
        await call.event(b'{"t":1}')
        await asyncio.sleep(0.02)
        call.die()

    async with running(dies_in_stream, dies_in_stream) as s:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{s.port}") as client:
            response = await client.post("/v1/completions", content=BODY)
        events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
        assert events[0] == '{"t":1}'
        assert json.loads(events[1])["error"]["code"] == "Reset"
        assert len(events) == 2, "an error is the last event: no [DONE] after it"
        assert sum(len(w.received) for w in s.workers) == 1
        await s.settled()


async def test_a_part_of_a_chunk_is_never_given() -> None:
    async def dies_in_chunk(call: Call) -> None:
        await call.send(STREAM_HEAD + b"20\r\ndata: half")
        await asyncio.sleep(0.02)
        call.die()

    async with running(dies_in_chunk) as s, httpx.AsyncClient(base_url=f"http://127.0.0.1:{s.port}") as client:
        answer = await client.post("/v1/completions", content=BODY)
        assert "half" not in answer.text
        assert json.loads(answer.text.removeprefix("data: "))["error"]["code"] == "Reset"


async def test_short_body_is_not_ended_cleanly() -> None:
    async def short(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
        await asyncio.sleep(0.02)
        call.die()

    async with running(short, plain) as s:
        answer = await s.post(BODY)
        assert answer.endswith(b"only this")
        assert not s.workers[1].received


async def test_bytes_beyond_the_message_never_reach_the_client() -> None:
    async def surplus(call: Call) -> None:
        await call.send(
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
        )

    async with running(surplus) as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
        for _ in range(3):
            writer.write(request(BODY))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert b"content-length: 2" in head
            assert await reader.readexactly(2) == b"ok"
        writer.close()


async def test_surplus_after_chunks_breaks_the_response() -> None:
    async def surplus(call: Call) -> None:
        await call.send(STREAM_HEAD + b"2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")

    async with running(surplus) as s:
        assert b"evil" not in await s.post(BODY)


async def test_silent_worker_times_out_and_another_serves() -> None:
    async def silent(call: Call) -> None:
        await asyncio.sleep(30)

    async with running(silent, plain, response_timeout=0.2) as s:
        answer = await s.post(BODY)
        assert status(answer) == 200 and b'"worker": "w1"' in answer
        await s.settled()


async def test_worker_silent_in_mid_stream_is_cut_with_an_event() -> None:
    async def stalls(call: Call) -> None:
        await call.start_stream()
        await call.event(b"1")
        await asyncio.sleep(30)

    async with running(stalls, stream_timeout=0.2) as s:
        assert b"ResponseTimeout" in await s.post(BODY)


async def test_worker_removed_before_its_first_byte_hands_over() -> None:
    async def silent(call: Call) -> None:
        await asyncio.sleep(30)

    async with running(silent, plain) as s:
        answering = asyncio.create_task(s.post(BODY))
        await s.until(lambda: bool(s.workers[0].received))
        s.gateway.remove_worker(0)
        assert b'"worker": "w1"' in await answering
        await s.settled()


async def test_withdrawn_worker_finishes_its_stream_and_gets_no_more() -> None:
    go_on = asyncio.Event()

    async def waits(call: Call) -> None:
        await call.start_stream()
        await call.event(b"1")
        await go_on.wait()
        await call.event(b"2")
        await call.end_stream()

    async with running(waits, plain) as s:
        answering = asyncio.create_task(s.post(BODY))
        await s.until(lambda: bool(s.workers[0].received))
        s.gateway.fleet.withdraw(0)
        for _ in range(4):
            assert b'"worker": "w1"' in await s.post(BODY)
        go_on.set()
        assert b"data: 2" in await answering
        assert len(s.workers[0].received) == 1


async def test_no_worker_is_503_with_retry_after() -> None:
    async with running(plain) as s:
        s.gateway.fleet.set_ready(0, False)
        answer = await s.post(BODY)
        assert status(answer) == 503 and b"\r\nretry-after: 5\r\n" in answer
        assert error(answer)["code"] == "NoWorkers"


async def test_full_workers_are_429_with_retry_after() -> None:
    release = asyncio.Event()

    async def waits(call: Call) -> None:
        await release.wait()
        await plain(call)

    async with running(waits, max_in_flight=2) as s:
        held = [asyncio.create_task(s.post(BODY)) for _ in range(2)]
        await s.until(lambda: len(s.workers[0].received) == 2)
        answer = await s.post(BODY)
        assert status(answer) == 429 and b"\r\nretry-after: 1\r\n" in answer
        assert error(answer)["code"] == "WorkersBusy"
        release.set()
        assert [status(a) for a in await asyncio.gather(*held)] == [200, 200]


@pytest.mark.parametrize("streaming", [True, False])
async def test_client_that_leaves_cancels_the_worker(streaming: bool) -> None:
    left = asyncio.Event()

    async def waits(call: Call) -> None:
        if streaming:
            await call.start_stream()
            await call.event(b"1")
        assert await call.client_left()
        left.set()

    async with running(waits) as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
        writer.write(request(BODY))
        if streaming:
            await reader.readuntil(b"data: 1")
        else:
            await s.until(lambda: bool(s.workers[0].received))
        assert s.gateway.fleet.reservations == 1
        writer.close()
        await asyncio.wait_for(left.wait(), 5)
        await s.settled()
        assert s.gateway.counters.client_gone["m"] == 1


async def test_client_that_leaves_while_connecting_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(worker: Worker) -> None:
        await asyncio.sleep(60)

    async with running(plain) as s:
        monkeypatch.setattr(s.gateway, "connect", never)
        _, writer = await asyncio.open_connection("127.0.0.1", s.port)
        writer.write(request(BODY))
        await s.until(lambda: bool(s.gateway.exchanges))
        assert s.gateway.fleet.reservations == 1
        writer.close()
        await s.settled()


async def test_connect_that_hangs_times_out_and_another_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(plain, plain) as s:
        real = s.gateway.connect

        async def hangs_at_first(worker: Worker) -> object:
            if worker.name == "w0":
                raise TimeoutError
            return await real(worker)

        monkeypatch.setattr(s.gateway, "connect", hangs_at_first)
        for _ in range(2):
            assert b'"worker": "w1"' in await s.post(BODY)
        assert s.gateway.counters.connects["ConnectTimeout"] >= 1


async def test_worker_back_on_its_port_is_used_again() -> None:
    async with running(plain, plain) as s:
        port = s.workers[0].port
        await s.workers[0].stop()
        for _ in range(8):
            assert status(await s.post(BODY)) == 200
        async with FakeWorker(plain, "w0", port=port) as back:
            s.gateway.fleet.eject(0, until=s.gateway.loop.time())
            for _ in range(4):
                assert status(await s.post(BODY)) == 200
            assert back.received


async def test_drain_finishes_streams_refuses_connections_and_closes_idle_ones() -> None:
    go_on = asyncio.Event()

    async def waits(call: Call) -> None:
        await call.start_stream()
        await go_on.wait()
        await call.event(b"2")
        await call.end_stream()

    async with running(waits) as s:
        idle_reader, _ = await asyncio.open_connection("127.0.0.1", s.port)
        answering = asyncio.create_task(s.raw(request(BODY)))
        await s.until(lambda: bool(s.workers[0].received))
        draining_task = asyncio.create_task(s.gateway.drain(10))
        assert await asyncio.wait_for(idle_reader.read(), 5) == b""
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", s.port)
        assert not draining_task.done()
        go_on.set()
        assert b"data: 2" in await answering
        assert await draining_task is True


async def test_drain_gives_up_after_its_grace() -> None:
    async def forever(call: Call) -> None:
        await call.start_stream()
        await asyncio.sleep(60)

    async with running(forever) as s:
        answering = asyncio.create_task(s.raw(request(BODY)))
        await s.until(lambda: bool(s.workers[0].received))
        assert await s.gateway.drain(0.05) is False
        await s.gateway.close()
        await asyncio.wait_for(answering, 5)
