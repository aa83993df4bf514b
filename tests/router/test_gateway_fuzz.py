"""Requests nobody thought of: whatever comes in, no error of our own making, no hang, nothing left behind."""

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from fake_worker import Call, FakeWorker
from gateway_stage import Stage, request, running
from hypothesis import example, given, settings
from hypothesis import strategies as st
from penstock.core.fleet import Role
from test_process import process

FULL = os.environ.get("PENSTOCK_FULL") == "1"
EXAMPLES = settings(max_examples=2000 if FULL else 60)
PATIENCE = 20.0
"""Seconds until a connection that is neither answered nor closed counts as hanging."""

# ---- what is sent -------------------------------------------------------------------------------------------------

ODD_INTEGERS = st.sampled_from([0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 2**64, 10**40, -(10**400)])
NUMBERS = st.one_of(st.integers(), st.floats(), ODD_INTEGERS)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=30))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
KNOWN = [
    "model prompt messages stream stream_options max_tokens max_completion_tokens min_tokens n best_of priority echo",
    "kv_transfer_params vllm_xargs logprobs prompt_logprobs top_logprobs use_beam_search tools tool_choice stop suffix",
    "response_format add_generation_prompt continue_final_message return_token_ids seed user",
]
FIELDS = st.one_of(st.sampled_from(" ".join(KNOWN).split()), st.text(max_size=8))
LIMITS = st.tuples(st.sampled_from(["max_tokens", "max_completion_tokens", "n", "priority"]), ODD_INTEGERS)
PLAUSIBLE = st.sampled_from(
    [
        [("model", "m"), ("prompt", "word " * 300)],
        [("model", "m"), ("prompt", "word " * 300), ("stream", True)],
        [("model", "m"), ("prompt", [1, 2, 3]), ("max_tokens", 5), ("stream", True)],
        [("model", "m"), ("messages", [{"role": "user", "content": "hello " * 200}]), ("stream", True)],
        [],
    ]
)


@st.composite
def json_bodies(draw: st.DrawFn) -> bytes:
    """A request that looks like one: known fields with any values, in any order, some of them twice."""
    pairs = draw(PLAUSIBLE) + draw(st.lists(st.one_of(st.tuples(FIELDS, VALUES), LIMITS), max_size=5))
    escaped = draw(st.booleans())
    texts = [json.dumps(k, ensure_ascii=escaped) + ":" + json.dumps(v, ensure_ascii=escaped) for k, v in pairs]
    return ("{" + ",".join(texts) + "}").encode("utf-8", "surrogatepass")


@st.composite
def torn_bodies(draw: st.DrawFn) -> bytes:
    """Such a body with a part of it cut out, doubled or replaced by anything."""
    body = draw(json_bodies())
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(body))] * 2)))
    return body[:start] + draw(st.one_of(st.binary(max_size=20), st.just(body[start:end] * 2))) + body[end:]


BODIES = st.one_of(
    *[json_bodies()] * 4, torn_bodies(), VALUES.map(lambda v: json.dumps(v).encode()), st.binary(max_size=200)
)

NAMES = (
    b"accept accept-encoding authorization connection keep-alive te trailer upgrade expect x-request-id cookie date "
    b"x-forwarded-for x-request-priority content-type content-encoding proxy-connection forwarded traceparent x"
).split()
TOKENS = b"close keep-alive upgrade h2c content-length host x-request-id x 100-continue chunked gzip , ; = \t".split()
TOKEN_CHARACTERS = "!#$%&'*+-.^_`|~09azAZ"
HEADER_NAMES = st.one_of(
    st.sampled_from(NAMES), st.text(TOKEN_CHARACTERS, min_size=1, max_size=12).map(lambda s: b"x-" + s.encode())
)
HEADER_VALUES = st.one_of(
    st.lists(st.sampled_from(TOKENS), max_size=4).map(b", ".join),
    st.binary(max_size=40).map(lambda value: re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", value)),
)
HEADERS = st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=3)
GENERATING = [b"/v1/completions", b"/v1/chat/completions", b"/v1/completions?a=%zz&b"]
PATHS = st.sampled_from([*GENERATING * 2, b"/v1/models/m", b"/other"])
HUGE = json.dumps({"model": "m", "prompt": "x", "max_tokens": 2**63}).encode()


def head(method: bytes, path: bytes, version: bytes, fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A request's head, its end included."""
    lines = [method + b" " + path + b" HTTP/" + version, *[name + b": " + value for name, value in fields]]
    return b"\r\n".join(lines) + b"\r\n\r\n"


@st.composite
def whole_requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A request that ends where it says, and its body."""
    body = draw(BODIES)
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"]))
    fields = [(b"Host", b"g"), *draw(HEADERS), (b"Connection", b"close")]
    framing, payload = (b"Content-Length", b"%d" % len(body)), body
    if version == b"1.1" and draw(st.booleans()):
        size = draw(st.integers(1, 50))
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        framing = (b"Transfer-Encoding", b"chunked")
        payload = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return head(b"POST", draw(PATHS), version, [*fields, framing]) + payload, body


@st.composite
def wild_bytes(draw: st.DrawFn) -> bytes:
    """Requests one after another, with any methods, fields and framing, and then a part of it all torn."""
    wire = b""
    for _ in range(draw(st.integers(1, 3))):
        names = st.one_of(HEADER_NAMES, st.sampled_from([b"Host", b"Content-Length", b"Transfer-Encoding"]))
        values = st.one_of(HEADER_VALUES, st.integers(-2, 10**25).map(lambda n: b"%d" % n), st.binary(max_size=20))
        fields = [(b"Host", b"g"), *draw(st.lists(st.tuples(names, values), max_size=5))]
        method = draw(st.sampled_from([b"POST", b"GET", b"HEAD", b"PUT", b"CONNECT", b"OPTIONS", b"PRI", b"x"]))
        wire += head(method, draw(st.one_of(PATHS, st.binary(max_size=10))), b"1.1", fields) + draw(BODIES)
    at = draw(st.integers(0, len(wire)))
    return wire[:at] + draw(st.binary(max_size=10)) + wire[at + draw(st.integers(0, 10)) :]


# ---- who answers --------------------------------------------------------------------------------------------------


async def answers(call: Call) -> None:
    """As an engine would: what is asked as a stream is one, token counts are told, a first leg holds something."""
    if call.received.head.startswith(b"POST /tokenize"):
        await call.reply(b'{"count":1,"tokens":[5]}')
        return
    try:
        streams = call.received.json.get("stream") is True
    except (ValueError, AttributeError, RecursionError):
        streams = False
    if streams:
        await call.start_stream()
        await call.event(b'{"id":"a","choices":[{"index":0,"text":"hi","delta":{"content":"hi"}}]}')
        await call.event(b"[DONE]")
        await call.end_stream()
    else:
        await call.reply(b'{"choices":[],"kv_transfer_params":{"do_remote_prefill":true,"remote_block_ids":[[1]]}}')


async def breaks_off(call: Call) -> None:
    """Dies after the first event of every other stream."""
    if b'"stream"' in call.received.body and len(call.received.body) % 2 and b"tokenize" not in call.received.head:
        await call.start_stream()
        await call.event(b'{"id":"a","choices":[{"index":0,"text":"hi","delta":{"content":"hi"}}]}')
        call.die()
    else:
        await answers(call)


# ---- what must hold -----------------------------------------------------------------------------------------------


class Fuzzed:
    """A gateway that one example after the other is thrown at."""

    def __init__(self, runner: asyncio.Runner, stage: Stage) -> None:
        """Over this running stage; what its loop had to catch is kept."""
        self.runner = runner
        self.stage = stage
        self.caught: list[dict[str, Any]] = []
        runner.get_loop().set_exception_handler(lambda _, context: self.caught.append(context))

    def send(self, wire: bytes, *, half_close: bool) -> list[int]:
        """Throw these bytes; the statuses of the answers, once everything is given back."""
        answer = self.runner.run(self._send(wire, half_close))
        assert not self.caught, self.caught
        statuses = [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
        assert all(status < 500 for status in statuses), answer
        return [status for status in statuses if status >= 200]

    async def _send(self, wire: bytes, half_close: bool) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.stage.port)
        try:
            writer.write(wire)
            if half_close:
                writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), PATIENCE)
        except ConnectionError:
            answer = b""
        finally:
            writer.transport.abort()
        await self.stage.settled()
        return answer


@contextmanager
def fuzzed(*scripts: Callable[[Call], Any], roles: Sequence[Role] = (), policy: str = "RoundRobin") -> Iterator[Fuzzed]:
    """A gateway over such workers, for all examples of a test."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        room = running(*scripts, policy=policy, roles=roles, retry_deadline=PATIENCE / 2)
        stage = runner.run(room.__aenter__())
        try:
            yield Fuzzed(runner, stage)
        finally:
            runner.run(room.__aexit__(None, None, None))


CAST = {
    "one worker": ((answers,), (), "RoundRobin"),
    "the default policy": ((answers, answers), (), "KVAware"),
    "two legs": ((answers, answers), (Role.PREFILL, Role.DECODE), "LeastLoaded"),
    "streams that break": ((breaks_off, answers), (), "PrefixAffinity"),
}


@pytest.mark.parametrize("cast", CAST)
def test_every_whole_request_gets_one_answer_that_is_no_error_of_ours(cast: str) -> None:
    scripts, roles, policy = CAST[cast]
    with fuzzed(*scripts, roles=roles, policy=policy) as gateway:

        @EXAMPLES
        @example((request(HUGE, fields=b"Connection: close\r\n"), HUGE))
        @given(whole_requests())
        def holds(sent: tuple[bytes, bytes]) -> None:
            wire, body = sent
            workers = gateway.stage.workers
            for worker in workers:
                worker.received.clear()
            statuses = gateway.send(wire, half_close=False)
            assert len(statuses) == 1, statuses
            reached = [received for worker in workers for received in worker.received]
            assert bool(reached) == (statuses[0] == 200), "a worker saw what was refused, or not what was answered"
            if cast == "one worker" and reached and b"kv_transfer" not in body and b"xargs" not in body:
                assert [received.body for received in reached] == [body]

        holds()


def test_bytes_that_are_hardly_http_do_no_harm() -> None:
    with fuzzed(answers) as gateway:

        @EXAMPLES
        @given(wild_bytes())
        def holds(wire: bytes) -> None:
            gateway.send(wire, half_close=True)

        holds()


def resident_kib(pid: int) -> int:
    """Resident size of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])


@pytest.mark.full
@pytest.mark.skipif(not FULL, reason="long: PENSTOCK_FULL=1")
def test_a_router_process_keeps_its_size_under_what_nobody_thought_of() -> None:
    """After 500 requests everything that is made once is made; 1500 more must not add to it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        worker = FakeWorker(answers)
        runner.run(worker.__aenter__())
        room = process(f"--workers=m=http://127.0.0.1:{worker.port}")
        router = runner.run(room.__aenter__())
        port = int(router.base.rpartition(":")[2])
        sizes: list[int] = []

        async def send(wire: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(wire)
            answer = await asyncio.wait_for(reader.read(), PATIENCE)
            writer.transport.abort()
            return answer

        @settings(max_examples=2000)
        @given(whole_requests())
        def holds(sent: tuple[bytes, bytes]) -> None:
            worker.received.clear()
            answer = runner.run(send(sent[0]))
            assert re.findall(rb"HTTP/1\.1 ([2-5])", answer)[-1] in b"24", answer
            sizes.append(resident_kib(router.process.pid))

        try:
            holds()
        finally:
            runner.run(room.__aexit__(None, None, None))
            runner.run(worker.stop())
        assert sizes[-1] - sizes[500] < 32 * 1024, f"resident size grew by {sizes[-1] - sizes[500]} KiB"
