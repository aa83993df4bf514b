"""LoRA adapters: who has which, and that their requests go there, to blocks of their own."""

import asyncio
import json

import httpx
import msgspec
import pytest
from grpc_stage import serving
from penstock.core.fleet import Fleet, Worker
from penstock.router.client import RouterClient
from penstock.router.shell.adapters import Adapters, gathered, read_listing
from penstock.router.shell.rpc.service import RouterService
from penstock.router.v1 import router_pb2 as pb
from test_process import process
from test_prompts import LONG, engines


def listing(*cards: dict[str, object]) -> bytes:
    return json.dumps({"object": "list", "data": [{"created": 1, **card} for card in cards]}).encode()


BASE = {"id": "m", "root": "m", "parent": None}


def test_a_listing_tells_adapters_from_models() -> None:
    body = listing(BASE, {"id": "a", "root": "/a", "parent": "m"}, {"id": "m", "root": "/x", "parent": "m"})
    assert read_listing(body, "m") == {"a": "/a"}


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data":[{"id":1}]}', b'{"data":[{"id":"\xad"}]}'])
def test_what_is_no_listing_is_said(body: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, ValueError)):
        read_listing(body, "m")


@pytest.mark.parametrize("body", [b"[]", b'{"data":[{"id":"a","x":' + b"[" * 60_000 + b"]" * 60_000 + b"}]}"])
async def test_a_worker_that_lists_nonsense_does_not_end_the_asking(body: bytes) -> None:
    fleet = Fleet()
    for name, host in (("bad", "10.0.0.1"), ("good", "fd00::1")):
        fleet.set_ready(fleet.add(Worker(name, host, 8000, "m")), True)

    def answer(request: httpx.Request) -> httpx.Response:
        good = listing(BASE, {"id": "a", "root": "/a", "parent": "m"})
        return httpx.Response(200, content=good if request.url.host == "fd00::1" else body)

    adapters = Adapters(fleet)
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        await adapters.ask_all(client)
    adapter = adapters.find("a")
    assert adapter is not None and adapter.workers == {"good"}


def test_of_two_paths_under_one_name_the_one_most_have_counts() -> None:
    told = {
        "w0": ("m", {"a": "/1", "b": "/b"}),
        "w1": ("m", {"a": "/2"}),
        "w2": ("m", {"a": "/2"}),
        "w3": ("n", {"a": "/2"}),
    }
    known = gathered(told)
    assert (known["a"].key, known["a"].base, known["a"].workers) == (("a", "/2"), "m", {"w1", "w2"})
    assert known["b"].workers == {"w0"}
    even = gathered({"w0": ("m", {"a": "/2"}), "w1": ("m", {"a": "/1"})})
    assert even["a"].path == "/1", "no order of dictionaries decides"


def test_who_lacks_an_adapter_is_told_and_who_left_is_forgotten() -> None:
    fleet = Fleet()
    workers = [Worker(f"w{n}", "h", n, "m" if n < 3 else "other") for n in range(4)]
    slots = [fleet.add(worker) for worker in workers]
    adapters = Adapters(fleet)
    adapters.learn(workers[1], {"a": "/a"})
    adapter = adapters.find("a")
    assert adapter is not None and adapters.without(adapter) == {slots[0], slots[2]}
    assert [each.name for each in adapters.all()] == ["a"]
    adapters.learn(workers[1], {})
    assert adapters.find("a") is None
    adapters.learn(workers[2], {"a": "/a"})
    adapters.forget(["w2"])
    assert adapters.find("a") is None


async def test_requests_for_an_adapter_go_where_it_is_loaded_and_match_its_own_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    async with engines(3, "--enable-lora") as ports, httpx.AsyncClient(timeout=30) as client:
        loaded = {f"127.0.0.1:{port}" for port in ports[:2]}
        for name in sorted(loaded):
            answer = await client.post(
                f"http://{name}/v1/load_lora_adapter", json={"lora_name": "styleA", "lora_path": "s3://styles/a"}
            )
            assert answer.status_code == 200, answer.text
        workers = ",".join(f"m=http://127.0.0.1:{port}" for port in ports)
        async with process(f"--workers={workers}", "--policy=KVAware", "--adapter-interval=0.1") as p:
            async with asyncio.timeout(30):
                while True:
                    cards = (await client.get(f"{p.base}/v1/models")).json()["data"]
                    if [(c["id"], c.get("parent"), c["root"]) for c in cards[1:]] == [("styleA", "m", "s3://styles/a")]:
                        break
                    await asyncio.sleep(0.05)
            assert (await client.get(f"{p.base}/v1/models/styleA")).json()["parent"] == "m"

            async def ask(model: str, number: int) -> tuple[str, int, int, int]:
                body = {"model": model, "prompt": f"{LONG} end {number}", "max_tokens": 2}
                name = f"{model}-{number}"
                answer = await client.post(f"{p.base}/v1/completions", json=body, headers={"x-request-id": name})
                assert answer.status_code == 200, answer.text
                usage = answer.json()["usage"]
                told = (await client.get(f"{p.metrics}/penstock/v1/explain/{name}")).json()["picks"][0]
                hit = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
                return told["worker"], told["expectedHitTokens"], hit, len(told["candidates"])

            adapted = [await ask("styleA", number) for number in range(3)]
            plain = [await ask("m", number) for number in range(2)]
            unknown = await client.post(f"{p.base}/v1/completions", json={"model": "styleB", "prompt": "x"})
    assert unknown.status_code == 404
    assert {worker for worker, *_ in adapted} <= loaded and len({worker for worker, *_ in adapted}) == 1
    assert all(candidates == 2 for *_, candidates in adapted)
    # The engine hashes an adapter's blocks with its name and path: what was predicted is what it found, to the block.
    assert [expected for _, expected, _, _ in adapted] == [hit for _, _, hit, _ in adapted]
    assert adapted[0][2] == 0 and all(hit >= 240 for _, _, hit, _ in adapted[1:])
    # The base model's blocks are others: the same prompt is cached nowhere for it.
    assert (plain[0][1], plain[0][2]) == (0, 0) and plain[1][1] == plain[1][2] >= 240
    assert plain[0][3] == 3


async def test_an_adapter_is_picked_for_over_grpc_too() -> None:
    async with serving(workers=3) as here:
        service: RouterService = here.server.service
        service._adapters.learn(here.fleet.worker(1), {"styleA": "/a"})
        async with RouterClient(here.address) as client:
            picked = [
                (await client.pick(pb.PickRequest(model="styleA", prompt_tokens=5, max_tokens=5))).worker.name
                for _ in range(4)
            ]
    assert set(picked) == {"ns/w1"}
