"""A simulated engine's start, goodbye and faults: what its clients see of them."""

import json
import signal
import socket

import pytest

from .conftest import EngineProcess, StartEngine, parse_events, text_of, until
from .test_simulated_http import raw_post, unchunk


def read_to_end(client: socket.socket) -> bytes:
    data = b""
    while piece := client.recv(65536):
        data += piece
    return data


def open_stream(engine: EngineProcess, tokens: int = 400) -> socket.socket:
    client = engine.connect()
    client.sendall(raw_post("/v1/completions", {"prompt": "a b", "max_tokens": tokens, "stream": True}))
    until(lambda: engine.metric("vllm:generation_tokens_total") > 0)
    return client


def events_of(response: bytes) -> list[dict]:
    return parse_events(b"".join(unchunk(response.partition(b"\r\n\r\n")[2])).decode())


def test_nobody_listens_until_it_is_loaded(start_engine: StartEngine):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine = start_engine("--startup-seconds", "30", "--port", str(port))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert engine.terminate() in (0, -signal.SIGTERM)  # the latter where it was still importing


def test_sigterm_lets_a_stream_end_within_the_time_out(start_engine: StartEngine):
    engine = start_engine("--shutdown-timeout", "30")
    with open_stream(engine) as client:
        engine.process.send_signal(signal.SIGTERM)
        until(lambda: refused(engine))
        events = events_of(read_to_end(client))
    assert len(text_of(events).split()) == 400
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert engine.process.wait(10) == 0


def refused(engine: EngineProcess) -> bool:
    try:
        engine.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def test_without_a_time_out_a_stream_is_aborted_but_ended(start_engine: StartEngine):
    engine = start_engine()
    with open_stream(engine, tokens=4000) as client:
        engine.process.send_signal(signal.SIGTERM)
        events = events_of(read_to_end(client))
    assert events[-1]["choices"][0]["finish_reason"] == "abort"
    assert 0 < len(text_of(events).split()) < 4000
    assert engine.process.wait(10) == 0


def test_a_second_signal_does_not_wait(start_engine: StartEngine):
    engine = start_engine("--shutdown-timeout", "600", "--fault", "slow=20")
    with open_stream(engine, tokens=4000) as client:
        engine.process.send_signal(signal.SIGTERM)
        until(lambda: any("told to stop" in line for line in engine.log))
        engine.process.send_signal(signal.SIGTERM)
        assert events_of(read_to_end(client))[-1]["choices"][0]["finish_reason"] == "abort"
    assert engine.process.wait(10) == 0


def test_idle_connections_end_with_the_goodbye_and_when_they_are_old(start_engine: StartEngine):
    engine = start_engine(env={"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "0.5"})
    with engine.connect() as client:
        client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        assert read_to_end(client).startswith(b"HTTP/1.1 200")  # ends: closed for age
    with engine.connect() as client:
        engine.process.send_signal(signal.SIGTERM)
        assert read_to_end(client) == b""
    assert engine.process.wait(10) == 0


def test_a_taken_port_is_told_and_fatal(start_engine: StartEngine):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        engine = start_engine("--port", str(taken.getsockname()[1]))
        assert engine.process.wait(20) == 1
    until(lambda: any("cannot start" in line for line in engine.log))


def test_a_crash_cuts_connections(start_engine: StartEngine):
    engine = start_engine("--enable-faults")
    with open_stream(engine, tokens=4000) as client:
        engine.post("/faults", b"crash@0.05")
        try:
            data = read_to_end(client)
        except ConnectionResetError:
            data = b""
    assert b"[DONE]" not in data
    assert engine.process.wait(10) == -signal.SIGKILL


def test_a_hang_says_nothing_more_on_any_path(start_engine: StartEngine):
    engine = start_engine("--enable-faults")
    with open_stream(engine, tokens=4000) as client, engine.connect() as health:
        assert engine.post("/faults", b"hang").json()["hang"] is True
        health.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        for connection in (health, client):
            connection.settimeout(0.7)
            with pytest.raises(TimeoutError):
                while connection.recv(65536):
                    pass
    assert engine.process.poll() is None


def test_faults_are_off_unless_asked_for(start_engine: StartEngine):
    engine = start_engine()
    assert engine.post("/faults", b"crash").status_code == 404
    assert engine.post("/sleep").status_code == 404
    assert engine.post("/v1/load_lora_adapter", {}).status_code == 404


def test_slow_and_throttled_take_longer_than_well(start_engine: StartEngine):
    """Compared by the engine's own histogram of one fixed stream: the sum of its gaps."""
    engine = start_engine("--enable-faults", "--time-scale", "0.2")

    def seconds() -> float:
        before = engine.metric("vllm:inter_token_latency_seconds_sum")
        engine.complete(prompt="a b", max_tokens=40)
        return engine.metric("vllm:inter_token_latency_seconds_sum") - before

    well = seconds()
    engine.post("/faults", b"slow=10")
    slow = seconds()
    faults = engine.post("/faults", b"none,throttle=0.2").json()
    throttled = seconds()
    assert faults["clock"] == 0.2
    # 39 gaps of 0.4 ms; the bounds are what the profile says, since a busy machine only adds.
    assert slow >= 39 * 0.004 * 0.9
    assert throttled > 39 * 0.0004
    assert well > 0
    assert engine.post("/faults", b"slow=0").status_code == 400


def test_the_log_is_json_lines(start_engine: StartEngine):
    engine = start_engine("--enforce-eager")
    engine.complete(prompt="a", max_tokens=1)
    entries = [json.loads(line) for line in engine.log]
    assert {"time", "level", "message"} <= set(entries[0])
    assert any("--enforce-eager" in entry["message"] for entry in entries)
    assert len(entries) == 2, "requests are not logged"
