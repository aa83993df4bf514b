"""Where no prompt shares a prefix, KVAware must not lose to LeastLoaded: only load counts there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from penstock.core.models import find_model
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator import Scenario, parse_nodes, simulate
from penstock.simulator.workloads import arrivals

TWO_CLASSES = "a100-80g=4x2,h100-80g=4x2"


def conversation(rate: float, seed: int) -> Trace:
    """60 s of lengths like those of a public conversation service: log-normal, mean about 1,150 in and 210 out."""
    times = arrivals(rate, 60.0, seed=seed)
    rng = np.random.default_rng((seed, 1))
    prompts = np.clip(rng.lognormal(6.6, 0.95, len(times)), 1, 6000).astype(int)
    outputs = np.clip(rng.lognormal(5.1, 0.7, len(times)), 1, 800).astype(int)
    rows = zip(times, prompts, outputs, strict=True)
    return Trace(tuple(TraceRequest(float(at), int(p), int(o)) for at, p, o in rows), 16)


def good(scenario: Scenario, trace: Trace) -> int:
    """Requests that met both objectives."""
    outcomes = simulate(scenario, trace).outcomes
    assert len(outcomes) == len(trace.requests)
    return sum(
        o.ttft_s is not None
        and o.e2e_s is not None
        and o.ttft_s <= scenario.ttft_s
        and o.e2e_s - o.ttft_s <= scenario.tpot_s * max(1, o.output_tokens - 1)
        for o in outcomes
    )


@pytest.mark.parametrize(
    ("rate", "ttft_s", "tpot_s"),
    [(8.0, 0.5, 0.04), (14.0, 0.5, 0.04), (8.0, 2.0, 0.15)],
    ids=["tight", "over", "loose"],
)
def test_small_caches_of_two_classes_lose_nothing(rate: float, ttft_s: float, tpot_s: float) -> None:
    model = find_model("llama-3-70b")
    assert model is not None
    for seed in range(3):
        trace = conversation(rate, seed)
        scenario = Scenario(
            model, parse_nodes(TWO_CLASSES), policy="LeastLoaded", ttft_s=ttft_s, tpot_s=tpot_s, seed=seed
        )
        assert good(replace(scenario, policy="KVAware"), trace) >= 0.98 * good(scenario, trace), f"seed {seed}"
