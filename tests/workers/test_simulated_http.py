"""The simulated engine's HTTP surface, as a client sees it over a real socket."""

import json
import socket

import pytest
from penstock.core.wire.metrics import (
    CACHED_SOURCES,
    ENGINE_METRICS,
    FINISHED_REASONS,
    PROMPT_SOURCES,
    SLEEP_STATES,
    WAITING_REASONS,
)

from .conftest import EngineProcess, text_of, until

WORDS = "one two three four"


def test_a_completion(engine: EngineProcess):
    body = engine.complete(prompt=WORDS, max_tokens=7)
    choice = body["choices"][0]
    assert body["object"] == "text_completion"
    assert body["usage"]["prompt_tokens"] == 4
    assert body["usage"]["completion_tokens"] == 7
    assert body["usage"]["total_tokens"] == 11
    assert len(choice["text"].split()) == 7
    assert choice["finish_reason"] == "length"


def test_a_completion_without_max_tokens_has_sixteen(engine: EngineProcess):
    assert engine.complete(prompt=WORDS)["usage"]["completion_tokens"] == 16


def test_a_stream_says_what_the_whole_says(engine: EngineProcess):
    whole = engine.complete(prompt=WORDS, max_tokens=50)
    events = engine.stream(prompt=WORDS, max_tokens=50, stream_options={"include_usage": True})
    assert text_of(events) == whole["choices"][0]["text"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 50
    assert all(event["usage"] is None for event in events[:-1])
    reasons = [event["choices"][0]["finish_reason"] for event in events[:-1]]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) <= {None}


def test_continuous_usage_counts_up_to_the_end(engine: EngineProcess):
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = engine.stream(prompt=WORDS, max_tokens=30, stream_options=options)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 30


def test_output_sent_again_continues_as_the_original(engine: EngineProcess):
    text = engine.complete(prompt=WORDS, max_tokens=20)["choices"][0]["text"]
    words = text.split()
    again = engine.complete(prompt=WORDS + " " + " ".join(words[:8]), max_tokens=12)
    assert again["choices"][0]["text"].split() == words[8:]
    wrong = engine.complete(prompt=WORDS + " " + " ".join([*words[:7], words[8]]), max_tokens=12)
    assert set(wrong["choices"][0]["text"].split()).isdisjoint(words[8:])


def test_ids_and_text_are_the_same_prompt(engine: EngineProcess):
    ids = engine.post("/tokenize", {"model": "tiny", "prompt": WORDS}).json()
    assert ids["count"] == 4
    by_ids = engine.complete(prompt=ids["tokens"], max_tokens=5)
    assert by_ids["choices"][0]["text"] == engine.complete(prompt=WORDS, max_tokens=5)["choices"][0]["text"]


def test_what_is_detokenized_tokenizes_back(engine: EngineProcess):
    tokens = [600, 70000, 131071]
    text = engine.post("/detokenize", {"model": "tiny", "tokens": tokens}).json()["prompt"]
    assert engine.post("/tokenize", {"model": "tiny", "prompt": text}).json()["tokens"] == tokens


def test_several_prompts_and_choices(engine: EngineProcess):
    body = engine.complete(prompt=["a b", "c d e"], n=2, max_tokens=3)
    texts = [choice["text"] for choice in body["choices"]]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 12,
        "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    events = engine.stream(prompt=["a b", "c d e"], n=2, max_tokens=3)
    assert [text_of(events, index) for index in range(4)] == texts


def test_a_chat(engine: EngineProcess):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello there"}]
    body = engine.post("/v1/chat/completions", {"model": "tiny", "messages": messages, "max_tokens": 6}).json()
    assert body["object"] == "chat.completion"
    assert body["usage"]["prompt_tokens"] == 2 * (2 + 2) + 1
    message = body["choices"][0]["message"]
    assert message["role"] == "assistant"
    events = engine.stream("/v1/chat/completions", messages=messages, max_tokens=6)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(events) == message["content"]
    assert not message["content"].startswith(" ")


def test_a_chat_without_limit_ends_by_itself(engine: EngineProcess):
    messages = [{"role": "user", "content": "hello"}]
    body = engine.post("/v1/chat/completions", {"model": "tiny", "messages": messages}).json()
    assert body["usage"]["completion_tokens"] == 40
    assert body["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it(engine: EngineProcess, stream: bool):
    text = engine.complete(prompt=WORDS, max_tokens=20)["choices"][0]["text"]
    stop = " ".join(text.split()[5:7])
    fields = {"prompt": WORDS, "max_tokens": 20, "stop": ["nothing", stop]}
    if stream:
        events = engine.stream(**fields)
        said, choice = text_of(events), events[-1]["choices"][0]
    else:
        choice = engine.complete(**fields)["choices"][0]
        said = choice["text"]
    assert said == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


def test_the_prefix_cache_answers_whole_blocks_only(engine: EngineProcess):
    prompt = [5000 + i for i in range(64)]
    queries = engine.metric("vllm:prefix_cache_queries_total")
    hits = engine.metric("vllm:prefix_cache_hits_total")
    first = engine.complete(prompt=prompt, max_tokens=1)
    second = engine.complete(prompt=prompt, max_tokens=1)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    # The last block is computed again, so that there is something to draw a token from.
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 48
    assert engine.metric("vllm:prefix_cache_queries_total") - queries == 128
    assert engine.metric("vllm:prefix_cache_hits_total") - hits == 48
    salted = engine.complete(prompt=prompt, max_tokens=1, cache_salt="tenantA")
    assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        ({"prompt": 7}, 400, None),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [1, "a"]}, 400, "prompt"),
        ({"prompt": [-1]}, 400, "prompt"),
        ({"prompt": [131072]}, 400, "prompt"),
        ({"prompt": "a", "model": "nobody"}, 404, "model"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "a", "max_tokens": 5000}, 400, "input_tokens"),
        ({"prompt": [600] * 2048}, 400, "input_tokens"),
        ({"prompt": "a", "n": 0}, 400, "n"),
        ({"prompt": "a", "n": -1}, 400, "n"),
        ({"prompt": "a", "n": 1000}, 400, "n"),
        ({"prompt": "a", "stream_options": {}}, 400, "stream_options"),
        ({"prompt": "a", "logprobs": 1}, 400, "logprobs"),
        ({"prompt": "a", "echo": True}, 400, "echo"),
        ({"prompt": "a", "min_tokens": 9, "max_tokens": 3}, 400, "min_tokens"),
    ],
)
def test_wrong_requests(engine: EngineProcess, body, status, param):
    response = engine.post("/v1/completions", body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (status, param)
    assert error["message"]


def test_paths_and_methods_that_are_not_there(engine: EngineProcess):
    assert engine.get("/v1/nothing").status_code == 404
    assert engine.get("/v1/completions").status_code == 405
    assert engine.post("/health").status_code == 405


def test_the_small_endpoints(engine: EngineProcess):
    assert engine.get("/health").status_code == 200
    assert engine.get("/health").content == b""
    assert engine.post("/ping").status_code == 200
    assert engine.get("/version").json() == {"version": "0.32.0"}
    assert engine.get("/load").json() == {"server_load": 0}
    assert engine.get("/kv_event_sources").json() == {}
    card = engine.get("/v1/models").json()["data"][0]
    assert (card["id"], card["max_model_len"], card["parent"]) == ("tiny", 2048, None)


def test_adapters_come_answer_and_go(engine: EngineProcess):
    load = {"lora_name": "styleA", "lora_path": "org/styleA"}
    assert engine.post("/v1/load_lora_adapter", load).status_code == 200
    repeat = engine.post("/v1/load_lora_adapter", load)
    assert (repeat.status_code, repeat.json()["error"]["type"]) == (400, "InvalidUserInput")
    assert engine.post("/v1/load_lora_adapter", {"lora_name": "b", "lora_path": "/no/such"}).status_code == 404
    cards = {card["id"]: card for card in engine.get("/v1/models").json()["data"]}
    assert cards["styleA"]["parent"] == "tiny"
    base = engine.complete(prompt=WORDS, max_tokens=5)["choices"][0]["text"]
    styled = engine.complete(prompt=WORDS, max_tokens=5, model="styleA")["choices"][0]["text"]
    assert base != styled
    assert engine.post("/v1/unload_lora_adapter", {"lora_name": "styleA"}).status_code == 200
    assert engine.post("/v1/completions", {"model": "styleA", "prompt": "a"}).status_code == 404


def test_a_sleeping_engine_answers_when_it_wakes(engine: EngineProcess):
    assert engine.post("/sleep?level=1").status_code == 200
    assert engine.get("/is_sleeping").json() == {"is_sleeping": True}
    assert engine.metric("vllm:engine_sleep_state", sleep_state="weights_offloaded") == 1
    with engine.connect() as client:
        client.sendall(raw_post("/v1/completions", {"prompt": "a b", "max_tokens": 2}))
        until(lambda: engine.metric("vllm:num_requests_waiting") == 1)
        assert engine.get("/health").status_code == 200
        assert engine.post("/wake_up").status_code == 200
        assert client.recv(12) == b"HTTP/1.1 200"
    assert engine.get("/is_sleeping").json() == {"is_sleeping": False}


def raw_post(path: str, body: object, extra: str = "") -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n{extra}\r\n"
    return head.encode() + content


def read_responses(client: socket.socket, count: int) -> list[bytes]:
    """Whole responses with a content length, as many as asked."""
    data, found = b"", []
    while len(found) < count:
        head, separator, rest = data.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) if separator else 0
        if separator and len(rest) >= length:
            found.append(rest[:length])
            data = rest[length:]
            continue
        piece = client.recv(65536)
        assert piece, "connection closed early"
        data += piece
    return found


def test_pipelined_requests_are_answered_in_order(engine: EngineProcess):
    prompts = ["a b", "c d e", "f"]
    with engine.connect() as client:
        client.sendall(b"".join(raw_post("/v1/completions", {"prompt": p, "max_tokens": 2}) for p in prompts))
        answers = [json.loads(body) for body in read_responses(client, 3)]
    assert [answer["usage"]["prompt_tokens"] for answer in answers] == [2, 3, 1]


def test_a_request_byte_by_byte(engine: EngineProcess):
    with engine.connect() as client:
        for byte in raw_post("/v1/completions", {"prompt": "a b", "max_tokens": 1}):
            client.sendall(bytes((byte,)))
        assert json.loads(read_responses(client, 1)[0])["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 70000 + b"\r\n\r\n", b"HTTP/1.1 431"),
        (b"POST /v1/completions HTTP/1.1\r\ncontent-length: nine\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET /health HTTP/1.0\r\n\r\n", b"HTTP/1.1 200"),
    ],
)
def test_bytes_that_are_hardly_http(engine: EngineProcess, sent, answer):
    with engine.connect() as client:
        client.sendall(sent)
        assert client.recv(len(answer)) == answer
        while client.recv(65536):
            pass  # ends: the connection is closed after it


def test_a_client_that_expects_100_gets_it(engine: EngineProcess):
    request = raw_post("/v1/completions", {"prompt": "a", "max_tokens": 1}, "expect: 100-continue\r\n")
    head, body = request.split(b"\r\n\r\n")
    with engine.connect() as client:
        client.sendall(head + b"\r\n\r\n")
        assert client.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert client.recv(12) == b"HTTP/1.1 200"


def test_an_http_1_0_stream_is_not_chunked(engine: EngineProcess):
    content = json.dumps({"prompt": "a b", "max_tokens": 3, "stream": True}).encode()
    with engine.connect() as client:
        client.sendall(b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(content), content))
        data = b""
        while piece := client.recv(65536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


def test_a_client_that_leaves_stops_the_work(engine: EngineProcess):
    aborts = engine.metric("vllm:request_success_total", finished_reason="abort")
    engine.post("/faults", b"slow=50")
    try:
        with engine.connect() as client:
            client.sendall(raw_post("/v1/completions", {"prompt": "a b", "max_tokens": 1500, "stream": True}))
            assert client.recv(12) == b"HTTP/1.1 200"
            until(lambda: engine.metric("vllm:num_requests_running") == 1)
        until(lambda: engine.metric("vllm:num_requests_running") == 0)
    finally:
        engine.post("/faults", b"none")
    assert engine.metric("vllm:request_success_total", finished_reason="abort") == aborts + 1
    assert engine.metric("vllm:kv_cache_usage_perc") == 0


def test_a_slow_reader_gets_fewer_larger_chunks_and_every_token(engine: EngineProcess):
    before = engine.metric("vllm:generation_tokens_total")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(("127.0.0.1", engine.port))
        fields = {"prompt": ["a", "b", "c", "d"], "n": 8, "max_tokens": 500, "stream": True, "ignore_eos": True}
        client.sendall(raw_post("/v1/completions", fields))
        # Nothing is read until the engine has finished: what does not fit the sockets waits as text, not as chunks.
        until(lambda: engine.metric("vllm:generation_tokens_total") >= before + 4 * 8 * 500)
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += client.recv(1 << 20)
    text = b"".join(unchunk(data.partition(b"\r\n\r\n")[2])).decode()
    chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    words = sum(len(choice["text"].split()) for chunk in chunks for choice in chunk["choices"])
    assert words == 4 * 8 * 500
    assert len(chunks) < words / 2


def unchunk(data: bytes) -> list[bytes]:
    pieces = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        pieces.append(data[:length])
        data = data[length + 2 :]
    return pieces


def test_the_metrics_page_has_every_family_with_its_type_and_labels(engine: EngineProcess):
    """The contract: what a scraper of vLLM finds there, and nothing of another name."""
    engine.complete(prompt=WORDS, max_tokens=4)
    types, samples = {}, {}
    for line in engine.get("/metrics").text.splitlines():
        if line.startswith("# TYPE vllm:"):
            name, kind = line.split()[2:]
            types[name] = kind
        elif line.startswith("vllm:"):
            name, labels = line.split("{", 1)
            found = {pair.split("=", 1)[0] for pair in labels.rsplit("}", 1)[0].split(",")}
            samples.setdefault(name, set()).update(found)
    expected = {}
    for metric in ENGINE_METRICS.values():
        if metric.when == "transfer":
            continue
        suffix = "_total" if metric.kind == "counter" else ""
        expected[metric.name + suffix] = str(metric.kind)
        if metric.kind != "gauge":
            expected[metric.name + "_created"] = "gauge"
        if metric.when == "lora":
            continue
        sample = {"counter": "_total", "histogram": "_count", "gauge": ""}[metric.kind]
        assert samples[metric.name + sample] == set(metric.labels), metric.name
    expected["vllm:cache_config_info"] = "gauge"
    assert types == expected


def test_the_labels_that_enumerate_are_complete(engine: EngineProcess):
    text = engine.get("/metrics").text
    for family, label, values in (
        ("vllm:request_success_total", "finished_reason", FINISHED_REASONS),
        ("vllm:num_requests_waiting_by_reason", "reason", WAITING_REASONS),
        ("vllm:prompt_tokens_by_source_total", "source", PROMPT_SOURCES),
        ("vllm:prompt_tokens_cached_by_source_total", "source", CACHED_SOURCES),
        ("vllm:engine_sleep_state", "sleep_state", SLEEP_STATES),
    ):
        for value in values:
            assert f'{family}{{engine="0",model_name="tiny",{label}="{value}"}}' in text


def test_histograms_add_up(engine: EngineProcess):
    engine.complete(prompt=WORDS, max_tokens=9)
    lines = engine.get("/metrics").text.splitlines()
    for family in ("time_to_first_token_seconds", "request_generation_tokens", "e2e_request_latency_seconds"):
        counts = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"vllm:{family}_bucket")]
        assert counts == sorted(counts)
        assert counts[-1] == engine.metric(f"vllm:{family}_count") > 0


def test_metrics_can_be_gone_while_requests_are_answered(engine: EngineProcess):
    engine.post("/faults", b"no-metrics")
    try:
        assert engine.get("/metrics").status_code == 503
        engine.complete(prompt=WORDS, max_tokens=2)
    finally:
        engine.post("/faults", b"none")
    assert engine.get("/metrics").status_code == 200


def test_two_requests_of_one_id_are_two_requests(engine: EngineProcess):
    engine.post("/faults", b"slow=20")
    asked = raw_post("/v1/completions", {"prompt": "a b", "max_tokens": 40}, "x-request-id: same\r\n")
    try:
        with engine.connect() as one, engine.connect() as two:
            one.sendall(asked)
            two.sendall(asked)
            answers = [json.loads(read_responses(client, 1)[0]) for client in (one, two)]
    finally:
        engine.post("/faults", b"none")
    assert [answer["id"] for answer in answers] == ["cmpl-same", "cmpl-same"]
    assert answers[0]["choices"] == answers[1]["choices"]
