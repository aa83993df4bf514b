"""Report: what workers gain by lending KV blocks to one another, as Infinite-LLM (Lin et al., 2024) has them do.

See infinite_llm.yaml. Run this file as a program to write the record that the page of results shows. The whole of it
belongs to `make test-full`; what lending must keep to at every event is in test_lending.py.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import yaml
from penstock.core.models import Accelerator, Parallelism, find_model
from penstock.core.reports import Outcome, Verdict
from penstock.core.traces import Trace, TraceRequest, parse_trace
from penstock.simulator import Link, Scenario, Twin, parse_nodes
from penstock.simulator.lending import LendingRules, LendingTwin, MovingRules, MovingTwin
from penstock.simulator.results.folder import read_records, write_record
from penstock.simulator.results.record import Band, Chart, ChartKind, Figure, Record, Series, Shift
from penstock.simulator.results.statements import read_statements
from penstock.simulator.workloads import arrivals

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
SETUP: dict[str, Any] = yaml.safe_load((HERE / "infinite_llm.yaml").read_text())
RESULTS = HERE.parents[1] / "docs" / "results"
ISOLATED, MOVING, BORROWING = "isolated", "moving", "borrowing"
WAYS = (ISOLATED, MOVING, BORROWING)
THROUGHPUT, NONE_LONG, LONGEST = SETUP["expected"]
PUBLISHED = {
    THROUGHPUT: "1.35 to 1.73 (second version, against workers that keep to themselves)",
    LONGEST: "2 to 19 (first version)",
}
TURNS = {"dispatch": "RoundRobin"}
SLOW_RATES = (2, 3, 4, 5, 6, 7, 8)
"""Where requests go to workers in turn these bear less, and the set-up's rates begin too high."""
_SALT = 0x6C6C6D
In, Out = TypeVar("In"), TypeVar("Out")


@dataclass(frozen=True, slots=True)
class Run:
    """One run: who shares what, under which load, with which of the set-up's fields changed."""

    way: str
    seed: int
    rate: float
    seconds: float
    share: float
    longest: bool = True
    """Whether requests that no worker holds alone are among them."""
    changes: tuple[tuple[str, float | str], ...] = ()


@dataclass(frozen=True, slots=True)
class Played:
    """What a run came to."""

    tokens_s: float
    """Prompt and output tokens a second of the requests that ended in the window."""
    requests_s: float
    attained: float
    """Share of the requests that ended whose first token came in time."""


@cache
def recorded(file: str) -> tuple[TraceRequest, ...]:
    with (DATA / file).open() as lines:
        return parse_trace(lines).trace.requests


def changed(changes: Iterable[tuple[str, float | str]]) -> dict[str, Any]:
    """The set-up with some fields times a factor, or set to a name."""
    setup = copy.deepcopy(SETUP)
    for path, value in changes:
        *way, last = path.split(".")
        part = setup
        for name in way:
            part = part[name]
        part[last] = value if isinstance(value, str) else type(part[last])(part[last] * value)
    return setup


def workload(run: Run) -> Trace:
    """Poisson arrivals, each a long one with its probability, with the lengths of a recorded request."""
    setup, rng = changed(run.changes), np.random.default_rng((run.seed, _SALT))
    times = arrivals(run.rate, run.seconds, seed=run.seed)
    share = setup["long_share"] if run.share else 0.0
    made = []
    for at, long, drawn in zip(times, rng.random(len(times)) < share, rng.random(len(times)), strict=True):
        source = recorded(setup["long" if long else "short"])
        like = source[int(drawn * len(source))]
        if run.longest or like.input_tokens + like.output_tokens < setup["kv_capacity_tokens"]:
            made.append(TraceRequest(float(at), like.input_tokens, like.output_tokens))
    return Trace(tuple(made))


def roomy(accelerator: Accelerator) -> Accelerator:
    """The same with memory for twice the KV cache too: the cache is the set-up's, and what it may be is not asked."""
    return replace(accelerator, memory_bytes=2 * accelerator.memory_bytes)


def twin_of(way: str, setup: dict[str, Any], trace: Trace) -> Twin:
    model = find_model(setup["model"])
    assert model is not None
    scenario = Scenario(
        replace(model, max_context=setup["max_context"]),
        tuple(replace(group, accelerator=roomy(group.accelerator)) for group in parse_nodes(setup["nodes"])),
        policy=setup["dispatch"],
        parallelism=Parallelism(tensor=setup["tensor"]),
        max_context=setup["kv_capacity_tokens"],
        kv_capacity=setup["kv_capacity_tokens"],
        block_size=16,
        max_num_seqs=setup["max_num_seqs"],
        max_num_batched_tokens=setup["max_num_batched_tokens"],
        prefix_caching=False,
        transfer=Link(gbytes_per_s=setup["link_gbytes_per_s"]),
        scrape_interval_s=0.0,
        max_in_flight=1_000_000,
    )
    if way == BORROWING:
        return LendingTwin(scenario, trace, LendingRules(**setup["lending"]))
    if way == MOVING:
        return MovingTwin(scenario, trace, MovingRules(**setup["moving"]))
    return Twin(scenario, trace)


def outcomes_of(run: Run) -> list[Outcome]:
    """Of all requests; under overload of those that end within the window, as nobody asks for the others."""
    twin = twin_of(run.way, changed(run.changes), workload(run))
    until = run.seconds if run.rate >= SETUP["overload"]["rate"] else math.inf
    twin._begin()
    twin.events.run(lambda: twin.left > 0 and twin.events.now < until)
    return list(twin.outcomes)


def play(run: Run) -> Played:
    outcomes, start, limit = outcomes_of(run), SETUP["overload"]["from_s"], SETUP["curve"]["ttft_s"]
    window = run.seconds - start
    ended = [
        one
        for one in outcomes
        if one.verdict is Verdict.COMPLETED and start <= one.sent_s + (one.e2e_s or 0.0) < run.seconds
    ]
    tokens = sum((one.prompt_tokens or 0) + (one.output_tokens or 0) for one in ended)
    in_time = sum(one.ttft_s is not None and one.ttft_s <= limit for one in outcomes)
    return Played(tokens / window, len(ended) / window, in_time / len(outcomes))


def play_all(what: Callable[[In], Out], runs: Sequence[In]) -> dict[In, Out]:
    """Each run once, on all cores."""
    once = list(dict.fromkeys(runs))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("fork")) as pool:
        return dict(zip(once, pool.map(what, once), strict=True))


# What is asked for


def overloaded(
    way: str, seed: int, share: float, *, longest: bool = True, changes: tuple[tuple[str, float | str], ...] = ()
) -> Run:
    """The run, without changes that it does not feel."""
    load = SETUP["overload"]
    unfelt = ("long_share",) * (not share) + ("lending.",) * (way != BORROWING)
    felt = tuple(one for one in changes if not one[0].startswith(unfelt))
    return Run(way, seed, load["rate"], load["for_s"], share, longest, felt)


def curve(way: str, seed: int, rates: Sequence[float], **more: Any) -> list[Run]:
    return [Run(way, seed, rate, SETUP["curve"]["for_s"], SETUP["long_share"], **more) for rate in rates]


def borne(played: dict[Run, Played], runs: Sequence[Run]) -> float:
    """The rate at which the share in time falls through the level, on the line between two of them; the first rate
    where it always is below, the last where it never is."""
    level = SETUP["curve"]["share"]
    shares = [(run.rate, played[run].attained) for run in runs]
    if shares[0][1] < level:
        return shares[0][0]
    for (left, before), (right, after) in pairwise(shares):
        if after < level:
            return left + (right - left) * (before - level) / (before - after)
    return shares[-1][0]


def longest(task: tuple[str, int, tuple[tuple[str, float | str], ...]]) -> float:
    """Tokens of the longest prompt that is answered while others come and go."""
    way, seed, changes = task
    setup, asked = changed(changes), SETUP["longest"]
    run = Run(way, seed, asked["rate"], asked["for_s"], 0.0, changes=changes)
    others, best = workload(run).requests, 0.0
    for times in asked["times"]:
        tokens = int(times * setup["kv_capacity_tokens"])
        one = TraceRequest(asked["for_s"] / 2, tokens, asked["output_tokens"])
        trace = Trace(tuple(sorted((*others, one), key=lambda each: each.arrival_s)))
        outcome = list(twin_of(way, setup, trace).run().outcomes)[trace.requests.index(one)]
        if outcome.verdict is Verdict.COMPLETED and outcome.output_tokens == one.output_tokens:
            best = float(tokens)
    return best


# The record


Ratio = Callable[[int, tuple[tuple[str, float | str], ...]], float]
"""(seed, changes) -> a figure."""


def _over(played: dict[Run, Played], way: str, share: float, what: str = "tokens_s", **more: Any) -> Ratio:
    """Throughput of a way over that of workers that keep to themselves."""

    def ratio(seed: int, changes: tuple[tuple[str, float | str], ...]) -> float:
        mine, alone = (played[overloaded(one, seed, share, changes=changes, **more)] for one in (way, ISOLATED))
        return float(getattr(mine, what) / getattr(alone, what))

    return ratio


def _runs() -> list[Run]:
    """Every run but those for the longest context."""
    seeds, share, rates = SETUP["seeds"], SETUP["long_share"], SETUP["curve"]["rates"]
    made = [overloaded(way, seed, part) for way in WAYS for seed in seeds for part in (share, 0.0)]
    made += [overloaded(way, seed, share, longest=False) for way in (ISOLATED, BORROWING) for seed in seeds]
    made += [run for way in WAYS for seed in seeds for run in curve(way, seed, rates)]
    made += [run for way in (ISOLATED, BORROWING) for seed in seeds for run in curve(way, seed, rates, longest=False)]
    turns = tuple(TURNS.items())
    made += [
        run for way in WAYS for seed in seeds for run in curve(way, seed, SLOW_RATES, longest=False, changes=turns)
    ]
    for _, _, changes in _changes():
        made += [
            overloaded(way, seed, part, changes=changes)
            for way in (ISOLATED, BORROWING)
            for seed in SETUP["sensitivity"]["seeds"]
            for part in (share, 0.0)
        ]
    return made


def _changes() -> list[tuple[str, float, tuple[tuple[str, float | str], ...]]]:
    asked = SETUP["sensitivity"]
    return [
        (name, factor, tuple((path, factor) for path in paths))
        for name, paths in asked["constants"].items()
        for factor in asked["factors"]
    ]


def measure() -> Record:
    """Everything that the set-up asks for, and what explains it."""
    seeds, share = SETUP["seeds"], SETUP["long_share"]
    played = play_all(play, _runs())
    capacities = [changes for _, _, changes in _changes() if changes[0][0] == "kv_capacity_tokens"]
    tasks = [(way, seed, ()) for way in (ISOLATED, BORROWING) for seed in seeds]
    tasks += [
        (way, seed, changes)
        for changes in capacities
        for way in (ISOLATED, BORROWING)
        for seed in SETUP["sensitivity"]["seeds"]
    ]
    contexts = play_all(longest, tasks)
    expected: dict[str, Ratio] = {
        THROUGHPUT: _over(played, BORROWING, share),
        NONE_LONG: _over(played, BORROWING, 0.0),
        LONGEST: lambda seed, changes: contexts[BORROWING, seed, changes] / contexts[ISOLATED, seed, changes],
    }
    figures = [
        Figure(
            name=name, published=PUBLISHED.get(name, ""), expected=Band(**SETUP["expected"][name]),
            values=tuple(ratio(seed, ()) for seed in seeds),
        )
        for name, ratio in expected.items()
    ]  # fmt: skip
    return Record(
        name="infinite-llm",
        seeds=tuple(seeds),
        figures=(*figures, *_explaining(played)),
        shifts=tuple(
            Shift(
                constant=constant, factor=factor, figure=name,
                values=tuple(ratio(seed, changes) for seed in SETUP["sensitivity"]["seeds"]),
            )
            for constant, factor, changes in _changes()
            for name, ratio in expected.items()
            if name != LONGEST or changes in capacities  # Where nothing else is felt.
        ),
        shift_seeds=tuple(SETUP["sensitivity"]["seeds"]),
        chart=_chart(played),
    )  # fmt: skip


def _explaining(played: dict[Run, Played]) -> list[Figure]:
    """Figures of which nothing was expected."""
    seeds, share, rates = SETUP["seeds"], SETUP["long_share"], SETUP["curve"]["rates"]
    cut = "3 % long, none longer than one worker holds"
    found: dict[str, Ratio] = {
        "requests a second, borrowing over isolated, 3 % long": _over(played, BORROWING, share, "requests_s"),
        "throughput, moving over isolated, 3 % long": _over(played, MOVING, share),
        f"throughput, borrowing over isolated, {cut}": _over(played, BORROWING, share, longest=False),
    }
    made = [Figure(name=name, values=tuple(ratio(seed, ()) for seed in seeds)) for name, ratio in found.items()]
    made.append(
        Figure(
            name="throughput at 5 requests a second, which all bear, borrowing over isolated, 3 % long",
            values=tuple(
                played[curve(BORROWING, seed, [5])[0]].tokens_s / played[curve(ISOLATED, seed, [5])[0]].tokens_s
                for seed in seeds
            ),
        )
    )
    turns = {"longest": False, "changes": tuple(TURNS.items())}
    loads: list[tuple[str, Sequence[float], dict[str, Any], tuple[str, ...]]] = [
        ("3 % long", rates, {}, (BORROWING, MOVING)),
        (cut, rates, {"longest": False}, (BORROWING,)),
        (f"{cut}, sent to workers in turn", SLOW_RATES, turns, (BORROWING, MOVING)),
    ]
    for says, tried, more, ways in loads:
        for way in ways:
            values = [
                borne(played, curve(way, seed, tried, **more)) / borne(played, curve(ISOLATED, seed, tried, **more))
                for seed in seeds
            ]
            made.append(Figure(name=f"load borne, {way} over isolated, {says}", values=tuple(values)))
    return made


def _chart(played: dict[Run, Played]) -> Chart:
    """Throughput by the load that is offered, with 3 % long requests."""
    seeds, share, rates = SETUP["seeds"], SETUP["long_share"], SETUP["curve"]["rates"]
    series = []
    for way in WAYS:
        runs = [[curve(way, seed, [rate])[0] for seed in seeds] for rate in rates]
        runs.append([overloaded(way, seed, share) for seed in seeds])
        columns = [(each[0].rate, [played[run].tokens_s / 1e3 for run in each]) for each in runs]
        series.append(Series.of(way, columns))
    return Chart(
        kind=ChartKind.LINES,
        title="Throughput, 3 % long requests",
        up="thousand tokens a second",
        across="requests a second",
        series=tuple(series),
    )


needs_traces = pytest.mark.skipif(
    not all((DATA / SETUP[name]).exists() for name in ("short", "long")),
    reason="the traces are not beside this checkout",
)


@pytest.mark.full
@pytest.mark.timeout(3600)
@needs_traces
def test_the_record_is_what_comes_out() -> None:
    """Of its first seed, so that what is published can be had again."""
    record = read_records(RESULTS, read_statements())["infinite-llm"]
    seed, share = record.seeds[0], SETUP["long_share"]
    runs = [overloaded(way, seed, part) for way in (ISOLATED, BORROWING) for part in (share, 0.0)]
    played = play_all(play, runs)
    said = {figure.name: figure.values[0] for figure in record.figures}
    assert _over(played, BORROWING, share)(seed, ()) == pytest.approx(said[THROUGHPUT])
    assert _over(played, BORROWING, 0.0)(seed, ()) == pytest.approx(said[NONE_LONG])
    assert longest((BORROWING, seed, ())) / longest((ISOLATED, seed, ())) == pytest.approx(said[LONGEST])


@needs_traces
def test_lending_serves_what_one_worker_cannot_hold() -> None:
    """The report in small: four times what a worker holds, on a cluster under load."""
    tokens = 4 * SETUP["kv_capacity_tokens"]
    others = workload(Run(BORROWING, 1, 3.0, 20.0, 0.0)).requests
    one = TraceRequest(10.0, tokens, 50)
    trace = Trace(tuple(sorted((*others, one), key=lambda each: each.arrival_s)))
    at = trace.requests.index(one)
    verdicts = {way: list(twin_of(way, SETUP, trace).run().outcomes)[at].verdict for way in WAYS}
    assert verdicts == {ISOLATED: Verdict.FAILED, MOVING: Verdict.FAILED, BORROWING: Verdict.COMPLETED}


@needs_traces
def test_without_long_requests_lending_changes_little() -> None:
    """And the same seed gives the same bytes."""
    runs = [Run(way, 1, 12.0, 120.0, 0.0) for way in (ISOLATED, BORROWING)]
    alone, lending = (play(run).tokens_s for run in runs)
    assert lending / alone == pytest.approx(1.0, abs=0.05)
    assert outcomes_of(runs[1]) == outcomes_of(runs[1])


if __name__ == "__main__":
    write_record(RESULTS, measure())
