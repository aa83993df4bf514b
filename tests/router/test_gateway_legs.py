"""Both legs over real sockets: what each worker gets, and what the client gets when a leg goes wrong."""

import asyncio
import json

from fake_worker import Call
from gateway_stage import running
from penstock.core.fleet import Role

PAIR = (Role.PREFILL, Role.DECODE)
PARAMS = {"do_remote_prefill": True, "remote_block_ids": [[1, 2]], "remote_host": "10.0.0.1", "odd": 1.25}
LONG = json.dumps({"model": "m", "prompt": "word " * 400, "max_tokens": 7, "stream": False}).encode()


async def holds(call: Call) -> None:
    await call.reply(json.dumps({"choices": [], "kv_transfer_params": PARAMS}).encode())


async def dies(call: Call) -> None:
    call.die()


async def busy(call: Call) -> None:
    await call.reply(b"{}", b"503 Service Unavailable")


async def decodes(call: Call) -> None:
    await call.reply(b'{"text":"decoded"}')


async def test_the_first_legs_answer_reaches_the_decode_worker_untouched() -> None:
    async with running(holds, decodes, roles=PAIR) as stage:
        answer = await stage.post(LONG, fields=b"x-request-id: abc\r\n")
        assert answer.endswith(b'{"text":"decoded"}')
        first, second = stage.workers[0].received[0], stage.workers[1].received[0]
        assert first.json["max_tokens"] == 1 and first.json["stream"] is False
        assert first.json["prompt"] == second.json["prompt"]
        assert second.json["kv_transfer_params"] == PARAMS and second.json["max_tokens"] == 7
        assert first.fields["x-request-id"] == second.fields["x-request-id"] == "abc"
        assert stage.gateway.counters.splits == {("m", "Split"): 1}
        await stage.settled()


async def test_connections_of_first_legs_are_kept() -> None:
    async with running(holds, decodes, roles=PAIR) as stage:
        for _ in range(5):
            assert b"decoded" in await stage.post(LONG)
        assert stage.workers[0].connections == 1


async def test_a_clients_transfer_parameters_reach_no_leg() -> None:
    forged = json.dumps({**json.loads(LONG), "kv_transfer_params": {"do_remote_prefill": True}}).encode()
    async with running(holds, decodes, roles=PAIR) as stage:
        assert b"decoded" in await stage.post(forged)
        first, second = stage.workers[0].received[0], stage.workers[1].received[0]
        assert first.json["kv_transfer_params"] == {"do_remote_decode": True, "do_remote_prefill": False}
        assert second.json["kv_transfer_params"] == PARAMS
    async with running(decodes, roles=(Role.DECODE,)) as stage:
        assert b"decoded" in await stage.post(forged)
        assert "kv_transfer_params" not in stage.workers[0].received[0].json


async def test_a_dead_prefill_worker_costs_nothing_but_its_leg() -> None:
    for script in (dies, busy):
        async with running(script, decodes, roles=PAIR) as stage:
            assert b"decoded" in await stage.post(LONG)
            assert "kv_transfer_params" not in stage.workers[1].received[0].json
            await stage.settled()


async def test_another_prefill_worker_takes_the_leg() -> None:
    async with running(dies, holds, decodes, roles=(Role.PREFILL, Role.PREFILL, Role.DECODE)) as stage:
        for _ in range(4):
            assert b"decoded" in await stage.post(LONG)
        assert all(r.json["kv_transfer_params"] == PARAMS for r in stage.workers[2].received)


async def test_a_short_prompt_has_one_leg() -> None:
    async with running(holds, decodes, roles=PAIR) as stage:
        assert b"decoded" in await stage.post(b'{"model":"m","prompt":"hello"}')
        assert not stage.workers[0].received
        assert stage.gateway.counters.splits == {("m", "ShortPrompt"): 1}


async def test_a_client_that_leaves_during_the_first_leg_leaves_nothing_behind() -> None:
    left = asyncio.Event()

    async def waits(call: Call) -> None:
        if await call.client_left():
            left.set()

    async with running(waits, decodes, roles=PAIR) as stage:
        task = asyncio.create_task(stage.post(LONG))
        await stage.until(lambda: bool(stage.workers[0].received))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for connection in list(stage.gateway.connections):
            connection.eof_received()
        await asyncio.wait_for(left.wait(), 10)
        await stage.settled()


async def test_a_prefill_worker_removed_during_its_leg_hands_over() -> None:
    async def hangs(call: Call) -> None:
        await call.client_left()

    async with running(hangs, decodes, roles=PAIR) as stage:
        task = asyncio.create_task(stage.post(LONG))
        await stage.until(lambda: bool(stage.workers[0].received))
        slot = stage.gateway.fleet.slot_of("w0")
        assert slot is not None
        stage.gateway.remove_worker(slot)
        assert b"decoded" in await task
        await stage.settled()
