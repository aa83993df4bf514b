"""Engines answer with a head when they accept a stream, with a token much later: between them, retries are free."""

import asyncio

from fake_worker import Call, plain
from gateway_stage import running

BODY = b'{"model":"m","prompt":"hello","stream":true}'


async def head_then_death(call: Call) -> None:
    """Accepts a stream, and dies during its prefill."""
    await call.start_stream()
    await asyncio.sleep(0.05)
    call.die()


async def head_then_tokens(call: Call) -> None:
    """Accepts a stream, and speaks later."""
    await call.start_stream()
    await asyncio.sleep(0.05)
    await call.event(b"one")
    await asyncio.sleep(0.02)
    await call.event(b"two")
    await call.end_stream()


async def test_death_between_head_and_first_token_goes_to_another_worker() -> None:
    async with running(head_then_death, plain) as s:
        for _ in range(4):
            answer = await s.post(BODY)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b'"worker": "w1"' in answer
            assert b"event-stream" not in answer, "two heads reached the client"
        await s.settled()
        assert len(s.workers[0].received) >= 2


async def test_a_late_first_token_passes_with_its_head() -> None:
    async with running(head_then_tokens) as s:
        answer = await s.post(BODY)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"data: one" in answer
        assert b"data: two" in answer
        assert answer.endswith(b"0\r\n\r\n")
        await s.settled()
