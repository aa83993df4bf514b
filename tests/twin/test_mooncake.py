"""Gate: knowing all caches beats knowing one's own, that beats load, and that chance, as Mooncake (FAST 2025) found.

See mooncake.yaml. Every seed belongs to `make test-full`. Run this file as a program for the table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from penstock.core.models import LatencyProfile, Parallelism, ProfileSource, find_model
from penstock.core.reports import Verdict
from penstock.core.traces import Trace, parse_trace, spread_slots
from penstock.simulator import Link, Scenario, parse_nodes, simulate
from penstock.simulator.capacity import interval

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
SETUP: dict[str, Any] = yaml.safe_load((HERE / "mooncake.yaml").read_text())
Found = dict[str, tuple[float, float]]
"""By policy: mean seconds to the first token, share of prompt tokens found in a cache."""


@cache
def recorded() -> Trace:
    with (DATA / SETUP["trace"]).open() as lines:
        return parse_trace(lines).trace


def trace_of(seed: int, requests: int | None) -> Trace:
    trace = recorded()
    cut = tuple(replace(one, output_tokens=1) for one in trace.requests[:requests])
    return spread_slots(Trace(cut, trace.block_tokens), seed=seed)


def profile() -> LatencyProfile:
    work = SETUP["flops"]
    per_ms = work["peak"] * work["utilisation"] / 1e3
    linear = work["layers"] * work["linear"] * work["hidden"] ** 2 / per_ms
    square = work["layers"] * work["quadratic"] * work["hidden"] / per_ms
    return LatencyProfile((0.0, linear, square), (0.0, 0.0, 0.0), ProfileSource.ROOFLINE, "arithmetic of the paper")


def play(policy: str, seed: int, requests: int | None = None) -> tuple[float, float]:
    model = find_model(SETUP["model"])
    assert model is not None
    scenario = Scenario(
        replace(model, max_context=SETUP["max_context"] + 1),
        parse_nodes(SETUP["nodes"]),
        policy=policy,
        parallelism=Parallelism(tensor=SETUP["tensor"]),
        max_context=SETUP["max_context"],
        kv_capacity=SETUP["kv_capacity_tokens"],
        max_num_batched_tokens=SETUP["max_num_batched_tokens"],
        max_num_seqs=SETUP["max_num_seqs"],
        profile=profile(),
        transfer=Link(**SETUP["transfer"]),
        scrape_interval_s=0.0,
        max_in_flight=1_000_000,
        seed=seed,
    )
    outcomes = list(simulate(scenario, trace_of(seed, requests)).outcomes)
    assert all(outcome.verdict is Verdict.COMPLETED for outcome in outcomes)
    prompts = sum(outcome.prompt_tokens or 0 for outcome in outcomes)
    found = sum(outcome.cached_tokens or 0 for outcome in outcomes)
    return float(np.mean([outcome.ttft_s for outcome in outcomes])), found / prompts


def play_all(seeds: Iterable[int], requests: int | None = None) -> list[Found]:
    """What each seed gives."""
    tasks = [(policy, seed, requests) for seed in seeds for policy in SETUP["order"]]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("fork")) as pool:
        found = list(pool.map(_play, tasks))
    count = len(SETUP["order"])
    return [dict(zip(SETUP["order"], found[at : at + count], strict=True)) for at in range(0, len(found), count)]


def _play(task: tuple[str, int, int | None]) -> tuple[float, float]:
    return play(*task)


def ratios(found: list[Found]) -> dict[str, tuple[float, float, float]]:
    """Mean and interval over seeds of each pair the reports name, by time to the first token."""
    pairs = [(pair, *pair.split("/")) for pair in SETUP["reports"]]
    return {pair: interval([each[one][0] / each[other][0] for each in found]) for pair, one, other in pairs}


needs_trace = pytest.mark.skipif(
    not (DATA / SETUP["trace"]).exists(), reason="the Mooncake conversation trace is not beside this checkout"
)


@pytest.mark.full
@pytest.mark.timeout(7200)
@needs_trace
def test_the_order_of_prefill_policies_on_every_seed() -> None:
    for found in play_all(SETUP["seeds"]):
        times = [found[policy][0] for policy in SETUP["order"]]
        assert times == sorted(times), found


@needs_trace
def test_the_order_on_a_quarter_of_the_trace() -> None:
    """The gate in small."""
    times = [play(policy, 1, 3000)[0] for policy in SETUP["order"]]
    assert times == sorted(times)
    assert len(set(times)) == len(times)


if __name__ == "__main__":
    everything = play_all(SETUP["seeds"])
    print(json.dumps({"seeds": everything, "ratios": ratios(everything)}, indent=1))
