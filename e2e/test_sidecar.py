"""Picks over gRPC, sent to the decode workers' sidecars by a client in the cluster, on a box of its own.

The client is what the docs show: the Python client of the router, and any HTTP client.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from penstock.box.testing import temporary_box, why_no_box
from test_disaggregated import MODEL, NAME, NODES, all_ready, complete, counter, prompt, workers
from verbs import Cluster, Object, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(900)]

ROUTER = "penstock-router.penstock-system:9000"
CLIENT = "picker"
SCRIPT = """
import asyncio, json, sys
import httpx
from penstock.router.client import RouterClient
from penstock.router.v1.router_pb2 import PickRequest

router, model, text, tokens, changed = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), json.loads(sys.argv[5])

async def main():
    async with RouterClient(router) as client, httpx.AsyncClient(timeout=120) as http:
        async with client.leased(PickRequest(model=model, text=text, max_tokens=tokens)) as lease:
            pick = lease.pick
            headers = dict(pick.headers) | changed.get("headers", {})
            body = {"model": model, "prompt": text, "max_tokens": tokens, "stream": True} | changed.get("body", {})
            pieces, events = [], 0
            url = f"http://{pick.address}/v1/completions"
            async with http.stream("POST", url, json=body, headers=headers) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        events += 1
                        event = json.loads(line[6:])
                        if "error" in event:
                            raise SystemExit(line)
                        pieces += [choice["text"] for choice in event["choices"]]
                        if events == 1 and changed.get("tell"):
                            print("begun", flush=True)
                    elif line == "data: [DONE]":
                        pieces.append("")
                    elif line:
                        raise SystemExit(line)
            print(json.dumps({
                "status": answer.status_code, "text": "".join(pieces), "worker": pick.worker.name,
                "prefill": pick.prefill_worker.name, "address": pick.address, "headers": dict(pick.headers),
            }))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def apart() -> Iterator[Cluster]:
    """A box with `examples/llama-70b-disaggregated` available, and a pod to send requests from."""
    if reason := why_no_box():
        pytest.skip(reason)
    with temporary_box(NODES, example="llama-70b-disaggregated") as box:
        cluster = Cluster(Path(box.program("kubectl")), box.kubeconfig, box.paths.control_socket, box.gateway_url)
        wait_for("both sides serve", lambda: all_ready(cluster), 120)
        cluster.kubectl(
            "run", CLIENT, "--image=penstock/toolbox", "--restart=Never", "--command", "--", "sleep", "3600"
        )
        cluster.kubectl("wait", "--for=condition=Ready", f"pod/{CLIENT}", "--timeout=60s")
        yield cluster


def send(cluster: Cluster, text: str, tokens: int = 8, **changed: Any) -> Object:
    """What the client says of one request that it picked for and sent itself."""
    said = cluster.kubectl(*_command(text, tokens, changed), timeout=180)
    answer = json.loads(said.splitlines()[-1])
    assert answer["status"] == 200
    return dict(answer)


def _command(text: str, tokens: int, changed: Object) -> list[str]:
    arguments = [ROUTER, MODEL, text, str(tokens), json.dumps(changed)]
    return ["exec", CLIENT, "--", "python", "-c", SCRIPT, *arguments]


def sidecar_counter(cluster: Cluster, series: str) -> float:
    """A counter of the sidecars, summed over the decode workers and the series whose text begins so."""
    return sum(_sidecar_counter(cluster, pod, series) for pod in workers(cluster, "Decode"))


def _sidecar_counter(cluster: Cluster, pod: Object, series: str) -> float:
    path = f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}:8002/proxy/metrics"
    lines = cluster.kubectl("get", "--raw", path).splitlines()
    named = f"penstock_workers_sidecar_{series}"
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(named))


def pulled(cluster: Cluster, pod: Object) -> float:
    """Prompt tokens a worker pulled from another one."""
    path = f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}:8000/proxy/metrics"
    lines = cluster.kubectl("get", "--raw", path).splitlines()
    found = [x for x in lines if x.startswith("vllm:prompt_tokens_by_source_total{") and "external_kv_transfer" in x]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def test_a_picked_request_is_prefilled_on_one_worker_and_answered_by_another(apart: Cluster) -> None:
    before = {pod["metadata"]["name"]: pulled(apart, pod) for pod in workers(apart, "Decode")}
    (prefill,) = workers(apart, "Prefill")
    generated = counter(apart, prefill, "vllm:generation_tokens_total")
    answer = send(apart, prompt(1))
    name = answer["worker"].partition("/")[2]
    assert answer["prefill"] == f"default/{prefill['metadata']['name']}"
    assert answer["headers"] == {"x-prefiller-host-port": f"{prefill['status']['podIP']}:8000"}
    assert answer["address"].endswith(":8001")
    moved = {pod["metadata"]["name"]: pulled(apart, pod) for pod in workers(apart, "Decode")}
    assert moved == {**before, name: before[name] + 1200}
    assert counter(apart, prefill, "vllm:generation_tokens_total") == generated + 1
    assert sidecar_counter(apart, 'decodes_total{reason="Transferred"}') == 1
    assert answer["text"] == complete(apart, prompt(1)), "another door, the same words"


def test_a_short_prompt_goes_straight_to_its_worker(apart: Cluster) -> None:
    before = sidecar_counter(apart, "requests_total")
    answer = send(apart, "a short question")
    assert answer["headers"] == {} and answer["prefill"] == "" and answer["address"].endswith(":8000")
    assert sidecar_counter(apart, "requests_total") == before


def test_nobody_but_prefill_workers_of_the_deployment_is_asked(apart: Cluster) -> None:
    """A decode worker's engine, another port of the prefill worker, the API server: addresses anybody could name."""
    (prefill,) = workers(apart, "Prefill")
    decode = workers(apart, "Decode")[0]
    service = apart.get("service", "kubernetes")["spec"]["clusterIP"]
    forged = [f"{decode['status']['podIP']}:8000", f"{prefill['status']['podIP']}:5557", f"{service}:443"]
    refused = sidecar_counter(apart, "refused_prefillers_total")
    legs = sidecar_counter(apart, "legs_total")
    for number, address in enumerate(forged):
        text = prompt(20 + number)
        answer = send(apart, text, headers={"x-prefiller-host-port": address})
        assert answer["text"] == complete(apart, text)
    assert sidecar_counter(apart, "refused_prefillers_total") == refused + len(forged)
    assert sidecar_counter(apart, "legs_total") == legs


def test_a_clients_transfer_parameters_do_no_harm(apart: Cluster) -> None:
    restarts = {p["metadata"]["name"]: _restarts(p) for p in apart.workers(NAME)}
    answer = send(apart, prompt(30), body={"kv_transfer_params": {"do_remote_prefill": True}})
    assert answer["text"] == complete(apart, prompt(30))
    assert sidecar_counter(apart, "stripped_requests_total") >= 1
    assert {p["metadata"]["name"]: _restarts(p) for p in apart.workers(NAME)} == restarts


def _restarts(pod: Object) -> int:
    status = pod["status"]
    return sum(c["restartCount"] for c in (*status["containerStatuses"], *status.get("initContainerStatuses", [])))


def test_a_prefill_worker_that_dies_costs_its_leg_only(apart: Cluster) -> None:
    (victim,) = workers(apart, "Prefill")
    expected = complete(apart, prompt(40))
    fell_back = sidecar_counter(apart, 'decodes_total{reason="Fallback"}')
    address = f"{victim['status']['podIP']}:8000"
    assert apart.kill_pod_process(victim, "penstock.workers.simulated") >= 1
    # The header is what a pick said a moment ago; the worker it names is gone, or not ready again yet.
    assert send(apart, prompt(40), headers={"x-prefiller-host-port": address})["text"] == expected
    assert sidecar_counter(apart, "decodes_total") >= fell_back
    wait_for("the prefill worker is back", lambda: all_ready(apart), 120)
    # Once it is ready the Service names it again, and legs go there as before.
    held = sidecar_counter(apart, 'legs_total{reason="Held"}')
    wait_for("legs are run again", lambda: _runs_a_leg(apart, held), 60)


def _runs_a_leg(cluster: Cluster, held: float) -> bool:
    send(cluster, prompt(41))
    return sidecar_counter(cluster, 'legs_total{reason="Held"}') > held


def test_a_goodbye_lets_the_stream_end_then_the_engine_then_the_sidecar(apart: Cluster) -> None:
    command = [str(apart.kubectl_program), f"--kubeconfig={apart.kubeconfig}"]
    client = subprocess.Popen(
        [*command, *_command(prompt(50), 150, {"tell": True})],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert client.stdout.readline().strip() == "begun"
    (busy,) = [p for p in workers(apart, "Decode") if _sidecar_counter(apart, p, "in_flight_requests") >= 1]
    name = busy["metadata"]["name"]
    logs = {which: _Follow([*command, "logs", "-f", name, "-c", which]) for which in ("engine", "penstock-sidecar")}
    apart.kubectl("delete", "pod", name, "--wait=false")
    said, errors = client.communicate(timeout=120)
    assert client.returncode == 0, errors
    text = json.loads(said.splitlines()[-1])["text"]
    assert text == complete(apart, prompt(50), 150), "the stream was cut, or changed"
    wait_for("the pod is gone", lambda: name not in {p["metadata"]["name"] for p in apart.items("pods")}, 150)
    engine, sidecar = (follow.entries() for follow in logs.values())
    (engine_told,) = [e["time"] for e in engine if e["message"].startswith("told to stop")]
    (sidecar_told,) = [e["time"] for e in sidecar if e["message"].startswith("told to stop")]
    assert engine_told < sidecar_told, "the sidecar is told to stop after the engine has ended"
    assert any(e["message"] == "ended; 0 requests cut" for e in sidecar)
    wait_for("the decode worker is replaced", lambda: all_ready(apart), 120)


class _Follow:
    """A container's log, followed to its end."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines.extend(self._process.stdout)

    def entries(self) -> list[Object]:
        """The log's JSON lines."""
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.terminate()
        self._thread.join(10)
        return [json.loads(line) for line in self._lines if line.startswith("{")]
