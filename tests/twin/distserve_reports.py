"""What the gates of test_planning_distserve.py rest on: reported beside them, not judged. See distserve_reports.yaml.

Run as a program, with the path of the Azure code trace, to add the figures to the gates' record.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml
from penstock.core.fleet import Role
from penstock.core.models import LatencyProfile, Parallelism, ProfileSource, find_model
from penstock.core.traces import Trace, drop_over_context, parse_trace
from penstock.simulator.planning import Cell, Goal, Plan, PlanPool, Space, draw_sample, rank_plans
from penstock.simulator.results.folder import read_records, write_record
from penstock.simulator.results.record import Figure
from penstock.simulator.results.statements import read_statements
from test_planning_distserve import RESULTS, SETUP, apart, lengths, pool, processes, space_of, together

HERE = Path(__file__).resolve().parent
REPORTS: dict[str, Any] = yaml.safe_load((HERE / "distserve_reports.yaml").read_text())
Task = tuple[Any, ...]


def held(space: Space, plan: Plan) -> float:
    """Requests a second per accelerator."""
    ranking = rank_plans(space, Goal(space.objectives), [plan], prune=False).ranking
    return ranking[0].rate / plan.accelerators if ranking else 0.0


def four_together() -> Plan:
    tensor, count = REPORTS["equal"]["together"]
    return Plan((pool(Role.PREFILL_DECODE, tensor, count),))


def as_drawn(task: tuple[str, int]) -> dict[str, float]:
    """Of every plan, and of as many workers that do both as the largest of them has accelerators."""
    name, seed = task
    space = space_of(**SETUP["objectives"][name], seed=seed, requests=SETUP["requests"])
    return {str(plan): held(space, plan) for plan in (together(), four_together(), *apart())}


def own_engines(task: tuple[str, int]) -> dict[str, float]:
    """Of every plan, each side timed by the fits of its own engine."""
    name, seed = task
    space = space_of(**SETUP["objectives"][name], seed=seed, requests=SETUP["requests"])
    space = replace(space, paces=tuple(_paces()))
    return {str(plan): held(space, plan) for plan in (together(), *apart())}


def _paces() -> Iterable[tuple[str, Role, int, LatencyProfile]]:
    sides = {"together": (Role.PREFILL_DECODE,), "apart": (Role.PREFILL, Role.DECODE)}
    for side, roles in sides.items():
        for tensor, fits in REPORTS["own_engines"][side].items():
            prefill, decode = tuple(fits["prefill"]), tuple(fits["decode"])
            pace = LatencyProfile(prefill, decode, ProfileSource.CATALOGUE, "DistServe's simulator @82831f16")
            yield from ((SETUP["accelerator"], role, tensor, pace) for role in roles)


def other(code: Path | None, task: tuple[int, int]) -> list[float]:
    """The plans of another set-up over its baseline."""
    number, seed = task
    setup = REPORTS["others"][number]
    model = find_model(setup["model"])
    assert model is not None
    trace = lengths() if setup["lengths"] == "conv" else code_lengths(code)
    space = space_of(setup["ttft_s"], setup["tpot_s"], seed, SETUP["requests"])
    sample = draw_sample(trace, SETUP["requests"], seed)
    groups = tuple(replace(group, accelerators=8) for group in space.groups)
    space = replace(space, model=model, sample=sample, groups=groups)
    base = held(space, Plan((_pool(Role.PREFILL_DECODE, [setup["together"], 1]),)))
    plans = [Plan((_pool(Role.PREFILL, before), _pool(Role.DECODE, after))) for before, after in setup["plans"]]
    return [held(space, plan) / base for plan in plans]


def _pool(role: Role, degrees: Sequence[int]) -> PlanPool:
    tensor, pipeline = degrees
    budget = SETUP["engine"]["token_budget"]
    return PlanPool(Cell(SETUP["accelerator"], role, Parallelism(tensor, pipeline), budget), 1)


@cache
def code_lengths(path: Path | None) -> Trace:
    assert path is not None
    with path.open() as lines:
        return drop_over_context(parse_trace(lines).trace, SETUP["longest"])[0]


def best(found: dict[str, float], plans: Sequence[Plan], base: Plan) -> float:
    return max(found[str(plan)] for plan in plans) / found[str(base)]


def figures(code: Path | None) -> list[Figure]:
    """All of them; those of code lengths only where there is such a trace."""
    found: list[Figure] = []
    first, last = REPORTS["more_seeds"]["first"], REPORTS["more_seeds"]["last"]
    more, first_seeds = list(range(first, last + 1)), list(SETUP["seeds"])
    full = [plan for plan in apart() if plan.accelerators == REPORTS["equal"]["accelerators"]]
    named = apart()[:2]
    for name, at in SETUP["objectives"].items():
        says = f"TTFT {at['ttft_s']:g} s ({name})"
        drawn = [*first_seeds, *more]
        rows = _all(as_drawn, [(name, seed) for seed in drawn])
        later = rows[len(first_seeds) :]
        found += [
            _figure(f"{says}, {len(more)} draws more: best plan apart over together",
                    [best(row, apart(), together()) for row in later]),
            _figure(f"{says}, all {len(drawn)} draws: best of the two plans that the source names over together",
                    [best(row, named, together()) for row in rows], {"tight": "1.6, 2.4", "loose": "0.54, 0.81"}[name]),
            _figure(f"{says}, all draws: best plan apart on 4 accelerators over 4 workers together",
                    [best(row, full, four_together()) for row in rows]),
            _figure(f"{says}, all draws: 4 workers together over 1, per accelerator",
                    [row[str(four_together())] / row[str(together())] for row in rows]),
        ]  # fmt: skip
        rows = _all(own_engines, [(name, seed) for seed in REPORTS["own_engines"]["seeds"]])
        found += [
            _figure(f"{says}, each side timed by its own engine's fits: best plan apart over together",
                    [best(row, apart(), together()) for row in rows]),
            _figure(f"{says}, each side timed by its own engine's fits: best of the two named plans over together",
                    [best(row, named, together()) for row in rows], {"tight": "1.6, 2.4", "loose": "0.54, 0.81"}[name]),
        ]  # fmt: skip
    return found + _others(code, first_seeds)


def _others(code: Path | None, seeds: list[int]) -> list[Figure]:
    found: list[Figure] = []
    for number, setup in enumerate(REPORTS["others"]):
        if setup["lengths"] == "code" and code is None:
            continue
        rows = _all(partial(other, code), [(number, seed) for seed in seeds])
        for place, (before, after) in enumerate(setup["plans"]):
            published = setup["published"].split(", ")[place].replace("-", "")
            plan = f"prefill {_degrees(before)}, decode {_degrees(after)}"
            found.append(_figure(f"{setup['name']}: {plan}, over together", [row[place] for row in rows], published))
    return found


def _degrees(degrees: Sequence[int]) -> str:
    return f"T{degrees[0]}" + (f"P{degrees[1]}" if degrees[1] > 1 else "")


def _figure(name: str, values: Sequence[float], published: str = "") -> Figure:
    made = Figure(name=name, published=published, values=tuple(values), judged=False)
    mean, low, high = made.spread
    print(f"{name}: {mean:.2f} ({low:.2f} to {high:.2f})", flush=True)
    return made


def _all(function: Callable[[Any], Any], tasks: Sequence[Task]) -> list[Any]:
    with processes() as pool_of:
        return list(pool_of.map(function, tasks))


if __name__ == "__main__":
    gates = read_records(RESULTS, read_statements())["distserve"]
    trace = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    judged = tuple(figure for figure in gates.figures if figure.judged)
    write_record(RESULTS, gates.model_copy(update={"figures": (*judged, *figures(trace))}))
