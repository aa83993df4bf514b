"""Streams that lose their worker: the client's text is what it would have been, its counts add up, or it is told."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from fake_worker import Call
from gateway_stage import running
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.fleet import Fleet, Role, Worker
from penstock.router.decisions import find_policy
from penstock.router.decisions.replay import (
    DONE,
    Transcript,
    ask_for_rest,
    carry_on,
    payloads,
    wants_usage,
    whole_chunks,
    why_not,
)
from penstock.router.shell.discovery.static import install
from penstock.router.shell.gateway import Gateway
from penstock.router.shell.models import ModelTable
from penstock.router.shell.settings import Settings

PROFILE = '{"prefill":[2,0.001,0],"decode":[10,0.01,0]}'


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str, reason: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": reason}
    return b"data: " + json.dumps({"id": "a", "created": 5, "choices": [choice], **more}).encode() + b"\n\n"


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(0, 400))
def test_whole_chunks_are_found_wherever_the_bytes_break_off(parts: list[bytes], cut: int) -> None:
    raw = b"".join(map(chunked, parts))[:cut]
    whole = raw[: whole_chunks(raw)]
    got = list(payloads(whole))
    assert got == parts[: len(got)]
    assert len(got) == len(parts) or len(whole) + len(chunked(parts[len(got)])) > len(raw)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=30), st.integers(1, 5))
def test_a_transcript_holds_the_text_however_it_is_cut_into_chunks(words: list[str], per_chunk: int) -> None:
    seen = Transcript()
    for at in range(0, len(words), per_chunk):
        seen.add(chunked(b"".join(map(event, words[at : at + per_chunk]))))
    seen.fold()
    assert seen.text == "".join(words) and seen.id == "a" and not seen.done and not seen.odd


def given_of(*events: bytes) -> Transcript:
    seen = Transcript()
    seen.add(chunked(b"".join(events)))
    seen.fold()
    return seen


def request(**fields: object) -> bytes:
    return json.dumps({"model": "m", "prompt": "p", "max_tokens": 10, "stream": True} | fields).encode()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n": 2}, "several choices"),
        ({"logprobs": 1}, "log probabilities"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "structured"),
        ({"prompt": ["a", "b"]}, "several prompts"),
        ({"echo": True}, "echoed"),
    ],
)
def test_what_cannot_be_continued_says_why(fields: dict[str, object], words: str) -> None:
    assert words in why_not(request(**fields), given_of(event(" w1")))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["n", "max_tokens", "max_completion_tokens", "min_tokens", "stream_options", "messages", "prompt", "tools"]


@given(
    st.dictionaries(st.sampled_from([*FIELDS, "response_format", "continue_final_message"]), json_values, max_size=6),
    st.lists(st.binary(max_size=30) | st.dictionaries(st.sampled_from(["id", "choices", "usage"]), json_values)),
)
def test_no_request_and_no_stream_is_too_odd_to_be_judged(fields: dict[str, object], events: list[object]) -> None:
    body = json.dumps(fields).encode()
    seen = Transcript()
    for one in events:
        data = one if isinstance(one, bytes) else b"data: " + json.dumps(one).encode()
        seen.add(chunked(data + b"\n\n"))
    seen.fold()
    wants_usage(body)
    if not why_not(body, seen):
        rest = ask_for_rest(body, seen, [1, 2])
        assert json.loads(rest.body).get("max_tokens") is None or json.loads(rest.body)["max_tokens"] >= 1


def test_what_was_given_can_forbid_it_too() -> None:
    delta = {"index": 0, "delta": {"tool_calls": [{"id": 1}]}}
    odd = b"data: " + json.dumps({"id": "a", "choices": [delta]}).encode() + b"\n\n"
    assert "more than text" in why_not(request(), given_of(odd))
    assert "middle" in why_not(request(), given_of(b'data: {"id"'))
    assert not why_not(request(n=1, logprobs=None, tools=[], response_format={"type": "text"}), given_of(event(" w")))


def test_the_rest_is_asked_for_behind_what_was_said() -> None:
    seen = given_of(event(" one"), event(" two"))
    rest = json.loads(ask_for_rest(request(min_tokens=4), seen, [7, 8]).body)
    assert rest["prompt"] == "p one two" and rest["max_tokens"] == 8 and rest["min_tokens"] == 2
    assert rest["stream_options"]["include_usage"] is True
    ids = json.loads(ask_for_rest(request(prompt=[1, 2]), seen, [7, 8]).body)
    assert ids["prompt"] == [1, 2, 7, 8]
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_completion_tokens": 5}
    more = json.loads(ask_for_rest(json.dumps(chat).encode(), seen, [7, 8]).body)
    assert more["messages"][-1] == {"role": "assistant", "content": " one two"} and more["max_tokens"] == 3
    assert more["continue_final_message"] is True and more["add_generation_prompt"] is False
    assert "max_completion_tokens" not in more


def test_a_continuation_carries_the_first_answers_name_and_the_sum_of_the_counts() -> None:
    seen = given_of(event(" one"), event(" two"))
    rest = ask_for_rest(request(stream_options={"include_usage": True}), seen, [7, 8])
    other = b"data: " + json.dumps({"id": "b", "created": 9, "choices": [{"index": 0, "text": " three"}]}).encode()
    carried = json.loads(carry_on(other, rest, seen)[6:])
    assert (carried["id"], carried["created"]) == ("a", 5) and seen.text == " one two three"
    counts = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    usage = b"data: " + json.dumps({"id": "b", "choices": [], "usage": counts}).encode()
    assert json.loads(carry_on(usage, rest, seen)[6:])["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
    }
    silent = ask_for_rest(request(), seen, [7, 8])
    assert carry_on(usage, silent, seen) == b""


async def test_a_stream_whose_end_alone_is_missing_is_ended() -> None:
    async def dies_at_the_end(call: Call) -> None:
        await call.start_stream()
        await call.send(chunked(event(" w1") + event(" w2", "length")))
        await asyncio.sleep(0.02)
        call.die()

    async with running(dies_at_the_end) as stage:
        answer = await stage.post(request())
        assert answer.endswith(chunked(DONE) + b"0\r\n\r\n") and len(stage.workers[0].received) == 1
        await stage.settled()


async def test_a_break_in_the_middle_of_an_event_is_a_cut_that_nobody_can_miss() -> None:
    async def dies_in_event(call: Call) -> None:
        await call.start_stream()
        await call.send(chunked(event(" w1") + b'data: {"id":'))
        await asyncio.sleep(0.02)
        call.die()

    async with running(dies_in_event, dies_in_event) as stage:
        answer = await stage.post(request())
        assert answer.endswith(b'{"id":\r\n') and len(stage.workers[1].received) == 0
        await stage.settled()


async def test_a_chunk_too_large_to_keep_still_reaches_the_client() -> None:
    big = chunked(event("x" * 3_000_000))

    async def sends(call: Call) -> None:
        await call.start_stream()
        await call.send(big + chunked(DONE) + b"0\r\n\r\n")

    async with running(sends) as stage:
        assert (await stage.post(request())).endswith(big + chunked(DONE) + b"0\r\n\r\n")
        await stage.settled()


async def test_a_worker_that_says_abort_is_a_lost_worker() -> None:
    async def aborts(call: Call) -> None:
        await call.start_stream()
        await call.send(chunked(event(" w1")))
        await asyncio.sleep(0.05)
        await call.send(chunked(event("", "abort").replace(b'": ', b'":')) + chunked(DONE) + b"0\r\n\r\n")

    async def continues(call: Call) -> None:
        if b"/tokenize" in call.received.head:
            await call.reply(b'{"tokens":[1],"count":1}')
            return
        assert call.received.json["prompt"] == "p w1" and call.received.json["max_tokens"] == 9
        await call.start_stream()
        await call.send(chunked(event(" w2", "length") + DONE) + b"0\r\n\r\n")

    async with running(aborts, continues) as stage:
        answer = await stage.post(request())
        assert b"abort" not in answer and b" w2" in answer and answer.endswith(b"0\r\n\r\n")
        assert stage.gateway.counters.continued == {"m": 1}
        await stage.settled()


# ---- against real simulated engines -------------------------------------------------------------


@dataclass
class Engine:
    process: subprocess.Popen[bytes]
    port: int


def start_engine(*flags: str) -> Engine:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "penstock.workers.simulated", "--served-model-name", "m", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--profile", PROFILE, "--enable-prompt-tokens-details", *flags]
    return Engine(subprocess.Popen(command, stderr=subprocess.DEVNULL), port)


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    started = [start_engine() for _ in range(3)]
    yield started
    for engine in started:
        engine.process.kill()
        engine.process.wait()


@asynccontextmanager
async def gateway_over(engines: list[Engine]) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    async with httpx.AsyncClient() as probe, asyncio.timeout(30):
        for engine in engines:
            while True:
                try:
                    if (await probe.get(f"http://127.0.0.1:{engine.port}/health")).status_code == 200:
                        break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
    fleet, models = Fleet(), ModelTable()
    known = [Worker(f"w{i}", "127.0.0.1", e.port, "m", Role.PREFILL_DECODE) for i, e in enumerate(engines)]
    install(known, fleet, models, find_policy("RoundRobin"), 1)
    gateway = Gateway(Settings(host="127.0.0.1", port=0), fleet, models)
    port = await gateway.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield gateway, client
    finally:
        await gateway.close()


async def read(client: httpx.AsyncClient, path: str, body: dict[str, object], begun: asyncio.Event) -> list[object]:
    """(text, finish reasons, usage, ids) of a stream; fails on an error event or a missing end."""
    text, reasons, usage, ids, done = "", [], None, set(), False
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", path, json={"model": "m", **options, **body}) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                chunk = json.loads(line[6:])
                assert "error" not in chunk, chunk
                ids.add((chunk["id"], chunk["created"]))
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    text += choice.get("text") or choice.get("delta", {}).get("content") or ""
                    reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
                    if text:
                        begun.set()
    assert done and len(ids) == 1
    assert usage is not None
    usage.pop("prompt_tokens_details", None)
    return [text, reasons, usage]


@pytest.mark.parametrize("chat", [False, True])
async def test_twenty_streams_survive_a_killed_worker_word_for_word(engines: list[Engine], chat: bool) -> None:
    path = "/v1/chat/completions" if chat else "/v1/completions"

    def body(number: int) -> dict[str, object]:
        asked = f"question {number} about pipes"
        prompt: dict[str, object] = {"messages": [{"role": "user", "content": asked}]} if chat else {"prompt": asked}
        return prompt | {"max_tokens": 150 + number}

    async with gateway_over(engines) as (gateway, client):
        expected = await asyncio.gather(*(read(client, path, body(n), asyncio.Event()) for n in range(20)))
        begun = [asyncio.Event() for _ in range(20)]
        running = [asyncio.create_task(read(client, path, body(n), begun[n])) for n in range(20)]
        await asyncio.gather(*(event.wait() for event in begun))
        engines[0].process.send_signal(signal.SIGKILL)
        assert await asyncio.gather(*running) == expected
        assert gateway.counters.continued["m"] >= 1, "nobody was being served by the worker that died"
        assert not gateway.counters.cut
        assert not gateway.fleet.reservations and not gateway.buffered_bytes


async def test_a_prompt_of_token_ids_and_a_second_death(engines: list[Engine]) -> None:
    async with gateway_over(engines) as (gateway, client):
        body: dict[str, object] = {"prompt": list(range(300, 340)), "max_tokens": 150}
        expected = await read(client, "/v1/completions", body, asyncio.Event())
        begun = asyncio.Event()
        running = asyncio.create_task(read(client, "/v1/completions", body, begun))
        await begun.wait()
        for deaths in (1, 2):
            (exchange,) = gateway.exchanges
            assert exchange._attempt is not None
            engines[int(exchange._attempt.worker.name[1:])].process.kill()
            async with asyncio.timeout(10):
                while gateway.counters.continued["m"] < deaths and not running.done():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
        assert await running == expected
        assert gateway.counters.continued["m"] == 2
