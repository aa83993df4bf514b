"""Predicted and measured hits of a pair: over sockets, with simulated engines, told alike by Explain and metrics."""

import asyncio
import dataclasses
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from penstock.core.fleet import Fleet, Role, Worker
from penstock.router.decisions import find_policy
from penstock.router.shell.discovery.static import install
from penstock.router.shell.gateway import Gateway
from penstock.router.shell.models import ModelTable
from penstock.router.shell.prompts import Prompts
from penstock.router.shell.settings import Settings
from test_process import free_port
from test_prompts import LONG, PROFILE

ROLES = {"kv_producer": Role.PREFILL, "kv_consumer": Role.DECODE}


@asynccontextmanager
async def engine(role: str) -> AsyncIterator[int]:
    """A simulated engine of one half of pairs."""
    port = free_port()
    transfer = {"kv_connector": "NixlConnector", "kv_role": role}
    command = [sys.executable, "-m", "penstock.workers.simulated", "--served-model-name", "m", "--profile", PROFILE]
    command += ["--kv-transfer-config", json.dumps(transfer), "--enable-prompt-tokens-details", "--host", "127.0.0.1"]
    process = await asyncio.create_subprocess_exec(
        *command, "--port", str(port), stderr=asyncio.subprocess.DEVNULL, env={"VLLM_NIXL_SIDE_CHANNEL_PORT": "0"}
    )
    try:
        async with httpx.AsyncClient() as client, asyncio.timeout(60):
            while True:
                try:
                    if (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200:
                        break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        yield port
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def pairs(*roles: str) -> AsyncIterator[tuple[Gateway, list[int], httpx.AsyncClient]]:
    """A gateway with `KVAware` over engines of these roles."""
    async with contextstack(roles) as ports:
        settings = dataclasses.replace(Settings(host="127.0.0.1", port=0, policy="KVAware"), split_tokens=64)
        fleet, models = Fleet(), ModelTable()
        known = [
            Worker(f"w{number}", "127.0.0.1", port, "m", ROLES[role], domain="kv")
            for number, (role, port) in enumerate(zip(roles, ports, strict=True))
        ]
        install(known, fleet, models, find_policy("KVAware"), 1)
        gateway = Gateway(settings, fleet, models)
        gateway.prompts = Prompts(settings, fleet, gateway.loop.time)
        port = await gateway.start()
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                yield gateway, ports, client
        finally:
            await gateway.close()
            await gateway.prompts.close()


@asynccontextmanager
async def contextstack(roles: tuple[str, ...]) -> AsyncIterator[list[int]]:
    """One engine for each role."""
    if not roles:
        yield []
        return
    async with engine(roles[0]) as port, contextstack(roles[1:]) as others:
        yield [port, *others]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_pairs_hit_is_the_prefill_workers_to_the_block(streamed: bool) -> None:
    async with pairs("kv_producer", "kv_producer", "kv_consumer") as (gateway, ports, client):
        told = []
        for number in range(4):
            # So much of its own that the decode worker, which has the beginning too by then, had better not run it.
            own = f" {number} of its own" * 200
            body = {"model": "m", "prompt": LONG * 2 + own, "max_tokens": 4, "stream": streamed}
            answer = await client.post("/v1/completions", json=body, headers={"x-request-id": f"r{number}"})
            assert answer.status_code == 200, answer.text
            told.append(gateway.explanations.find(f"r{number}")[-1].as_dict())
        found = [await cached(client, port) for port in ports[:2]]
    assert gateway.prompts is not None
    assert all(each["prefillWorker"] is not None for each in told), "each was split"
    assert len({each["prefillWorker"] for each in told}) == 1, "who has the prefix gets the prompt"
    measured = [each["measuredHitTokens"] for each in told]
    expected = [each["expectedHitTokens"] for each in told]
    # The first answer leaves the figure out, as engines do where it is 0, and nobody can tell that from silence yet.
    assert measured[0] in (None, 0) and expected[0] == 0
    assert measured[1:] == expected[1:] and all(hit % 16 == 0 and hit >= 480 for hit in measured[1:])
    # The engines' own counters say the same, to the block.
    assert sorted(found) == [0.0, float(sum(measured[1:]))]
    reading = gateway.prompts.books.readings()["m"]
    assert reading.measured_tokens == reading.predicted_tokens == sum(measured[1:])
    assert reading.requests + reading.unmeasured == 4 and reading.unmeasured <= 1


async def cached(client: httpx.AsyncClient, port: int) -> float:
    """Prompt tokens an engine says it found in its own cache."""
    page = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    lines = [line for line in page.splitlines() if line.startswith("vllm:prefix_cache_hits_total")]
    return float(lines[0].rpartition(" ")[2]) if lines else 0.0
