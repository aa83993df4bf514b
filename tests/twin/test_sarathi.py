"""Gate: stall-free batching bears more load than prefill-first, as Sarathi-Serve (OSDI 2024) found. See sarathi.yaml.

The full search over all schedulers and seeds belongs to `make test-full`. Run this file as a program to
write the record that the page of results shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from penstock.core.engine import BatchScheduler, EngineConfig
from penstock.core.models import LatencyProfile, Parallelism, find_accelerator, find_model, fit, resolve_profile
from penstock.core.traces import TraceRequest, parse_trace
from penstock.simulator.alone import Felt, play_alone
from penstock.simulator.capacity import Verdict, capacity, interval, verdict
from penstock.simulator.results.folder import write_record
from penstock.simulator.results.record import Band, Chart, ChartKind, Check, Figure, Record, Series

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
SCENARIO: dict[str, Any] = yaml.safe_load((HERE / "sarathi.yaml").read_text())
RESULTS = HERE.parents[1] / "docs" / "results"
LIMITS = ("strict", "relaxed")
STALL_FREE = [name for name in SCENARIO["schedulers"] if name.startswith("stall-free")]

Table = dict[str, dict[str, list[float]]]
"""Capacities in requests per second: limit -> scheduler -> one for each seed."""


@cache
def lengths() -> tuple[tuple[int, int], ...]:
    with (DATA / SCENARIO["lengths"]).open() as lines:
        return tuple((one.input_tokens, one.output_tokens) for one in parse_trace(lines).trace.requests)


def requests(rate: float, seed: int, count: int, pairs: tuple[tuple[int, int], ...]) -> list[TraceRequest]:
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(pairs), count, replace=False)
    at = np.cumsum(rng.exponential(1.0, count)) / rate
    return [TraceRequest(float(t), *pairs[index]) for t, index in zip(at, chosen, strict=True)]


@cache
def worker() -> tuple[LatencyProfile, int]:
    """Speed, and tokens of KV cache."""
    model, accelerator = find_model(SCENARIO["model"]), find_accelerator(SCENARIO["accelerator"])
    assert model is not None
    assert accelerator is not None
    degrees = Parallelism(tensor=SCENARIO["tensor"])
    memory = fit(model, accelerator, degrees, model.max_context)
    return resolve_profile(model, accelerator, degrees), memory.kv_capacity_tokens


def config(scheduler: str) -> EngineConfig:
    _, tokens = worker()
    fields = SCENARIO["engine"] | SCENARIO["schedulers"][scheduler]
    fields["scheduler"] = BatchScheduler(fields["scheduler"])
    return EngineConfig(num_blocks=tokens // fields["block_size"], **fields)


@cache
def felt(scheduler: str, rate: float, seed: int, count: int) -> tuple[float, float, float]:
    """(share finished, ms between tokens, s of delay) at the objectives' percentiles. Both limits look at one run."""
    wanted = SCENARIO["objectives"]
    result: Felt = play_alone(config(scheduler), worker()[0], requests(rate, seed, count, lengths()))
    return (
        result.finished_share,
        result.between_tokens_ms(wanted["between_tokens_percentile"]),
        result.delay_s(wanted["delay_percentile"]),
    )


def judge(scheduler: str, limit: str, count: int, rate: float, seed: int) -> Verdict:
    wanted = SCENARIO["objectives"]
    finished, between_ms, delay_s = felt(scheduler, rate, seed, count)
    most_ms = wanted[limit] * wanted["unloaded_decode_ms"]
    return verdict(finished, [("P99 TBT ms", between_ms, most_ms), ("median delay s", delay_s, wanted["delay_s"])])


def search(task: tuple[str, int]) -> dict[str, float]:
    """Capacity of one scheduler with one seed at each limit."""
    scheduler, seed = task
    bounds = SCENARIO["search"]
    return {
        limit: capacity(
            partial(judge, scheduler, limit, SCENARIO["requests"]),
            bounds["low"], bounds["high"], bounds["tolerance"], seed=seed,
        )
        for limit in LIMITS
    }  # fmt: skip


def search_all(seeds: Iterable[int]) -> Table:
    tasks = [(scheduler, seed) for scheduler in SCENARIO["schedulers"] for seed in seeds]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("fork")) as pool:
        found = list(zip(tasks, pool.map(search, tasks), strict=True))
    return {
        limit: {name: [rates[limit] for (of, _), rates in found if of == name] for name in SCENARIO["schedulers"]}
        for limit in LIMITS
    }


@dataclass(frozen=True)
class Finding:
    """What a table says on the bands."""

    best: dict[str, str]
    """The stall-free budget with the highest mean capacity at each limit."""
    ratio: dict[str, tuple[float, float, float]]
    """Mean and interval over seeds of the judged scheduler's capacity over prefill-first's."""


def find(table: Table) -> Finding:
    best = {limit: max(STALL_FREE, key=lambda name, at=limit: float(np.mean(table[at][name]))) for limit in LIMITS}
    return Finding(best, {limit: interval(gains(table, limit, best)) for limit in LIMITS})


def gains(table: Table, limit: str, best: dict[str, str]) -> list[float]:
    """The judged scheduler's capacity over prefill-first's, by seed."""
    judged = SCENARIO["bands"][limit]["scheduler"]
    if judged == "best stall-free":
        judged = best[limit]
    return [a / b for a, b in zip(table[limit][judged], table[limit]["prefill-first"], strict=True)]


def record(table: Table) -> Record:
    """What the page shows."""
    best, bands = find(table).best, SCENARIO["bands"]
    figures = [
        Figure(
            name=f"capacity over prefill-first, {limit}: {bands[limit]['scheduler']}",
            published="up to 2.6 and 6.9, other models" if limit == "strict" else "",
            expected=Band(low=bands[limit]["low"], high=bands[limit]["high"]),
            values=tuple(gains(table, limit, best)),
        )
        for limit in LIMITS
    ]
    strict = table["strict"]
    checks = (
        Check(
            says="a budget of 2,048 at the strict limit is no better than prefill-first",
            holds=bool(np.mean(strict["stall-free-2048"]) <= np.mean(strict["prefill-first"])),
        ),
        Check(
            says=f"the best budget does not shrink as the limit grows: {best['strict']}, then {best['relaxed']}",
            holds=STALL_FREE.index(best["strict"]) <= STALL_FREE.index(best["relaxed"]),
        ),
    )
    names = list(SCENARIO["schedulers"])
    series = [
        Series.of(f"{limit} limit", [(float(at), table[limit][name]) for at, name in enumerate(names)])
        for limit in LIMITS
    ]
    chart = Chart(
        kind=ChartKind.BARS, title="Capacity of one engine", up="requests a second", labels=tuple(names),
        series=tuple(series),
    )  # fmt: skip
    return Record(name="sarathi", seeds=tuple(SCENARIO["seeds"]), figures=tuple(figures), checks=checks, chart=chart)


needs_lengths = pytest.mark.skipif(
    not (DATA / SCENARIO["lengths"]).exists(), reason="the Azure conversation trace is not beside this checkout"
)


@pytest.mark.full
@pytest.mark.timeout(7200)
@needs_lengths
def test_stall_free_capacity_over_prefill_first_is_in_the_published_range() -> None:
    table = search_all(SCENARIO["seeds"])
    finding = find(table)
    for limit in LIMITS:
        band = SCENARIO["bands"][limit]
        assert band["low"] <= finding.ratio[limit][0] <= band["high"], (limit, finding, table)
    assert np.mean(table["strict"]["stall-free-2048"]) <= np.mean(table["strict"]["prefill-first"])
    assert STALL_FREE.index(finding.best["strict"]) <= STALL_FREE.index(finding.best["relaxed"])


@needs_lengths
def test_at_one_rate_stall_free_holds_the_strict_limit_and_prefill_first_does_not() -> None:
    """The gate in small: one seed, one rate between the two capacities, a fifth of the requests."""
    few, rate, seed = SCENARIO["requests"] // 5, 1.5, 0
    assert judge("stall-free-512", "strict", few, rate, seed).holds
    assert "TBT" in judge("prefill-first", "strict", few, rate, seed).why
    assert judge("prefill-first", "relaxed", few, rate, seed).holds


if __name__ == "__main__":
    write_record(RESULTS, record(search_all(SCENARIO["seeds"])))
