"""Prefill and decode legs between real processes, and what happens when a leg goes wrong."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from penstock.core.wire import PREFILL_LEG

from .conftest import EngineProcess, StartEngine, until

TOKEN_BYTES = 131_072
ANY_PORT = {"VLLM_NIXL_SIDE_CHANNEL_PORT": "0"}
_bases = itertools.count(1)


def fresh_prompt() -> list[int]:
    """300 tokens that no engine has seen: 18 whole blocks and a part."""
    base = next(_bases) * 1000
    return list(range(base, base + 300))


def flags(role: str, lease: float = 30, policy: str = "recompute") -> list[str]:
    config = {
        "kv_connector": "NixlConnector",
        "kv_role": role,
        "kv_load_failure_policy": policy,
        "kv_connector_extra_config": {"kv_lease_duration": lease},
    }
    return ["--time-scale", "0.05", "--kv-transfer-config", json.dumps(config), "--enable-prompt-tokens-details"]


@dataclass
class Trio:
    """A prefill worker, a decode worker, and one that does both and so says what is right."""

    prefill: EngineProcess
    decode: EngineProcess
    alone: EngineProcess

    def text(self, prompt: list[int]) -> str:
        return self.alone.complete(prompt=prompt, max_tokens=8)["choices"][0]["text"]


@pytest.fixture(scope="module")
def trio() -> Iterator[Trio]:
    engines = [
        EngineProcess(*flags("kv_producer"), env=ANY_PORT),
        EngineProcess(*flags("kv_consumer"), env=ANY_PORT),
        EngineProcess("--time-scale", "0.05"),
    ]
    yield Trio(*engines)
    for engine in engines:
        engine.close()


def first_leg(engine: EngineProcess, prompt: list[int]) -> dict:
    return engine.complete(prompt=prompt, max_tokens=1, kv_transfer_params=PREFILL_LEG)["kv_transfer_params"]


def second_leg(engine: EngineProcess, prompt: list[int], params: object) -> str:
    return engine.complete(prompt=prompt, max_tokens=8, kv_transfer_params=params)["choices"][0]["text"]


Change = Callable[[], float]


def change(engine: EngineProcess, name: str, **labels: str) -> Change:
    """How much a counter has risen since now."""
    before = engine.metric(name, **labels)
    return lambda: engine.metric(name, **labels) - before


def from_source(engine: EngineProcess, source: str) -> Change:
    return change(engine, "vllm:prompt_tokens_by_source_total", source=source)


def send(body: object) -> bytes:
    content = json.dumps(body).encode()
    return b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(content), content)


def test_the_decode_worker_computes_nothing_of_the_prompt(trio: Trio):
    prompt = fresh_prompt()
    pulled, computed = from_source(trio.decode, "external_kv_transfer"), from_source(trio.decode, "local_compute")
    moved = change(trio.decode, "vllm:nixl_bytes_transferred_sum")
    failed = change(trio.decode, "vllm:nixl_num_failed_transfers_total")
    idle = trio.prefill.metric("vllm:kv_cache_usage_perc")
    params = first_leg(trio.prefill, prompt)
    assert (params["do_remote_prefill"], params["do_remote_decode"]) == (True, False)
    assert (params["remote_num_tokens"], len(params["remote_block_ids"][0])) == (300, 19)
    assert trio.prefill.metric("vllm:kv_cache_usage_perc") > idle
    assert second_leg(trio.decode, prompt, params) == trio.text(prompt)
    assert (pulled(), computed(), moved(), failed()) == (300, 0, 300 * TOKEN_BYTES, 0)
    until(lambda: trio.prefill.metric("vllm:kv_cache_usage_perc") == idle)
    assert trio.prefill.metric("vllm:nixl_num_kv_expired_reqs_total") == 0


def test_a_prefix_that_is_there_is_not_moved(trio: Trio):
    prompt = fresh_prompt()
    second_leg(trio.decode, prompt, None)
    moved = change(trio.decode, "vllm:nixl_bytes_transferred_sum")
    second_leg(trio.decode, prompt, first_leg(trio.prefill, prompt))
    assert moved() == (300 - 18 * 16) * TOKEN_BYTES


def test_usage_tells_what_the_prefill_worker_found(trio: Trio):
    prompt = fresh_prompt()
    first_leg(trio.prefill, prompt)
    longer = prompt + fresh_prompt()
    params = first_leg(trio.prefill, longer)
    assert params["remote_prefill_cached_tokens"] == 288

    def cached(params: dict) -> int:
        usage = trio.decode.complete(prompt=longer, max_tokens=2, kv_transfer_params=params)["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert cached(params) == 288
    # Nobody is billed less than nothing, or told of more than there was.
    assert cached(params | {"remote_prefill_cached_tokens": 9999}) == len(longer)
    assert cached(params | {"remote_prefill_cached_tokens": -5}) == 0


def test_a_dead_prefill_worker_costs_time_not_the_request(trio: Trio, start_engine: StartEngine):
    prompt = fresh_prompt()
    mortal = start_engine(*flags("kv_producer"), env=ANY_PORT)
    params = first_leg(mortal, prompt)
    mortal.process.kill()
    mortal.process.wait()
    computed = from_source(trio.decode, "local_compute")
    failed = change(trio.decode, "vllm:nixl_num_failed_transfers_total")
    assert second_leg(trio.decode, prompt, params) == trio.text(prompt)
    assert (computed(), failed()) == (300, 1)


def test_the_wrong_engine_is_recomputed_around(trio: Trio):
    prompt = fresh_prompt()
    computed = from_source(trio.decode, "local_compute")
    params = {**first_leg(trio.prefill, prompt), "remote_engine_id": "somebody else"}
    assert second_leg(trio.decode, prompt, params) == trio.text(prompt)
    assert computed() == 300


def test_policy_fail_fails_whole_and_streamed(trio: Trio, start_engine: StartEngine):
    strict = start_engine(*flags("kv_consumer", policy="fail"), env=ANY_PORT)
    for stream, status in ((False, 500), (True, 200)):
        prompt = fresh_prompt()
        params = {**first_leg(trio.prefill, prompt), "remote_engine_id": "somebody else"}
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "kv_transfer_params": params, "stream": stream}
        response = strict.post("/v1/completions", body)
        assert response.status_code == status
        error = json.loads(response.text.split("\n\n")[0].removeprefix("data: "))["error"]
        assert "somebody else" in error["message"]
        assert error["code"] == 500
    assert strict.complete(prompt="still here", max_tokens=1)["usage"]["completion_tokens"] == 1
    assert strict.metric("vllm:kv_cache_usage_perc") == 0
    assert strict.metric("vllm:request_success_total", finished_reason="error") == 2


def test_a_lease_ends_and_a_later_pull_gives_a_wrong_text(trio: Trio, start_engine: StartEngine):
    prompt = fresh_prompt()
    hasty = start_engine(*flags("kv_producer", lease=0.3), env=ANY_PORT)
    params = first_leg(hasty, prompt)
    until(lambda: hasty.metric("vllm:nixl_num_kv_expired_reqs_total") == 1)
    assert hasty.metric("vllm:kv_cache_usage_perc") == 0
    failed = change(trio.decode, "vllm:nixl_num_failed_transfers_total")
    assert second_leg(trio.decode, prompt, params) != trio.text(prompt)
    assert failed() == 0
    assert hasty.metric("vllm:nixl_num_notifications_after_expiry_total") == 1


def test_another_requests_id_moves_the_blocks_but_frees_nothing(trio: Trio):
    prompt = fresh_prompt()
    idle = trio.prefill.metric("vllm:kv_cache_usage_perc")
    params = first_leg(trio.prefill, prompt)
    other = {**params, "remote_request_id": "cmpl-other"}
    assert second_leg(trio.decode, prompt, other) == trio.text(prompt)
    assert trio.prefill.metric("vllm:kv_cache_usage_perc") > idle
    second_leg(trio.decode, fresh_prompt(), params)
    until(lambda: trio.prefill.metric("vllm:kv_cache_usage_perc") == idle)


@pytest.mark.parametrize("case", ["a bare flag", "a longer prompt"])
def test_what_kills_a_real_engine_kills_this_one(trio: Trio, start_engine: StartEngine, case: str):
    mortal = start_engine(*flags("kv_consumer"), env=ANY_PORT)
    prompt, params = fresh_prompt(), {"do_remote_prefill": True}
    if case == "a longer prompt":
        params = first_leg(trio.prefill, prompt)
        prompt += range(40)
    with mortal.connect() as client:
        client.sendall(send({"prompt": prompt, "max_tokens": 8, "kv_transfer_params": params}))
        assert mortal.process.wait(10) == 1
    until(lambda: any("AssertionError" in line for line in mortal.log))


def test_without_a_connector_the_parameters_mean_nothing(trio: Trio):
    prompt = fresh_prompt()
    assert second_leg(trio.alone, prompt, {"do_remote_prefill": True}) == trio.text(prompt)
    assert trio.alone.complete(prompt="a", max_tokens=1, kv_transfer_params=PREFILL_LEG)["kv_transfer_params"] is None


def test_a_client_that_leaves_during_a_transfer_leaves_nothing_behind(trio: Trio, start_engine: StartEngine):
    slow = start_engine(*flags("kv_producer"), "--link-gigabytes-per-second", "0.001", env=ANY_PORT)
    prompt = fresh_prompt()
    idle = trio.decode.metric("vllm:kv_cache_usage_perc")
    body = {"prompt": prompt, "max_tokens": 8, "kv_transfer_params": first_leg(slow, prompt), "stream": True}
    with trio.decode.connect() as client:
        client.sendall(send(body))
        until(lambda: trio.decode.metric("vllm:num_requests_waiting_by_reason", reason="deferred") == 1)
    until(lambda: trio.decode.metric("vllm:num_requests_waiting") == 0)
    assert trio.decode.metric("vllm:kv_cache_usage_perc") == idle
    prompt = fresh_prompt()
    assert second_leg(trio.decode, prompt, first_leg(trio.prefill, prompt)) == trio.text(prompt)
