"""Gates: prefill and decode apart win where TTFT is tight and lose where it is loose, as DistServe (OSDI 2024) found,
and the planner chooses what trying everything would. See distserve.yaml.

The full runs belong to `make test-full`. Run this file as a program to write the record that the page of results shows.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from penstock.core.engine import BatchScheduler
from penstock.core.fleet import Role
from penstock.core.models import Parallelism, find_accelerator, find_model
from penstock.core.traces import Trace, drop_over_context, parse_trace
from penstock.router.decisions.split import SplitLimits
from penstock.simulator.capacity import interval
from penstock.simulator.links import Link
from penstock.simulator.planning import Cell, Goal, Objectives, Plan, PlanPool, Space, cells_of, draw_sample
from penstock.simulator.planning.candidates import enumerate_plans
from penstock.simulator.planning.search import find_plans, rank_plans
from penstock.simulator.results.folder import read_records, write_record
from penstock.simulator.results.record import Band, Chart, ChartKind, Check, Figure, Record, Series
from penstock.simulator.results.statements import read_statements
from penstock.simulator.scenario import FirstToken, NodeGroup

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
SETUP: dict[str, Any] = yaml.safe_load((HERE / "distserve.yaml").read_text())
RESULTS = HERE.parents[1] / "docs" / "results"
Goodputs = dict[str, list[dict[str, float]]]
"""Objectives -> for each seed: plan -> requests a second per accelerator."""
needs_lengths = pytest.mark.skipif(
    not (DATA / SETUP["lengths"]).exists(), reason="the Azure conversation trace is not beside this checkout"
)


@cache
def lengths() -> Trace:
    with (DATA / SETUP["lengths"]).open() as lines:
        return drop_over_context(parse_trace(lines).trace, SETUP["longest"])[0]


def space_of(ttft_s: float, tpot_s: float, seed: int, requests: int) -> Space:
    model, accelerator = find_model(SETUP["model"]), find_accelerator(SETUP["accelerator"])
    assert model is not None
    assert accelerator is not None
    apart, engine = SETUP["apart"], SETUP["engine"]
    return Space(
        model,
        (NodeGroup(accelerator, 1, SETUP["node"]),),
        draw_sample(lengths(), requests, seed),
        Objectives(ttft_s, tpot_s, SETUP["attainment"]),
        SETUP["longest"],
        max_num_seqs=engine["max_num_seqs"],
        policy=SETUP["policy"],
        transfer=Link(apart["gbytes_per_s"], apart["latency_s"]),
        first_token=FirstToken(apart["first_token"]),
        split=SplitLimits(min_tokens=apart["min_tokens"], busy_tokens=apart["busy_tokens"]),
        scheduler=BatchScheduler(engine["scheduler"]),
    )


def pool(role: Role, tensor: int, replicas: int) -> PlanPool:
    return PlanPool(Cell(SETUP["accelerator"], role, Parallelism(tensor), SETUP["engine"]["token_budget"]), replicas)


def together() -> Plan:
    return Plan((pool(Role.PREFILL_DECODE, SETUP["together"]["tensor"], 1),))


def apart() -> list[Plan]:
    return [Plan((pool(Role.PREFILL, *one["prefill"]), pool(Role.DECODE, *one["decode"]))) for one in SETUP["plans"]]


def goodputs(task: tuple[str, int, int]) -> dict[str, float]:
    """Requests a second per accelerator of every plan: (objectives, seed, requests)."""
    name, seed, requests = task
    space = space_of(**SETUP["objectives"][name], seed=seed, requests=requests)
    found = {}
    for plan in (together(), *apart()):
        ranking = rank_plans(space, Goal(space.objectives), [plan], prune=False).ranking
        found[str(plan)] = ranking[0].rate / plan.accelerators if ranking else 0.0
    return found


def ratio(found: dict[str, float]) -> float:
    """Of the best plan apart over together."""
    base = found[str(together())]
    return max(found[str(plan)] for plan in apart()) / base


def compare(cell: int) -> tuple[float, float, str]:
    """(TTFT, what the planner's choice holds over what the best plan of all does, that plan) in one cell."""
    setup = SETUP["planner"]
    rng = np.random.default_rng((setup["seed"], cell))
    ttft_s, tpot_s = float(rng.uniform(*setup["ttft_s"])), float(rng.uniform(*setup["tpot_s"]))
    space = space_of(ttft_s, tpot_s, seed=100 + cell, requests=setup["requests"])
    goal = Goal(space.objectives)
    chosen = find_plans(space, goal, budgets=(setup["budget"],)).ranking
    cells = cells_of(space.model, space.groups[0], space.context, (setup["budget"],))
    every = rank_plans(space, goal, list(enumerate_plans(space.groups, cells)), prune=False).ranking
    rates = {one.plan: one.rate for one in every}
    if not every:
        return ttft_s, 1.0 if not chosen else 0.0, "none"
    # What it holds is what trying it in full says, like every other plan.
    return ttft_s, (rates.get(chosen[0].plan, 0.0) if chosen else 0.0) / every[0].rate, str(every[0].plan)


@needs_lengths
def test_a_tight_objective_favours_plans_apart_more_than_a_loose_one() -> None:
    """Short runs of one seed: the direction, not the figure."""
    assert ratio(goodputs(("tight", 1, 60))) > ratio(goodputs(("loose", 1, 60)))


@needs_lengths
@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.xfail(
    strict=True,
    reason="missed: tight 1.76 (1.48 to 2.03) against a whole interval above 1.5, loose 1.02 (0.94 to 1.10) against "
    "below 1; twenty draws more say the same. Both sides run one engine's law, where the authors' plans apart have a "
    "faster one, and two workers of each phase share queues, which one worker counted per GPU cannot "
    "(docs/concepts/planning.md, distserve_reports.py)",
)
def test_apart_wins_where_ttft_is_tight_and_loses_where_it_is_loose() -> None:
    ratios = {name: [ratio(one) for one in found] for name, found in all_goodputs().items()}
    _, low, _ = interval(ratios["tight"])
    assert low >= SETUP["bands"]["tight"]["least"], ratios
    _, _, high = interval(ratios["loose"])
    assert high < SETUP["bands"]["loose"]["most"], ratios


@needs_lengths
@pytest.mark.full
@pytest.mark.timeout(7200)
def test_the_planner_chooses_what_trying_everything_would() -> None:
    shares = [share for _, share, _ in all_cells()]
    near = sum(share >= 1 - SETUP["planner"]["within"] for share in shares)
    assert near >= SETUP["planner"]["least_cells"], shares


def all_goodputs() -> Goodputs:
    tasks = [(name, seed, SETUP["requests"]) for name in SETUP["objectives"] for seed in SETUP["seeds"]]
    all_found: Goodputs = {name: [] for name in SETUP["objectives"]}
    with processes() as pool_of:
        for (name, seed, _), found in zip(tasks, pool_of.map(goodputs, tasks), strict=True):
            all_found[name].append(found)
            told = ", ".join(f"{plan}: {rate:.3g}" for plan, rate in found.items())
            print(f"{name} seed {seed}: {ratio(found):.2f} ({told})", flush=True)
    return all_found


def all_cells() -> list[tuple[float, float, str]]:
    found = []
    with processes() as pool_of:
        for one in pool_of.map(compare, range(SETUP["planner"]["cells"])):
            print(f"TTFT {one[0] * 1e3:.0f} ms: {one[1]:.3f} of {one[2]}", flush=True)
            found.append(one)
    return found


def record(found: Goodputs, cells: list[tuple[float, float, str]]) -> Record:
    """What the page shows."""
    setup, base = SETUP["planner"], str(together())
    tight, loose = SETUP["bands"]["tight"]["least"], SETUP["bands"]["loose"]["most"]
    bands = {"tight": Band(low=tight), "loose": Band(high=loose)}
    figures = [
        Figure(
            name=f"goodput per GPU, best plan apart over together, TTFT {at['ttft_s']:g} s ({name})",
            published={"tight": "2.4", "loose": "0.81"}[name],
            expected=bands[name],
            values=tuple(map(ratio, found[name])),
        )
        for name, at in SETUP["objectives"].items()
    ]
    near = sum(share >= 1 - setup["within"] for _, share, _ in cells)
    checks = (
        Check(
            says=f"the planner's choice is within {setup['within']:.0%} of the best of all plans in {near} of "
            f"{len(cells)} cells; {setup['cells'] - setup['least_cells']} may miss",
            holds=len(cells) - near <= setup["cells"] - setup["least_cells"],
        ),
    )
    left = (f"{setup['cells'] - len(cells)} cells",) if len(cells) < setup["cells"] else ()
    plans = [
        (f"{short(one['prefill'])} + {short(one['decode'])}", str(plan))
        for one, plan in zip(SETUP["plans"], apart(), strict=True)
    ]
    series = [
        Series.of(
            name, [(float(at), [one[plan] / one[base] for one in found[name]]) for at, (_, plan) in enumerate(plans)]
        )
        for name in SETUP["objectives"]
    ]
    chart = Chart(
        kind=ChartKind.BARS, title="Goodput per accelerator over one worker that does both", up="", level=1.0,
        across="workers for prefill + for decode (T2: on two accelerators)", labels=tuple(name for name, _ in plans),
        series=tuple(series),
    )  # fmt: skip
    return Record(
        name="distserve", seeds=tuple(SETUP["seeds"]), figures=tuple(figures), checks=checks, left=left, chart=chart
    )


def short(workers: list[int]) -> str:
    tensor, count = workers
    return f"{count}" if tensor == 1 else f"{count} T{tensor}"


def processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=multiprocessing.get_context("fork"))


def reported() -> tuple[Figure, ...]:
    """What the record has besides the gates' figures, which distserve_reports.py puts there."""
    found = read_records(RESULTS, read_statements()).get("distserve")
    return () if found is None else tuple(figure for figure in found.figures if not figure.judged)


if __name__ == "__main__":
    made = record(all_goodputs(), all_cells())
    write_record(RESULTS, made.model_copy(update={"figures": (*made.figures, *reported())}))
