"""What the router reads out of pods and ModelDeployments: speed, price, objectives."""

from typing import Any

import pytest
from penstock.core.models import Parallelism, find_accelerator, find_model, resolve_profile
from penstock.router.shell.discovery.objects import read_deployment, read_pod
from penstock.router.shell.discovery.speeds import Speed, speed_of

LLAMA = "meta-llama/Llama-3.1-70B-Instruct"


def pod(**annotations: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "p",
            "namespace": "n",
            "labels": {"penstock.dev/role": "Decode", "penstock.dev/accelerator": "h100-80g"},
            "annotations": {"penstock.dev/model": LLAMA, "penstock.dev/kv-hash": "k", **annotations},
        },
        "status": {"podIP": "10.0.0.1", "phase": "Running"},
    }


def test_a_pod_brings_its_profile_and_the_price_of_all_its_accelerators() -> None:
    seen = read_pod(pod(**{"penstock.dev/parallelism": '{"tensor":4}'}))
    assert seen is not None
    model, hardware = find_model(LLAMA), find_accelerator("h100-80g")
    assert model is not None and hardware is not None
    profile = resolve_profile(model, hardware, Parallelism(tensor=4))
    assert (seen.worker.prefill_ms, seen.worker.decode_ms) == (profile.prefill, profile.decode)
    assert seen.worker.price_per_hour == pytest.approx(4 * hardware.price_per_hour)
    # 80 layers x 8 heads x 128 x 2 x 2 bytes over 4 accelerators at 450 GB/s, three quarters of it sustained.
    expected = 80 * 8 * 128 * 2 * 2 / 4 / (hardware.link.bytes_per_second * 0.75) * 1e3
    assert seen.worker.transfer_ms == pytest.approx(expected)


def test_a_sidecars_port_is_the_native_sidecars() -> None:
    port = {"name": "sidecar", "containerPort": 8001}
    stays = {"name": "penstock-sidecar", "restartPolicy": "Always", "ports": [{"name": "m", "containerPort": 1}, port]}
    for containers, found in (([stays], 8001), ([{**stays, "restartPolicy": "Never"}], None), (None, None)):
        seen = read_pod({**pod(), "spec": {"initContainers": containers}})
        assert seen is not None and (seen.worker.sidecar_port, seen.worker.port) == (found, 8000)


@pytest.mark.parametrize("parallelism", ["{", '{"tensor":"four"}', "[]x", '{"galaxy":2}'])
def test_an_odd_annotation_costs_the_profile_not_the_worker(parallelism: str) -> None:
    seen = read_pod(pod(**{"penstock.dev/parallelism": parallelism}))
    assert seen is not None and seen.worker.prefill_ms is None and seen.worker.price_per_hour is None


def test_what_the_catalogue_does_not_know_is_unknown() -> None:
    assert speed_of(LLAMA, "abacus", "") == Speed()
    alone = speed_of("nobody/knows", "h100-80g", "")
    hardware = find_accelerator("h100-80g")
    assert hardware is not None and alone == Speed(price_per_hour=hardware.price_per_hour)


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        ({"ttft": "500ms", "tpot": "40ms"}, (500.0, 40.0)),
        ({"ttft": "1m30s"}, (90_000.0, None)),
        ({"ttft": "soon", "tpot": 40}, (None, None)),
        (None, (None, None)),
    ],
)
def test_objectives_are_milliseconds_or_unknown(objectives: object, expected: tuple[float | None, ...]) -> None:
    seen = read_deployment({"metadata": {"name": "d"}, "spec": {"model": {"name": "m"}, "objectives": objectives}})
    assert seen is not None and (seen.ttft_ms, seen.tpot_ms) == expected
