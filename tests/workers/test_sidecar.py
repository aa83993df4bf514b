"""The P/D sidecar between real processes: where prompts are computed, what goes wrong, who goes last."""

import http.client
import itertools
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest

from .conftest import EngineProcess, StartEngine, parse_events, text_of, until
from .sidecar_stage import SidecarProcess

ANY_PORT = {"VLLM_NIXL_SIDE_CHANNEL_PORT": "0"}
_bases = itertools.count(1)


def fresh_prompt() -> list[int]:
    """300 tokens that no engine has seen: 18 whole blocks and a part."""
    base = next(_bases) * 301
    return list(range(base, base + 300))


def flags(role: str, scale: str = "0.05", lease: float = 30) -> list[str]:
    config = {
        "kv_connector": "NixlConnector",
        "kv_role": role,
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"kv_lease_duration": lease},
    }
    return ["--time-scale", scale, "--kv-transfer-config", json.dumps(config), "--enable-prompt-tokens-details"]


def pulled(engine: EngineProcess) -> float:
    return engine.metric("vllm:prompt_tokens_by_source_total", source="external_kv_transfer")


def computed(engine: EngineProcess) -> float:
    return engine.metric("vllm:prompt_tokens_by_source_total", source="local_compute")


def address(worker: EngineProcess) -> str:
    return f"127.0.0.1:{worker.port}"


@dataclass
class Pod:
    """A decode pod (engine and sidecar), a prefill worker, and an engine that does both and so says what is right."""

    prefill: EngineProcess
    decode: EngineProcess
    alone: EngineProcess
    sidecar: SidecarProcess

    @property
    def named(self) -> str:
        return address(self.prefill)

    def ask(self, prompt: object, prefiller: str = "", **fields: object) -> dict:
        response = self.sidecar.post({"model": "tiny", "prompt": prompt, "max_tokens": 8, **fields}, prefiller)
        assert response.status_code == 200, response.text
        return response.json()

    def right(self, prompt: object) -> str:
        return self.alone.complete(prompt=prompt, max_tokens=8)["choices"][0]["text"]


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    engines = [
        EngineProcess(*flags("kv_producer"), env=ANY_PORT),
        EngineProcess(*flags("kv_consumer"), "--enable-lora", env=ANY_PORT),
        EngineProcess("--time-scale", "0.05"),
    ]
    prefill, decode, alone = engines
    # The second known prefill worker never answers: nobody listens there.
    sidecar = SidecarProcess(decode.port, "--prefill-workers", f"{address(prefill)},{dead()}")
    yield Pod(prefill, decode, alone, sidecar)
    sidecar.close()
    for engine in engines:
        engine.close()


def dead() -> str:
    """An address that refuses connections. Port 1 is nobody's on loopback."""
    return "127.0.0.1:1"


def test_a_prompt_is_computed_where_the_header_says_and_answered_here(pod: Pod) -> None:
    prompt = fresh_prompt()
    before = pulled(pod.decode), computed(pod.decode), computed(pod.prefill)
    answer = pod.ask(prompt, pod.named)
    assert answer["choices"][0]["text"] == pod.right(prompt)
    assert answer["usage"]["completion_tokens"] == 8
    assert "kv_transfer_params" not in answer or answer["kv_transfer_params"] is None
    assert (pulled(pod.decode), computed(pod.decode)) == (before[0] + 300, before[1])
    assert computed(pod.prefill) == before[2] + 300


def test_a_stream_is_passed_on_byte_for_byte(pod: Pod) -> None:
    prompt = fresh_prompt()
    before = pulled(pod.decode)
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 20, "stream": True}
    response = pod.sidecar.post(body, pod.named, **{"x-request-id": "mine"})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-request-id"] == "mine"
    assert (
        text_of(parse_events(response.text)) == pod.alone.complete(prompt=prompt, max_tokens=20)["choices"][0]["text"]
    )
    assert pulled(pod.decode) == before + 300


def test_chat_has_legs_too(pod: Pod) -> None:
    content = " ".join(f"word{next(_bases)}" for _ in range(120))
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 8}
    before = pulled(pod.decode)
    response = pod.sidecar.post(body, pod.named, "/v1/chat/completions")
    right = pod.alone.post("/v1/chat/completions", body).json()
    assert response.json()["choices"][0]["message"] == right["choices"][0]["message"]
    assert pulled(pod.decode) == before + response.json()["usage"]["prompt_tokens"]


def test_without_the_header_the_engine_does_it_all(pod: Pod) -> None:
    prompt = fresh_prompt()
    before = pulled(pod.decode), computed(pod.decode), computed(pod.prefill)
    assert pod.ask(prompt)["choices"][0]["text"] == pod.right(prompt)
    assert (pulled(pod.decode), computed(pod.decode), computed(pod.prefill)) == (
        before[0],
        before[1] + 300,
        before[2],
    )


def test_what_cannot_have_legs_has_none(pod: Pod) -> None:
    prompt = fresh_prompt()
    before = computed(pod.prefill), pod.sidecar.metric("legs_total")
    assert len(pod.ask(prompt, pod.named, n=2)["choices"]) == 2
    assert (computed(pod.prefill), pod.sidecar.metric("legs_total")) == before


def test_a_client_cannot_bring_transfer_parameters(pod: Pod) -> None:
    """A bare `do_remote_prefill` ends an engine; hidden behind escapes or in vllm_xargs it must fare no better."""
    poison = {"do_remote_prefill": True}
    before = pod.sidecar.metric("stripped_requests_total")
    for forged in ({"kv_transfer_params": poison}, {"vllm_xargs": {"kv_transfer_params": poison}}):
        for prefiller in ("", pod.named):
            prompt = fresh_prompt()
            assert pod.ask(prompt, prefiller, **forged)["choices"][0]["text"] == pod.right(prompt)
    escaped = b'{"model":"tiny","prompt":"a b c","max_tokens":2,"kv_\\u0074ransfer_params":{"do_remote_prefill":true}}'
    assert httpx.post(pod.sidecar.url + "/v1/completions", content=escaped, timeout=30).status_code == 200
    assert pod.sidecar.metric("stripped_requests_total") == before + 5
    assert pod.decode.get("/health").status_code == 200


def test_an_unknown_address_is_never_contacted(pod: Pod) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.3)
        forged = f"127.0.0.1:{trap.getsockname()[1]}"
        refused, fell_back = (
            pod.sidecar.metric("refused_prefillers_total", reason="UnknownWorker"),
            pod.sidecar.metric("decodes_total", reason="Fallback"),
        )
        prompt = fresh_prompt()
        assert pod.ask(prompt, forged)["choices"][0]["text"] == pod.right(prompt)
        with pytest.raises(TimeoutError):
            trap.accept()
    assert pod.sidecar.metric("refused_prefillers_total", reason="UnknownWorker") == refused + 1
    assert pod.sidecar.metric("decodes_total", reason="Fallback") == fell_back + 1


@pytest.mark.parametrize("header", ["nonsense", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:99999", ",".join(["h:1"] * 600)])
def test_a_header_that_cannot_be_read_is_refused(pod: Pod, header: str) -> None:
    response = pod.sidecar.post({"model": "tiny", "prompt": "a", "max_tokens": 1}, header)
    assert response.status_code == 400
    assert "x-prefiller-host-port" in response.json()["error"]["message"]


def test_another_named_worker_takes_the_leg(pod: Pod) -> None:
    prompt = fresh_prompt()
    before = pulled(pod.decode), pod.sidecar.metric("legs_total", reason="ConnectRefused")
    assert pod.ask(prompt, f"{dead()}, {pod.named}")["choices"][0]["text"] == pod.right(prompt)
    assert pulled(pod.decode) == before[0] + 300
    assert pod.sidecar.metric("legs_total", reason="ConnectRefused") == before[1] + 1


def test_with_no_prefill_worker_left_the_engine_computes(pod: Pod) -> None:
    prompt = fresh_prompt()
    before = computed(pod.decode)
    assert pod.ask(prompt, dead())["choices"][0]["text"] == pod.right(prompt)
    assert computed(pod.decode) == before + 300


def test_an_engines_refusal_is_passed_on(pod: Pod) -> None:
    body = {"model": "other", "prompt": fresh_prompt(), "max_tokens": 2}
    through, straight = pod.sidecar.post(body, pod.named), pod.decode.post("/v1/completions", body)
    assert (through.status_code, through.json()) == (straight.status_code, straight.json())


def test_orders_do_not_pass(pod: Pod) -> None:
    for path in (
        "/v1/load_lora_adapter",
        "/sleep",
        "/reset_prefix_cache",
        "/metrics",
        "/v1/../sleep",
        "/v1/%2e%2e/sleep",
    ):
        connection = http.client.HTTPConnection("127.0.0.1", pod.sidecar.port, timeout=30)
        connection.request("POST", path, b"{}")
        assert connection.getresponse().status in (400, 404), path
        connection.close()


def test_questions_pass(pod: Pod) -> None:
    assert httpx.get(pod.sidecar.url + "/v1/models", timeout=30).json()["data"][0]["id"] == "tiny"
    assert httpx.get(pod.sidecar.url + "/health", timeout=30).status_code == 200


def test_a_connection_carries_many_requests(pod: Pod) -> None:
    with httpx.Client(base_url=pod.sidecar.url, timeout=60) as client:
        for prefiller in (pod.named, "", pod.named, dead()):
            headers = {"x-prefiller-host-port": prefiller} if prefiller else {}
            body = {"model": "tiny", "prompt": fresh_prompt(), "max_tokens": 3, "stream": True}
            assert parse_events(client.post("/v1/completions", json=body, headers=headers).text)


def test_many_at_once_all_come_out_right(pod: Pod) -> None:
    prompts = [fresh_prompt() for _ in range(12)]
    before = pulled(pod.decode)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda prompt: pod.ask(prompt, pod.named)["choices"][0]["text"], prompts))
    assert answers == [pod.right(prompt) for prompt in prompts]
    assert pulled(pod.decode) == before + 12 * 300
    until(lambda: pod.sidecar.metric("in_flight_requests") == 0)


# ---- things that die, each with processes of its own ---------------------------------------------


@pytest.fixture
def start_sidecar() -> Iterator[type[SidecarProcess]]:
    """Start sidecars; they end with the test."""
    running: list[SidecarProcess] = []

    def start(engine_port: int, *options: str) -> SidecarProcess:
        running.append(SidecarProcess(engine_port, *options))
        return running[-1]

    yield start  # type: ignore[misc]
    for sidecar in running:
        sidecar.close()


def running(engine: EngineProcess) -> float:
    return engine.metric("vllm:num_requests_running") + engine.metric("vllm:num_requests_waiting")


def test_a_prefill_worker_killed_in_the_middle_costs_its_leg_only(
    start_engine: StartEngine, start_sidecar: type[SidecarProcess]
) -> None:
    prefill = start_engine(*flags("kv_producer", scale="20000"), env=ANY_PORT)  # 300 tokens take 100 s here
    decode = start_engine(*flags("kv_consumer"), env=ANY_PORT)
    sidecar = start_sidecar(decode.port, "--prefill-workers", address(prefill))
    body = {"model": "tiny", "prompt": fresh_prompt(), "max_tokens": 8}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(sidecar.post, body, address(prefill))
        until(lambda: running(prefill) == 1)
        prefill.process.kill()
        answer = asked.result(60)
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 8
    assert (computed(decode), pulled(decode)) == (300, 0)
    assert sidecar.metric("decodes_total", reason="Fallback") == 1


def test_what_a_dead_worker_held_is_computed_again(
    start_engine: StartEngine, start_sidecar: type[SidecarProcess]
) -> None:
    """The prefill worker answers its leg and is gone before the decode engine pulls."""
    decode = start_engine(*flags("kv_consumer"), env=ANY_PORT)
    with ThreadPoolExecutor(1) as pool, socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sidecar = start_sidecar(decode.port, "--prefill-workers", f"127.0.0.1:{port}")
        prompt = fresh_prompt()
        asked = pool.submit(sidecar.post, {"model": "tiny", "prompt": prompt, "max_tokens": 8}, f"127.0.0.1:{port}")
        connection, _ = server.accept()
        assert b'"do_remote_decode":true' in connection.recv(65536)
        held = {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(1, 20))],
            "remote_engine_id": "gone",
            "remote_request_id": "cmpl-gone",
            "remote_host": "127.0.0.1",
            "remote_port": 1,
            "remote_num_tokens": 300,
        }
        answer = json.dumps({"choices": [], "kv_transfer_params": held}).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)
        connection.close()
        response = asked.result(60)
    assert response.status_code == 200, response.text
    assert sidecar.metric("decodes_total", reason="Transferred") == 1
    assert (computed(decode), pulled(decode)) == (300, 0)


@pytest.mark.parametrize("leg", ["first", "second"])
def test_a_client_that_leaves_ends_the_leg_under_way(
    leg: str, start_engine: StartEngine, start_sidecar: type[SidecarProcess]
) -> None:
    prefill = start_engine(*flags("kv_producer", scale="20000" if leg == "first" else "0.05"), env=ANY_PORT)
    decode = start_engine(*flags("kv_consumer", scale="20"), env=ANY_PORT)
    sidecar = start_sidecar(decode.port, "--prefill-workers", address(prefill))
    body = json.dumps({"model": "tiny", "prompt": fresh_prompt(), "max_tokens": 400, "stream": True}).encode()
    client = socket.create_connection(("127.0.0.1", sidecar.port), timeout=30)
    client.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-prefiller-host-port: %b\r\ncontent-length: %d\r\n\r\n"
        % (address(prefill).encode(), len(body))
        + body
    )
    busy = prefill if leg == "first" else decode
    until(lambda: running(busy) == 1)
    assert sidecar.metric("in_flight_requests") == 1
    client.close()
    until(lambda: running(busy) == 0)
    until(lambda: sidecar.metric("in_flight_requests") == 0)
    assert sidecar.metric("requests_total", code="499") == 1
    assert running(decode) == 0


def test_a_slow_reader_gets_every_byte(start_engine: StartEngine, start_sidecar: type[SidecarProcess]) -> None:
    decode = start_engine("--time-scale", "0.001", "--max-model-len", "32768")
    sidecar = start_sidecar(decode.port)
    body = json.dumps({"model": "tiny", "prompt": "a b", "max_tokens": 8000, "stream": True}).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(60)
    client.connect(("127.0.0.1", sidecar.port))
    client.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        + body
    )
    until(lambda: decode.metric("vllm:generation_tokens_total") > 500)
    response = http.client.HTTPResponse(client)
    response.begin()
    events = parse_events(response.read().decode())
    assert text_of(events) == decode.complete(prompt="a b", max_tokens=8000)["choices"][0]["text"]
    client.close()


def test_health_is_the_engines(start_engine: StartEngine, start_sidecar: type[SidecarProcess]) -> None:
    decode = start_engine("--time-scale", "0.05")
    sidecar = start_sidecar(decode.port)
    assert httpx.get(sidecar.url + "/health", timeout=30).status_code == 200
    decode.process.kill()
    decode.process.wait()
    response = httpx.get(sidecar.url + "/health", timeout=30)
    assert response.status_code == 503 and "engine" in response.json()["error"]["message"]
    assert sidecar.healthy() == 200  # the sidecar itself is well: restarting it would help nobody


def test_an_engine_lost_in_the_middle_of_a_stream_is_said(
    start_engine: StartEngine, start_sidecar: type[SidecarProcess]
) -> None:
    decode = start_engine("--time-scale", "5")
    sidecar = start_sidecar(decode.port)
    body = {"model": "tiny", "prompt": "a b", "max_tokens": 400, "stream": True}
    with httpx.stream("POST", sidecar.url + "/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        decode.process.kill()
        rest = list(lines)
    last = json.loads([line for line in rest if line][-1].removeprefix("data: "))
    assert "lost" in last["error"]["message"]
    assert sidecar.metric("cut_answers_total", reason="Reset") == 1


def test_the_sidecar_outlives_the_engine(start_engine: StartEngine, start_sidecar: type[SidecarProcess]) -> None:
    """Both are told to end at once: the running answer is whole, then the engine ends, then the sidecar."""
    decode = start_engine("--time-scale", "5", "--shutdown-timeout", "60")
    sidecar = start_sidecar(decode.port)
    body = {
        "model": "tiny",
        "prompt": "a b",
        "max_tokens": 200,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(sidecar.post(body)))
    asking.start()
    until(lambda: running(decode) == 1)
    sidecar.terminate()
    decode.terminate(wait_s=60)
    asking.join(60)
    assert sidecar.process.wait(30) == 0
    assert parse_events(answers[0].text)[-1]["usage"]["completion_tokens"] == 200
    text = "".join(sidecar.log)
    assert "waiting for the engine's end" in text and "ended; 0 requests cut" in text


def test_until_the_engine_ends_new_requests_are_served(
    start_engine: StartEngine, start_sidecar: type[SidecarProcess]
) -> None:
    decode = start_engine("--time-scale", "0.05")
    sidecar = start_sidecar(decode.port)
    assert sidecar.port
    sidecar.terminate()
    until(lambda: any("waiting for the engine's end" in line for line in sidecar.log))
    assert sidecar.post({"model": "tiny", "prompt": "a", "max_tokens": 2}).status_code == 200
    decode.terminate()
    assert sidecar.process.wait(30) == 0
