"""Prefill and decode apart, on a box of its own: where prompts are computed, whence tokens come, what deaths cost."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from penstock.box.testing import temporary_box, why_no_box
from verbs import Cluster, Object, is_ready, wait_for

NODES = "h100-80g=1x8,a100-80g=2x8"
NAME = "llama-70b"
MODEL = "meta-llama/Llama-3.1-70B-Instruct"
PREFILLS, DECODES = 1, 2
pytestmark = [pytest.mark.box, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def apart() -> Iterator[Cluster]:
    """A box with `examples/llama-70b-disaggregated` available."""
    if reason := why_no_box():
        pytest.skip(reason)
    with temporary_box(NODES, example="llama-70b-disaggregated") as box:
        cluster = Cluster(Path(box.program("kubectl")), box.kubeconfig, box.paths.control_socket, box.gateway_url)
        wait_for("both sides serve", lambda: all_ready(cluster), 120)
        yield cluster


def all_ready(cluster: Cluster) -> bool:
    return (
        cluster.condition(NAME, "Available").get("status") == "True"
        and len(workers(cluster, "Prefill")) == PREFILLS
        and len(workers(cluster, "Decode")) == DECODES
        and all(map(is_ready, cluster.workers(NAME)))
    )


def workers(cluster: Cluster, role: str) -> list[Object]:
    return [p for p in cluster.workers(NAME) if p["metadata"]["labels"]["penstock.dev/role"] == role]


def counter(cluster: Cluster, pod: Object, series: str) -> float:
    """A counter of a worker's metrics page, summed over the series whose text begins so."""
    path = f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}:8000/proxy/metrics"
    page = cluster.kubectl("get", "--raw", path)
    return sum(float(value) for value in re.findall(rf"^{re.escape(series)}\S* (\S+)$", page, re.MULTILINE))


def prompt(number: int, words: int = 1200) -> str:
    return " ".join(f"w{number}x{i}" for i in range(words))


def complete(cluster: Cluster, text: str, tokens: int = 8) -> str:
    body = {"model": MODEL, "prompt": text, "max_tokens": tokens}
    answer = httpx.post(f"{cluster.gateway_url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def stream(cluster: Cluster, text: str, tokens: int, begun: threading.Semaphore | None = None) -> tuple[str, Object]:
    """Text and usage of a stream; releases `begun` at its first token. Raises on an error event or a cut."""
    body = {
        "model": MODEL,
        "prompt": text,
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    pieces: list[str] = []
    usage: Object = {}
    done = False
    with httpx.stream("POST", f"{cluster.gateway_url}/v1/completions", json=body, timeout=120) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                event = json.loads(line[6:])
                assert "error" not in event, event
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    if begun is not None and not pieces:
                        begun.release()
                    pieces.append(choice["text"])
    assert done, "the stream ended without [DONE]"
    return "".join(pieces), usage


def test_prompts_are_computed_on_one_worker_and_tokens_come_from_another(apart: Cluster) -> None:
    (prefill,) = workers(apart, "Prefill")
    decodes = workers(apart, "Decode")
    computed = counter(apart, prefill, 'vllm:prompt_tokens_by_source_total{source="local_compute"')
    moved = sum(moved_to(apart, pod) for pod in decodes)
    complete(apart, prompt(1))
    assert counter(apart, prefill, "vllm:generation_tokens_total") >= 1
    assert sum(moved_to(apart, pod) for pod in decodes) - moved == 1200
    after = counter(apart, prefill, 'vllm:prompt_tokens_by_source_total{source="local_compute"')
    assert after >= computed, "the counters of one worker only grow"
    assert sum(counter(apart, pod, "vllm:nixl_num_failed_transfers_total") for pod in decodes) == 0


def test_what_is_cached_is_used_and_all_agree_on_how_much(apart: Cluster) -> None:
    """Explain, the answer's usage and the router's account tell one figure, to the block, for a pair and after it."""
    before = hits(apart)
    told = [asked(apart, prompt(50)), asked(apart, prompt(50) + " " + prompt(51)), asked(apart, prompt(50) + " more")]
    assert told[0] == 0 and all(hit >= 1100 for hit in told[1:]), told
    assert {name: value - before[name] for name, value in hits(apart).items()} == {
        "predicted": sum(told),
        "measured": sum(told),
    }


def asked(cluster: Cluster, text: str) -> int:
    """Ask, and give the hit that Explain and usage agree on."""
    body = {"model": MODEL, "prompt": text, "max_tokens": 4}
    answer = httpx.post(f"{cluster.gateway_url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    explained = json.loads(router(cluster, f"penstock/v1/explain/{answer.headers['x-request-id']}"))["picks"][0]
    found = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert explained["expectedHitTokens"] == explained["measuredHitTokens"] == found, (explained, found)
    return int(found)


def router(cluster: Cluster, path: str) -> str:
    selector = ("-n", "penstock-system", "-l", "app.kubernetes.io/component=router")
    (pod,) = cluster.items("pods", *selector)
    base = f"/api/v1/namespaces/penstock-system/pods/{pod['metadata']['name']}:9090/proxy"
    return cluster.kubectl("get", "--raw", f"{base}/{path}")


def hits(cluster: Cluster) -> dict[str, float]:
    """The router's account of cached tokens."""
    page = router(cluster, "metrics")
    found = {
        name: re.findall(rf"^penstock_router_hit_{name}_tokens_total\{{.*}} (\S+)$", page, re.MULTILINE)
        for name in ("predicted", "measured")
    }
    return {name: sum(map(float, values)) for name, values in found.items()}


def moved_to(cluster: Cluster, pod: Object) -> float:
    page = cluster.kubectl(
        "get", "--raw", f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}:8000/proxy/metrics"
    )
    lines = [x for x in page.splitlines() if x.startswith("vllm:prompt_tokens_by_source_total{")]
    return sum(float(x.rsplit(" ", 1)[1]) for x in lines if 'source="external_kv_transfer"' in x)


def test_a_short_prompt_stays_with_the_decode_worker(apart: Cluster) -> None:
    decodes = workers(apart, "Decode")
    before = sum(moved_to(apart, pod) for pod in decodes)
    complete(apart, "a short question")
    assert sum(moved_to(apart, pod) for pod in decodes) == before


def test_a_killed_prefill_worker_costs_no_request(apart: Cluster) -> None:
    expected = [complete(apart, prompt(n)) for n in range(10, 14)]
    (victim,) = workers(apart, "Prefill")
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(complete, apart, prompt(n % 4 + 10)) for n in range(40)]
        assert apart.kill_pod_process(victim, "penstock.workers.simulated") >= 1
        texts = [future.result() for future in running]
    assert texts == [expected[n % 4] for n in range(40)]
    wait_for("the prefill worker is back", lambda: all_ready(apart), 120)


def test_a_change_of_kv_compatibility_rolls_under_load(apart: Cluster) -> None:
    expected = complete(apart, prompt(30))
    old = {p["metadata"]["name"] for p in apart.workers(NAME)}
    stop = threading.Event()

    def ask() -> int:
        number = 0
        while not stop.is_set():
            assert complete(apart, prompt(30)) == expected
            number += 1
        return number

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(ask) for _ in range(4)]
        try:
            patch = {"spec": {"engine": {"args": ["--block-size", "32"]}}}
            apart.kubectl("patch", "mdep", NAME, "--type=merge", "-p", json.dumps(patch))
            wait_for(
                "every worker is new",
                lambda: all_ready(apart) and not old & {p["metadata"]["name"] for p in apart.workers(NAME)},
                240,
            )
        finally:
            stop.set()
        assert sum(future.result() for future in running) > 0


def test_twenty_streams_outlive_their_decode_worker(apart: Cluster) -> None:
    expected = [stream(apart, prompt(n, 300), 80) for n in range(40, 60)]
    begun = threading.Semaphore(0)
    victim = workers(apart, "Decode")[0]
    with ThreadPoolExecutor(20) as pool:
        running = [pool.submit(stream, apart, prompt(n, 300), 80, begun) for n in range(40, 60)]
        for _ in range(20):
            assert begun.acquire(timeout=60), "twenty streams never ran at once"
        assert apart.kill_pod_process(victim, "penstock.workers.simulated") >= 1
        streams = [future.result() for future in running]
    assert [text for text, _ in streams] == [text for text, _ in expected]
    for (_, usage), (_, whole) in zip(streams, expected, strict=True):
        assert {k: usage[k] for k in COUNTS} == {k: whole[k] for k in COUNTS}
    wait_for("the decode worker is back", lambda: all_ready(apart), 120)


COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
