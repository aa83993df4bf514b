"""Gate: prefill and decode apart, with a split that a search chose, as Splitwise (ISCA 2024) found. See splitwise.yaml.

The full search over all designs and seeds belongs to `make test-full`. Run this file as a program to
write the record that the page of results shows; it says what it has found as it goes along.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from penstock.core.engine import BatchScheduler
from penstock.core.fleet import Role
from penstock.core.models import LatencyProfile, Parallelism, find_accelerator, find_model, resolve_profile
from penstock.core.reports import Outcome
from penstock.core.reports import Verdict as Ended
from penstock.core.traces import Trace, TraceRequest, parse_trace
from penstock.router.decisions.split import SplitLimits
from penstock.simulator import FirstToken, Link, NodeGroup, PoolSpec, Scenario, simulate
from penstock.simulator.capacity import BeyondBounds, Verdict, capacity, interval, verdict
from penstock.simulator.results.folder import write_record
from penstock.simulator.results.record import Band, Chart, ChartKind, Figure, Record, Series
from penstock.simulator.results.record import Shift as ShiftRecord
from penstock.simulator.splits import best_split

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
SETUP: dict[str, Any] = yaml.safe_load((HERE / "splitwise.yaml").read_text())
RESULTS = HERE.parents[1] / "docs" / "results"
PUBLISHED = {
    "AA/Base-A100": "2.15; 1.75 charged by batch",
    "HA/Base-H100": "1.18; 1.0 charged by batch",
    "AA/AA published": "1.75 charged by batch",
    "HH/Base-H100": "1.25 charged by batch",
    "HHcap/Base-H100": "1.5 charged by batch",
}
"""In the paper, and by its simulator with decode charged by batch and the split searched anew."""
DEGREES = Parallelism(tensor=SETUP["tensor"])
Machines = tuple[int, int]
"""Prompt and token machines; (all, 0) where every machine does both."""


@dataclass(frozen=True, slots=True)
class Shift:
    """Another fit of the same measurements to charge passes by."""

    constant: str
    factor: float
    prefill: str = ""
    """Columns of the fits' file before `_a` and `_b`; empty for the set-up's own."""
    decode: str = ""


SHIFTS = (
    Shift("what context adds to a decode step (decode fitted by its batch alone)", 0.0, decode="d_lin"),
    Shift("what squares add to a prompt's pass (prompts fitted by a line up to 2,048 tokens)", 0.0, prefill="p_le2048"),
)
"""What the fits' form decides: the source's simulator knows no context, and its prompts lie between measurements."""
SHIFT_DESIGNS = ("Base-A100", "Base-H100", "AA", "HA", "HHcap")
SHIFT_SEEDS = (1, 2, 3)
_shift: Shift | None = None  # Of this process; set before its workers are forked.


def shifted(profile: LatencyProfile, machine: str) -> LatencyProfile:
    """The machine's profile by the fits that the shift names."""
    if _shift is None:
        return profile
    hardware = {"a100": "a100-80gb", "h100": "h100-80gb", "h100cap": "h100-80gb-pcap"}[machine]
    with (DATA / "derived_splitwise_linear_fits.csv").open() as lines:
        fits = next(row for row in csv.DictReader(lines) if (row["model"], row["hw"]) == (SETUP["model"], hardware))
    if _shift.prefill:
        profile = replace(profile, prefill=_line(fits, _shift.prefill))
    if _shift.decode:
        profile = replace(profile, decode=_line(fits, _shift.decode))
    return profile


def _line(fits: dict[str, str], name: str) -> tuple[float, float, float]:
    return float(fits[f"{name}_a"]), float(fits[f"{name}_b"]), 0.0


@cache
def lengths() -> tuple[tuple[int, int], ...]:
    with (DATA / SETUP["lengths"]).open() as lines:
        return tuple((one.input_tokens, one.output_tokens) for one in parse_trace(lines).trace.requests)


def trace_of(rate: float, seed: int, seconds: float) -> Trace:
    rng = np.random.default_rng(seed)
    pairs = lengths()
    count = round(rate * seconds)
    gaps = np.random.default_rng((seed, 1)).exponential(1.0, count)
    chosen = rng.integers(0, len(pairs), count)
    at = np.cumsum(gaps) / rate
    return Trace(tuple(TraceRequest(float(t), *pairs[index]) for t, index in zip(at, chosen, strict=True)))


@cache
def profile_of(machine: str) -> LatencyProfile:
    kind = SETUP["machines"][machine]
    model, accelerator = find_model(SETUP["model"]), find_accelerator(kind["accelerator"])
    assert model is not None
    assert accelerator is not None
    if _shift is not None and _shift.prefill:
        return shifted(resolve_profile(model, accelerator, DEGREES), machine)  # The fits know the cap's own figures.
    return shifted(resolve_profile(model, accelerator, DEGREES).scaled(prefill=kind.get("prefill", 1.0)), machine)


def split_of(design: str, share: float) -> Machines:
    """Machines of a design that spends this share of the power on prompts: as many as the power allows."""
    kinds, power = SETUP["machines"], SETUP["power"]
    prompt, token = (kinds[SETUP["designs"][design][side]]["power"] for side in ("prompt", "token"))
    prompts = max(1, round(share * power / prompt))
    return prompts, int((power - prompts * prompt) // token + 1e-9)


def scenario_of(design: str, machines: Machines) -> Scenario:
    plan, model = SETUP["designs"][design], find_model(SETUP["model"])
    assert model is not None
    engine = dict(SETUP["engine"])
    scheduler = BatchScheduler(engine.pop("scheduler"))
    sides = [("both", plan["both"])] if "both" in plan else [("prompt", plan["prompt"]), ("token", plan["token"])]
    roles = {"both": Role.PREFILL_DECODE, "prompt": Role.PREFILL, "token": Role.DECODE}
    groups: dict[str, int] = {}
    pools = []
    for (side, machine), count in zip(sides, machines, strict=False):
        name = SETUP["machines"][machine]["accelerator"]
        groups[name] = groups.get(name, 0) + count
        pools.append(PoolSpec(side, roles[side], name, DEGREES, count, profile=profile_of(machine)))
    nodes = []
    for name, count in groups.items():
        accelerator = find_accelerator(name)
        assert accelerator is not None
        nodes.append(NodeGroup(accelerator, count, DEGREES.accelerators))
    return Scenario(
        replace(model, max_context=SETUP["max_context"]),
        tuple(nodes),
        policy=plan["policy"],
        pools=tuple(pools),
        max_context=SETUP["max_context"],
        kv_capacity=SETUP["kv_capacity_tokens"],
        block_size=SETUP["block_size"],
        prefix_caching=SETUP["prefix_caching"],
        scheduler=scheduler,
        transfer=Link(**SETUP["transfer"]),
        split=SplitLimits(min_tokens=0, busy_tokens=1 << 40, lease=600.0),
        first_token=FirstToken(SETUP["first_token"]),
        scrape_interval_s=0.0,
        **engine,
    )  # fmt: skip


@cache
def alone(pair: tuple[int, int]) -> tuple[float, float, float]:
    """Seconds to the first token, between tokens and to the end, of such a request alone on the reference."""
    kind = next(name for name, each in SETUP["machines"].items() if each["accelerator"] == SETUP["reference"])
    profile, (prompt, output) = profile_of(kind), pair
    first = profile.prefill_ms(prompt) / 1e3
    steps = output - 1
    # Context grows by one a step, so the steps' times are an arithmetic series.
    rest = steps * (profile.decode_ms(1, prompt + 1) + profile.decode_ms(1, prompt + max(steps, 1))) / 2e3
    return first, rest / steps if steps else float("nan"), first + rest


def slowdowns(outcomes: list[Outcome], trace: Trace) -> dict[str, list[float]]:
    """Times over those alone, of every request that was completed."""
    found: dict[str, list[float]] = {"ttft": [], "between_tokens": [], "e2e": []}
    for outcome in outcomes:
        if outcome.verdict is not Ended.COMPLETED or outcome.ttft_s is None or outcome.e2e_s is None:
            continue
        asked = trace.requests[outcome.index]
        first, between, end = alone((asked.input_tokens, asked.output_tokens))
        found["ttft"].append(outcome.ttft_s / first)
        found["e2e"].append(outcome.e2e_s / end)
        if outcome.tpot_s is not None:
            found["between_tokens"].append(outcome.tpot_s / between)
    return found


@cache
def judge(design: str, machines: Machines, seconds: float, rate: float, seed: int) -> Verdict:
    trace = trace_of(rate, seed, seconds)
    if min(machines) < (0 if "both" in SETUP["designs"][design] else 1):
        return Verdict(False, "no machine is left for tokens")
    outcomes = list(simulate(scenario_of(design, machines), trace).outcomes)
    found = slowdowns(outcomes, trace)
    limits = [
        (f"{name} p{percentile}", float(np.percentile(found[name], percentile)) if found[name] else float("nan"), most)
        for name, each in SETUP["objectives"].items()
        for percentile, most in each.items()
    ]
    return verdict(len(found["ttft"]) / len(trace.requests), limits)


def bears(task: tuple[str, Machines, int, float]) -> float:
    """Capacity of a design with one seed, looked for around a guess first."""
    design, machines, seed, guess = task
    bounds = SETUP["search"]
    run = partial(judge, design, machines, SETUP["seconds"])
    low, high = max(bounds["low"], guess / 1.3), min(bounds["high"], guess * 1.3)
    try:
        found = capacity(run, low, high, bounds["tolerance"], seed=seed)
    except BeyondBounds:
        return capacity(run, high, bounds["high"], bounds["tolerance"], seed=seed)
    return found or capacity(run, bounds["low"], low, bounds["tolerance"], seed=seed)


def search_split(design: str) -> tuple[Machines, float]:
    """The machines our search gives this design, and what they bear in the search's own runs."""
    plan, bounds = SETUP["search"]["split"], SETUP["search"]
    found = best_split(
        lambda share, rate: judge(design, split_of(design, share), plan["seconds"], rate, plan["seed"]),
        bounds["low"], bounds["high"], tolerance=plan["tolerance"], step=plan["step"], fine=plan["fine"],
    )  # fmt: skip
    return split_of(design, found.share), found.rate


def ratios(table: dict[str, list[float]]) -> dict[str, list[float]]:
    """By seed, of each pair that the bands and reports name and the table has."""
    pairs = {pair: pair.split("/") for pair in (*SETUP["bands"], *SETUP["reports"])}
    return {
        pair: [a / b for a, b in zip(table[one], table[other], strict=True)]
        for pair, (one, other) in pairs.items()
        if {one, other} <= set(table)
    }


def named(pair: str) -> str:
    """A pair's figure on the page."""
    return f"load borne, {pair.replace('/', ' over ')}"


def record(found: dict[str, Any], others: dict[Shift, dict[str, Any]]) -> Record:
    """What the page shows, with what other fits give."""
    machines, table, left = found["machines"], found["capacities"], []
    figures = [
        Figure(
            name=named(pair),
            published=PUBLISHED[pair],
            expected=Band(**(SETUP["bands"] | SETUP["reports"])[pair]),
            values=tuple(values),
            judged=pair in SETUP["bands"],
        )
        for pair, values in found["ratios"].items()
    ]
    shifts = tuple(
        ShiftRecord(constant=shift.constant, factor=shift.factor, figure=named(pair), values=tuple(values))
        for shift, other in others.items()
        for pair, values in other["ratios"].items()
    )
    seeds = SETUP["seeds"][: min(map(len, table.values()))]
    if len(seeds) < len(SETUP["seeds"]):
        left.append(f"{len(SETUP['seeds']) - len(seeds)} of {len(SETUP['seeds'])} seeds")
    places = {name: " + ".join(str(count) for count in machines[name] if count) for name in table}
    chart = Chart(
        kind=ChartKind.BARS, title="Load borne at equal power", up="requests a second",
        across="prompt + token machines", labels=tuple(f"{name}\n{places[name]}" for name in table),
        series=(Series.of("capacity", [(float(at), values) for at, values in enumerate(table.values())]),),
    )  # fmt: skip
    return Record(
        name="splitwise", seeds=tuple(seeds), figures=tuple(figures), left=tuple(left), chart=chart, shifts=shifts,
        shift_seeds=SHIFT_SEEDS if shifts else (),
    )  # fmt: skip


def find_all(seeds: Sequence[int], shift: Shift | None = None) -> dict[str, Any]:
    """Splits, capacities by design and seed, and the ratios that are asked for; of some designs by other fits."""
    global _shift
    _shift = shift
    for known in (profile_of, alone, judge):
        known.cache_clear()
    designs = {name: plan for name, plan in SETUP["designs"].items() if shift is None or name in SHIFT_DESIGNS}
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("fork")) as pool:
        apart = [name for name in designs if "both" not in designs[name]]
        splits = dict(zip(apart, pool.map(search_split, apart), strict=True))
        print(json.dumps({"splits": splits}), file=sys.stderr, flush=True)
        sets: dict[str, tuple[str, Machines]] = {
            name: (name, splits[name][0] if name in splits else (designs[name]["machines"], 0)) for name in designs
        }
        if shift is None:
            sets["AA published"] = ("AA", tuple(designs["AA"]["published"]))
        guesses = dict(zip(sets, pool.map(_guess, sets.values()), strict=True))
        tasks = [(*sets[name], seed, guesses[name]) for seed in seeds for name in sets]
        table: dict[str, list[float]] = {name: [] for name in sets}
        for number, rate in enumerate(pool.map(bears, tasks)):
            name = list(sets)[number % len(sets)]
            table[name].append(rate)
            print(json.dumps({"design": name, "seed": tasks[number][2], "rate": rate}), file=sys.stderr, flush=True)
    return {"machines": {name: each[1] for name, each in sets.items()}, "capacities": table, "ratios": ratios(table)}


def _guess(task: tuple[str, Machines]) -> float:
    """Where to look for a capacity: what short runs with the search's seed say."""
    plan, bounds = SETUP["search"]["split"], SETUP["search"]
    run = partial(judge, *task, plan["seconds"])
    return capacity(run, bounds["low"], bounds["high"], 0.15, seed=plan["seed"]) or bounds["low"]


needs_lengths = pytest.mark.skipif(
    not (DATA / SETUP["lengths"]).exists(), reason="the Azure conversation trace is not beside this checkout"
)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """The whole campaign, once."""
    return find_all(SETUP["seeds"])


@pytest.mark.full
@pytest.mark.timeout(14_400)
@needs_lengths
@pytest.mark.parametrize(
    "pair",
    [
        "AA/Base-A100",
        "AA/AA published",
        pytest.param(
            "HA/Base-H100",
            marks=pytest.mark.xfail(
                strict=True,
                reason="missed: 0.78 (0.76 to 0.79) against 0.9 to 1.2. Context costs an A100 2.5 times what it costs "
                "an H100, and the source's simulator knows no context (docs/results, what it rests on)",
            ),
        ),
    ],
)
def test_pools_with_a_searched_split_bear_what_splitwise_found(measured: dict[str, Any], pair: str) -> None:
    assert pair in SETUP["bands"]
    assert Band(**SETUP["bands"][pair]).holds(*interval(measured["ratios"][pair])), measured


@needs_lengths
@pytest.mark.parametrize("seed", [1, 2])
def test_a_fifth_of_the_power_at_one_rate_shows_what_the_split_decides(seed: int) -> None:
    """The gate in small: at a rate that neither the published split nor machines for both bear, tokens starve there."""
    rate, seconds = 7.0, 60
    assert judge("AA", (6, 8), seconds, rate, seed).holds
    for design, machines in (("AA", (9, 5)), ("Base-A100", (14, 0))):
        assert "between_tokens" in judge(design, machines, seconds, rate, seed).why


if __name__ == "__main__":
    everything = find_all(SETUP["seeds"])
    write_record(RESULTS, record(everything, {shift: find_all(SHIFT_SEEDS, shift) for shift in SHIFTS}))
