"""Prefill and decode legs between real processes, and what happens when a leg goes wrong."""

import json
import time

import pytest
from penstock.core.wire import PREFILL_LEG

from .conftest import EngineProcess, StartEngine, until

PROMPT = list(range(2000, 2300))
"""300 tokens: 18 whole blocks and a part."""


def transfer_flags(role: str, lease: float = 30, policy: str = "recompute") -> list[str]:
    config = {
        "kv_connector": "NixlConnector",
        "kv_role": role,
        "kv_load_failure_policy": policy,
        "kv_connector_extra_config": {"kv_lease_duration": lease},
    }
    return ["--time-scale", "0.05", "--kv-transfer-config", json.dumps(config), "--enable-prompt-tokens-details"]


def prefill(start_engine: StartEngine, lease: float = 30) -> EngineProcess:
    return start_engine(*transfer_flags("kv_producer", lease), env={"VLLM_NIXL_SIDE_CHANNEL_PORT": "0"})


def decode(start_engine: StartEngine, policy: str = "recompute") -> EngineProcess:
    return start_engine(*transfer_flags("kv_consumer", policy=policy), env={"VLLM_NIXL_SIDE_CHANNEL_PORT": "0"})


def first_leg(engine: EngineProcess) -> dict:
    return engine.complete(prompt=PROMPT, max_tokens=1, kv_transfer_params=PREFILL_LEG)["kv_transfer_params"]


def second_leg(engine: EngineProcess, params: object, **fields: object) -> dict:
    return engine.complete(prompt=PROMPT, max_tokens=8, kv_transfer_params=params, **fields)


def by_source(engine: EngineProcess, source: str) -> float:
    return engine.metric("vllm:prompt_tokens_by_source_total", source=source)


@pytest.fixture
def text(start_engine: StartEngine) -> str:
    """What one engine alone says."""
    return start_engine("--time-scale", "0.05").complete(prompt=PROMPT, max_tokens=8)["choices"][0]["text"]


def test_the_decode_worker_computes_nothing_of_the_prompt(start_engine: StartEngine, text: str):
    one, two = prefill(start_engine), decode(start_engine)
    params = first_leg(one)
    assert params["do_remote_prefill"] is True
    assert params["do_remote_decode"] is False
    assert params["remote_num_tokens"] == 300
    assert len(params["remote_block_ids"][0]) == 19
    assert one.metric("vllm:kv_cache_usage_perc") > 0
    body = second_leg(two, params)
    assert body["choices"][0]["text"] == text
    assert by_source(two, "external_kv_transfer") == 300
    assert by_source(two, "local_compute") == 0
    assert two.metric("vllm:nixl_bytes_transferred_sum") == 300 * 131072
    assert two.metric("vllm:nixl_num_failed_transfers_total") == 0
    until(lambda: one.metric("vllm:kv_cache_usage_perc") == 0)
    assert one.metric("vllm:nixl_num_kv_expired_reqs_total") == 0


def test_a_prefix_that_is_there_is_not_moved(start_engine: StartEngine):
    one, two = prefill(start_engine), decode(start_engine)
    second_leg(two, None)
    second_leg(two, first_leg(one))
    assert two.metric("vllm:nixl_bytes_transferred_sum") == (300 - 18 * 16) * 131072


def test_a_dead_prefill_worker_costs_time_not_the_request(start_engine: StartEngine, text: str):
    one, two = prefill(start_engine), decode(start_engine)
    params = first_leg(one)
    one.process.kill()
    one.process.wait()
    assert second_leg(two, params)["choices"][0]["text"] == text
    assert by_source(two, "local_compute") == 300
    assert two.metric("vllm:nixl_num_failed_transfers_total") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_policy_fail_fails(start_engine: StartEngine, stream: bool):
    one, two = prefill(start_engine), decode(start_engine, policy="fail")
    params = {**first_leg(one), "remote_engine_id": "somebody else"}
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 8, "kv_transfer_params": params, "stream": stream}
    response = two.post("/v1/completions", body)
    assert response.status_code == (200 if stream else 500)
    error = json.loads(response.text.split("\n\n")[0].removeprefix("data: "))["error"]
    assert "somebody else" in error["message"]
    assert error["code"] == 500
    assert two.complete(prompt="still here", max_tokens=1)["usage"]["completion_tokens"] == 1
    assert two.metric("vllm:kv_cache_usage_perc") == 0


def test_the_wrong_engine_is_recomputed_around(start_engine: StartEngine, text: str):
    one, two = prefill(start_engine), decode(start_engine)
    params = {**first_leg(one), "remote_engine_id": "somebody else"}
    assert second_leg(two, params)["choices"][0]["text"] == text
    assert by_source(two, "local_compute") == 300


def test_a_lease_ends_and_a_later_pull_gives_a_wrong_text(start_engine: StartEngine, text: str):
    one, two = prefill(start_engine, lease=0.3), decode(start_engine)
    params = first_leg(one)
    until(lambda: one.metric("vllm:nixl_num_kv_expired_reqs_total") == 1)
    assert one.metric("vllm:kv_cache_usage_perc") == 0
    time.sleep(0.05)
    body = second_leg(two, params)
    assert body["choices"][0]["text"] != text
    assert two.metric("vllm:nixl_num_failed_transfers_total") == 0
    assert one.metric("vllm:nixl_num_notifications_after_expiry_total") == 1


def test_another_requests_id_moves_the_blocks_but_frees_nothing(start_engine: StartEngine, text: str):
    one, two = prefill(start_engine), decode(start_engine)
    params = {**first_leg(one), "remote_request_id": "cmpl-other"}
    assert second_leg(two, params)["choices"][0]["text"] == text
    assert one.metric("vllm:kv_cache_usage_perc") > 0


@pytest.mark.parametrize("fields", [{"do_remote_prefill": True}, None])
def test_what_kills_a_real_engine_kills_this_one(start_engine: StartEngine, fields: dict | None):
    one, two = prefill(start_engine), decode(start_engine)
    params = fields if fields is not None else first_leg(one)
    prompt = PROMPT if fields is not None else [*PROMPT, *range(40)]
    body = json.dumps({"model": "tiny", "prompt": prompt, "max_tokens": 8, "kv_transfer_params": params}).encode()
    with two.connect() as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        assert two.process.wait(10) == 1
    assert any("AssertionError" in line for line in two.log)


def test_without_a_connector_the_parameters_mean_nothing(start_engine: StartEngine, text: str):
    plain = start_engine("--time-scale", "0.05")
    assert second_leg(plain, {"do_remote_prefill": True})["choices"][0]["text"] == text
    assert plain.complete(prompt="a", max_tokens=1, kv_transfer_params=PREFILL_LEG)["kv_transfer_params"] is None


def test_a_client_that_leaves_during_a_transfer_leaves_nothing_behind(start_engine: StartEngine):
    one = prefill(start_engine)
    two = start_engine(
        *transfer_flags("kv_consumer"),
        *("--kv-bytes-per-token", "131072"),
        env={"VLLM_NIXL_SIDE_CHANNEL_PORT": "0"},
    )
    slow = start_engine(
        *transfer_flags("kv_producer"),
        *("--link-gigabytes-per-second", "0.001"),
        env={"VLLM_NIXL_SIDE_CHANNEL_PORT": "0"},
    )
    params = first_leg(slow)
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 8, "kv_transfer_params": params, "stream": True}
    content = json.dumps(body).encode()
    with two.connect() as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(content), content))
        until(lambda: two.metric("vllm:num_requests_waiting_by_reason", reason="deferred") == 1)
    until(lambda: two.metric("vllm:num_requests_waiting") == 0)
    assert two.metric("vllm:kv_cache_usage_perc") == 0
    assert second_leg(two, first_leg(one))["usage"]["completion_tokens"] == 8
