"""Prompts on their way into a pick: tokens and blocks as real simulated engines make them, and what is remembered."""

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from penstock.core.fleet import Fleet, Pick, PickReason, Request, Role, Worker
from penstock.router.decisions import find_policy
from penstock.router.shell.prompts import CONFIRMED_TTL, UNCONFIRMED_TTL, Prompts
from penstock.router.shell.settings import Settings
from test_process import free_port, process

PROFILE = '{"prefill":[1,0.01,0],"decode":[2,0.01,0]}'
LONG = "shared words of a long beginning " * 40


@asynccontextmanager
async def engines(count: int, *flags: str) -> AsyncIterator[list[int]]:
    """Simulated engines that serve model m, each in a process of its own."""
    ports = [free_port() for _ in range(count)]
    command = [sys.executable, "-m", "penstock.workers.simulated", "--served-model-name", "m", "--profile", PROFILE]
    events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": "tcp://*:0", "topic": "t"}
    command += ["--kv-events-config", json.dumps(events)]
    command += [
        "--enable-prompt-tokens-details",
        "--enable-force-include-usage",
        *flags,
        "--host",
        "127.0.0.1",
        "--port",
    ]
    started = [
        await asyncio.create_subprocess_exec(*command, str(port), stderr=asyncio.subprocess.DEVNULL) for port in ports
    ]
    try:
        async with httpx.AsyncClient() as client, asyncio.timeout(60):
            for port in ports:
                while True:
                    try:
                        if (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200:
                            break
                    except httpx.TransportError:
                        await asyncio.sleep(0.05)
        yield ports
    finally:
        for each in started:
            each.kill()
        await asyncio.gather(*(each.wait() for each in started))


@pytest.mark.parametrize("door", ["completions", "chat/completions"])
async def test_the_second_request_goes_where_the_first_left_its_blocks_and_all_agree_on_the_hit(door: str) -> None:
    def body(end: str) -> dict[str, object]:
        prompt: dict[str, object] = {"prompt": LONG + end}
        if door.startswith("chat"):
            prompt = {"messages": [{"role": "system", "content": LONG}, {"role": "user", "content": end}]}
        return {"model": "m", "max_tokens": 4, **prompt}

    async with engines(3) as ports, httpx.AsyncClient(timeout=30) as client:
        workers = ",".join(f"m=http://127.0.0.1:{port}" for port in ports)
        async with process(f"--workers={workers}", "--policy=KVAware", "--scrape-interval=0.2") as p:
            chosen, hits, expected = [], [], []
            for number in range(4):
                answer = await client.post(
                    f"{p.base}/v1/{door}", json=body(f"end {number}"), headers={"x-request-id": f"r{number}"}
                )
                assert answer.status_code == 200, answer.text
                usage = answer.json()["usage"]
                told = (await client.get(f"{p.metrics}/penstock/v1/explain/r{number}")).json()["picks"][0]
                assert told["promptTokens"] == usage["prompt_tokens"]
                chosen.append(told["worker"])
                expected.append(told["expectedHitTokens"])
                hits.append((usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0))
            page = await numbers(client, p.metrics)
    assert len(set(chosen)) == 1, "the first request's worker has the prefix"
    assert hits == expected and hits[0] == 0 and all(hit >= 240 for hit in hits[1:])
    told = {name: page[f'penstock_router_hit_{name}_tokens_total{{model="m"}}'] for name in ("predicted", "measured")}
    assert told == {"predicted": sum(hits), "measured": sum(hits)}
    assert page['penstock_router_hit_measured_requests_total{model="m"}'] == 4


async def test_after_our_memory_ends_the_engines_events_still_tell() -> None:
    """What another router sent, and what we have forgotten ourselves, is known from events alone."""
    async with engines(2) as ports, httpx.AsyncClient(timeout=30) as client:
        body: dict[str, object] = {"model": "m", "max_tokens": 1}
        workers = ",".join(f"m=http://127.0.0.1:{port}" for port in ports)
        async with process(f"--workers={workers}", "--policy=KVAware") as p, asyncio.timeout(90):
            for number in itertools.count():
                # The router hears of blocks that are stored after it has subscribed: each time other ones.
                body["prompt"] = f"{number} {LONG}"
                await client.post(f"http://127.0.0.1:{ports[1]}/v1/completions", json=body)
                page = await numbers(client, p.metrics)
                if page.get('penstock_router_kv_index_blocks{model="m"}', 0) >= 15:
                    break
                await asyncio.sleep(0.05)
            answer = await client.post(f"{p.base}/v1/completions", json=body, headers={"x-request-id": "r"})
            told = (await client.get(f"{p.metrics}/penstock/v1/explain/r")).json()["picks"][0]
    assert told["worker"] == f"127.0.0.1:{ports[1]}" and told["expectedHitTokens"] > 0
    assert told["expectedHitTokens"] == answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


async def numbers(client: httpx.AsyncClient, base: str) -> dict[str, float]:
    """A metrics page as name and labels -> value."""
    page = (await client.get(f"{base}/metrics")).text
    lines = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


async def test_a_client_that_leaves_while_its_prompt_is_read_leaves_nothing() -> None:
    async with engines(1) as (port,), process(f"--workers=m=http://127.0.0.1:{port}", "--policy=KVAware") as p:
        text = "word " * 200_000  # long enough to be read in a thread
        body = json.dumps({"model": "m", "prompt": text, "max_tokens": 1}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", int(p.base.rpartition(":")[2]))
            writer.write(head + body)
            await writer.drain()
            writer.close()
        async with httpx.AsyncClient(timeout=30) as client, asyncio.timeout(90):
            while True:
                page = await numbers(client, p.metrics)
                flight = [v for k, v in page.items() if k.startswith("penstock_router_worker_in_flight_requests")]
                seen = sum(v for k, v in page.items() if k.startswith("penstock_router_requests_total"))
                if seen == 5 and page["penstock_router_in_flight_requests"] == 0 and flight == [0]:
                    break
                await asyncio.sleep(0.05)


class Clock:
    """A clock that stands until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Telling:
    """Events of which only some workers send any."""

    def __init__(self, fleet: Fleet, told: set[str]) -> None:
        self._fleet, self._told = fleet, told

    def sync(self) -> None:
        """Nothing to follow."""

    def index(self, model: str) -> Fleet:
        raise AssertionError("not asked here")

    def tells(self, worker: Worker) -> bool:
        return worker.name in self._told


def fleet_of(*roles: Role) -> Fleet:
    fleet = Fleet()
    for number, role in enumerate(roles):
        fleet.set_ready(fleet.add(Worker(f"w{number}", "127.0.0.1", 1, "m", role)), True)
    return fleet


BODY = json.dumps({"model": "m", "prompt": list(range(1, 65))}).encode()
REQUEST = Request("r", "m", 10, 10)


async def described(prompts: Prompts) -> Request:
    return await prompts.describe(REQUEST, BODY, chat=False)


def pick(fleet: Fleet, request: Request) -> Pick:
    answer = find_policy("KVAware").pick(request, fleet.view(), 0.0, 0)
    assert isinstance(answer, Pick)
    return answer


async def test_a_pick_is_remembered_for_a_while_and_its_worker_for_its_life() -> None:
    fleet, clock = fleet_of(Role.PREFILL_DECODE, Role.PREFILL_DECODE), Clock()
    prompts = Prompts(Settings(), fleet, clock)
    request = await described(prompts)
    assert (request.prompt_tokens, len(request.block_hashes), request.exact_tokens) == (64, 4, True)
    first = pick(fleet, request)
    assert first.expected_hit_tokens == 0
    prompts.picked(request, first)
    again = pick(fleet, await described(prompts))
    assert (again.decode, again.expected_hit_tokens) == (first.decode, 48), "the last token is always computed"
    clock.now += UNCONFIRMED_TTL
    assert pick(fleet, await described(prompts)).expected_hit_tokens == 0
    prompts.picked(request, first)
    gone = fleet.remove(first.decode)
    fleet.set_ready(fleet.add(Worker("new", gone.host, 1, "m")), True)
    assert pick(fleet, await described(prompts)).expected_hit_tokens == 0, "the slot's new worker has nothing"
    await prompts.close()


async def test_both_ends_of_a_pair_hold_the_prompt_and_events_shorten_the_memory() -> None:
    fleet, clock = fleet_of(Role.PREFILL, Role.DECODE), Clock()
    prompts = Prompts(Settings(), fleet, clock)
    request = await described(prompts)
    prompts.picked(request, Pick(1, PickReason.LEAST_COST, "KVAware", *([fleet.view().ready("m")] * 2), "ms", 0))
    cached = fleet.cached_tokens(request)
    assert cached is not None and cached[:2].tolist() == [48, 48]
    await prompts.close()

    told = Prompts(Settings(), fleet, clock, Telling(fleet, {"w1"}))  # type: ignore[arg-type]
    request = await described(told)
    told.picked(request, Pick(1, PickReason.LEAST_COST, "KVAware", *([fleet.view().ready("m")] * 2), "ms", 0))
    clock.now += CONFIRMED_TTL
    told.sync()
    recent = told.recent("m")
    assert recent is not None and recent.longest_prefix(request.block_hashes, 2).tolist() == [4, 0]
    await told.close()


async def test_what_no_engine_could_read_is_picked_for_without_hashes() -> None:
    prompts = Prompts(Settings(), fleet_of(Role.PREFILL_DECODE), Clock())
    for body in (b'{"model":"m","prompt":""}', b'{"model":"m"}', b'{"model":"m","prompt":{"a":1}}', b"["):
        assert await prompts.describe(REQUEST, body, chat=False) is REQUEST
    batch = json.dumps({"model": "m", "prompt": [[1] * 32, [2] * 32]}).encode()
    request = await prompts.describe(REQUEST, batch, chat=False)
    assert request.prompt_tokens == 64 and request.block_hashes == ()
    await prompts.close()


async def test_blocks_have_the_size_that_engines_say() -> None:
    fleet = fleet_of(Role.PREFILL_DECODE)
    prompts = Prompts(Settings(), fleet, Clock())
    assert len((await described(prompts)).block_hashes) == 4
    prompts.learned_block_size("m", 32)
    request = await described(prompts)
    assert len(request.block_hashes) == 2
    prompts.picked(request, pick(fleet, request))
    assert pick(fleet, request).expected_hit_tokens == 32
    await prompts.close()
