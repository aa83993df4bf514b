"""Gate: knowing all caches beats knowing one's own, that beats load, and that chance, as Mooncake (FAST 2025) found.

See mooncake.yaml. Every seed belongs to `make test-full`. Run this file as a program to write the record that the page
of results shows: all seeds, then the first one with one constant changed at a time.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import pairwise
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
from penstock.simulator.policies import mooncake
from penstock.simulator.results.folder import write_record
from penstock.simulator.results.record import Band, Chart, ChartKind, Check, Figure, Record, Series, Shift

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
SETUP: dict[str, Any] = yaml.safe_load((HERE / "mooncake.yaml").read_text())
RESULTS = HERE.parents[1] / "docs" / "results"
PUBLISHED = {"GlobalHit": 3.07, "LocalHitOnly": 3.58, "LeastLoaded": 5.27, "Random": 19.65}
"""Mean seconds to the first token."""
ASSUMED = {
    "share of peak that prompts reach (0.5)": "flops.utilisation",
    "KV cache of a worker (3M tokens)": "kv_capacity_tokens",
    "rate of a node's link (87 GB/s)": "transfer.gbytes_per_s",
    "tokens a prefix must be longer by to be brought (2,048)": "worth",
}
FACTORS = (0.5, 2.0)
BRINGING = ("transfer.gbytes_per_s", "worth")
"""Constants that only a policy feels which brings prefixes from elsewhere."""
Found = dict[str, tuple[float, float]]
"""By policy: mean seconds to the first token, share of prompt tokens found in a cache."""
Change = tuple[str, float]
"""(constant, factor); nothing is changed by ("", 1)."""
AS_IT_IS: Change = ("", 1.0)


@cache
def recorded() -> Trace:
    with (DATA / SETUP["trace"]).open() as lines:
        return parse_trace(lines).trace


def trace_of(seed: int, requests: int | None) -> Trace:
    trace = recorded()
    cut = tuple(replace(one, output_tokens=1) for one in trace.requests[:requests])
    return spread_slots(Trace(cut, trace.block_tokens), seed=seed)


def changed(change: Change) -> dict[str, Any]:
    """The set-up with one constant times a factor."""
    setup = copy.deepcopy(SETUP)
    path, factor = change
    if path and path != "worth":
        *way, last = path.split(".")
        part = setup
        for name in way:
            part = part[name]
        part[last] = type(part[last])(part[last] * factor)
    return setup


def profile(work: dict[str, Any]) -> LatencyProfile:
    per_ms = work["peak"] * work["utilisation"] / 1e3
    linear = work["layers"] * work["linear"] * work["hidden"] ** 2 / per_ms
    square = work["layers"] * work["quadratic"] * work["hidden"] / per_ms
    return LatencyProfile((0.0, linear, square), (0.0, 0.0, 0.0), ProfileSource.ROOFLINE, "arithmetic of the paper")


def play(policy: str, seed: int, requests: int | None = None, change: Change = AS_IT_IS) -> tuple[float, float]:
    setup = changed(change)
    model = find_model(setup["model"])
    assert model is not None
    scenario = Scenario(
        replace(model, max_context=setup["max_context"] + 1),
        parse_nodes(setup["nodes"]),
        policy=policy,
        parallelism=Parallelism(tensor=setup["tensor"]),
        max_context=setup["max_context"],
        kv_capacity=setup["kv_capacity_tokens"],
        max_num_batched_tokens=setup["max_num_batched_tokens"],
        max_num_seqs=setup["max_num_seqs"],
        profile=profile(setup["flops"]),
        transfer=Link(**setup["transfer"]),
        scrape_interval_s=0.0,
        max_in_flight=1_000_000,
        seed=seed,
    )
    outcomes = list(simulate(scenario, trace_of(seed, requests)).outcomes)
    assert all(outcome.verdict is Verdict.COMPLETED for outcome in outcomes)
    prompts = sum(outcome.prompt_tokens or 0 for outcome in outcomes)
    found = sum(outcome.cached_tokens or 0 for outcome in outcomes)
    return float(np.mean([outcome.ttft_s for outcome in outcomes])), found / prompts


def play_all(seeds: Iterable[int], change: Change = AS_IT_IS, policies: list[str] | None = None) -> list[Found]:
    """What each seed gives."""
    names = policies or SETUP["order"]
    tasks = [(policy, seed, change) for seed in seeds for policy in names]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("fork")) as pool:
        found = list(pool.map(_play, tasks))
    return [dict(zip(names, found[at : at + len(names)], strict=True)) for at in range(0, len(found), len(names))]


def play_shifted(seeds: Iterable[int], found: list[Found]) -> dict[tuple[str, float], list[Found]]:
    """What seeds give with one constant changed; `found` is what they give as it is."""
    shifted = {}
    for name, path in ASSUMED.items():
        for factor in FACTORS:
            felt = ["GlobalHit"] if path in BRINGING else SETUP["order"]
            again = play_all(seeds, (path, factor), felt)
            shifted[name, factor] = [usual | new for usual, new in zip(found, again, strict=False)]
    return shifted


def _play(task: tuple[str, int, Change]) -> tuple[float, float]:
    policy, seed, change = task
    usual = mooncake.WORTH_TOKENS
    if change[0] == "worth":
        mooncake.WORTH_TOKENS = round(usual * change[1])
    try:
        return play(policy, seed, None, change)
    finally:
        mooncake.WORTH_TOKENS = usual


def ordered(found: Found) -> bool:
    """Whether each policy is faster than the next."""
    times = [found[policy][0] for policy in SETUP["order"]]
    return all(one < other for one, other in pairwise(times))


def ratios(found: list[Found]) -> dict[str, tuple[float, ...]]:
    """Each pair the reports name, by time to the first token, for every seed."""
    return {
        pair: tuple(each[pair.split("/")[0]][0] / each[pair.split("/")[1]][0] for each in found)
        for pair in SETUP["reports"]
    }


def record(found: list[Found], shifted: dict[tuple[str, float], list[Found]]) -> Record:
    """What the page shows."""
    order, names = SETUP["order"], {pair: pair.replace("/", " over ") for pair in SETUP["reports"]}
    figures = [
        Figure(
            name=f"mean TTFT, {names[pair]}",
            published=f"{PUBLISHED[pair.split('/')[0]] / PUBLISHED[pair.split('/')[1]]:.2f}",
            expected=Band(**SETUP["reports"][pair]),
            values=values,
            judged=False,
        )
        for pair, values in ratios(found).items()
    ]
    figures.append(
        Figure(
            name="prompt tokens found in a cache, GlobalHit over LocalHitOnly",
            expected=Band(low=1.15),
            values=tuple(each["GlobalHit"][1] / each["LocalHitOnly"][1] for each in found),
            judged=False,
        )
    )
    shifts = [
        Shift(constant=constant, factor=factor, figure=f"mean TTFT, {names[pair]}", values=values)
        for (constant, factor), each in shifted.items()
        for pair, values in ratios(each).items()
    ]
    columns = [(float(place), [each[policy][0] for each in found]) for place, policy in enumerate(order)]
    published = tuple((float(place), *3 * (PUBLISHED[policy],)) for place, policy in enumerate(order))
    checks = [Check(says=f"the order {' < '.join(order)} on every seed", holds=all(map(ordered, found)))]
    if shifted:
        kept = all(ordered(one) for each in shifted.values() for one in each)
        checks.append(Check(says="the same order with each constant halved and doubled", holds=kept, judged=False))
    return Record(
        name="mooncake",
        seeds=tuple(SETUP["seeds"]),
        figures=tuple(figures),
        checks=tuple(checks),
        shifts=tuple(shifts),
        shift_seeds=tuple(SETUP["seeds"][:1]),
        chart=Chart(
            kind=ChartKind.BARS, title="Mean time to the first token", up="s", labels=tuple(order), logarithmic=True,
            series=(
                Series.of("here", columns),
                Series(name="published", points=published, published=True),
            ),
        ),
    )  # fmt: skip


needs_trace = pytest.mark.skipif(
    not (DATA / SETUP["trace"]).exists(), reason="the Mooncake conversation trace is not beside this checkout"
)


@pytest.mark.full
@pytest.mark.timeout(7200)
@needs_trace
def test_the_order_of_prefill_policies_on_every_seed() -> None:
    for found in play_all(SETUP["seeds"]):
        assert ordered(found), found


@needs_trace
def test_the_order_on_a_quarter_of_the_trace() -> None:
    """The gate in small."""
    found = {policy: play(policy, 1, 3000) for policy in SETUP["order"]}
    assert ordered(found), found


if __name__ == "__main__":
    everything = play_all(SETUP["seeds"])
    write_record(RESULTS, record(everything, play_shifted(SETUP["seeds"][:1], everything)))
