"""`penstock plan`: searches the pools on given nodes that serve a trace best, and prints the ModelDeployment.

The table and what is told go to standard error, the manifest to standard output, so that
`penstock plan ... | kubectl apply -f -` works. Exit code 0 means that a plan holds, 1 that none does, 2 that nothing
was searched.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from penstock.api.base import DNS_LABEL_PATTERN
from penstock.api.quantities import DURATION_PATTERN, PERCENT_PATTERN, format_duration
from penstock.cli.plan_manifest import manifest
from penstock.cli.plan_view import PlanProgress, as_json, print_plans
from penstock.cli.replay_trace import Shape, TraceError, read_trace, shape_trace
from penstock.cli.values import parse_duration
from penstock.core.models import ModelArchitecture
from penstock.router.decisions.policies import DEFAULT_POLICY, UnknownPolicy, find_policy
from penstock.simulator import Impossible, parse_nodes
from penstock.simulator.files import model_named
from penstock.simulator.planning import (
    Goal,
    Objectives,
    Rank,
    Space,
    cells_of,
    draw_sample,
    find_plans,
    what_fits,
    why_nothing,
    why_second,
)
from penstock.simulator.planning.goal import answers, lasting
from penstock.simulator.planning.phases import Mapper
from rich.console import Console

_LONGEST = 10_000  # Requests of a run.
_ENOUGH = 2.0  # Answers that a run should last; it is made for more.
NOTHING_HOLDS = 1
NOTHING_SEARCHED = 2


def _duration(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    # The manifest has to say what was searched for.
    said = format_duration(seconds)
    if not re.fullmatch(DURATION_PATTERN, said) or abs(parse_duration(said) - seconds) > 1e-9:
        raise typer.BadParameter(f"{text!r} is no objective that the API takes; write whole milliseconds, as 40ms")
    return seconds


def _percent(text: str) -> float:
    number = text.removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no percentage; write for example 90%") from None
    if not (text.endswith("%") and 0 < share <= 1):
        raise typer.BadParameter(f"{text!r} is no percentage above 0% and up to 100%; write for example 90%")
    if not re.fullmatch(PERCENT_PATTERN, f"{share * 100:g}%"):
        raise typer.BadParameter(f"{text!r} is finer than the API takes it; write up to three digits after the point")
    return share


_Trace = Annotated[Path, typer.Option(help="What is asked: lengths, and the rate unless --rate is given.")]
_Model = Annotated[str, typer.Option(help="A model of the catalogue, such as llama-3.1-70b.")]
_Nodes = Annotated[str, typer.Option(help="class=NODESxACCELERATORS, such as a100-80g=2x8,h100-80g=1x8.")]
_Objective = Annotated[float, typer.Option(parser=_duration, metavar="DURATION", help="Objective.")]
_Attainment = Annotated[
    float, typer.Option(parser=_percent, metavar="PERCENT", help="Requests that must meet both objectives.")
]
_Rank = Annotated[Rank, typer.Option(help="What the best plan is best at.")]
_Rate = Annotated[
    float | None,
    typer.Option(min=1e-3, max=1e5, help="Requests a second to hold (default: the trace's); goodput needs none."),
]
_Requests = Annotated[
    int | None, typer.Option(min=20, max=_LONGEST, help="Length of one run (default: lasts for 2.5 answers or more).")
]
_Most = Annotated[int, typer.Option(min=1, max=100_000, help="Plans tried at most.")]
_MaxContext = Annotated[int | None, typer.Option(min=2, help="Longest sequence (default: the trace's longest).")]
_Seqs = Annotated[int, typer.Option(min=1, max=1 << 16, help="Sequences of one engine step.")]
_Policy = Annotated[str, typer.Option(help="The router's policy.")]
_Seed = Annotated[int, typer.Option(min=0, help="Of arrivals and lengths.")]
_Name = Annotated[str, typer.Option(help="Name of the ModelDeployment.")]
_SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without lines that are no requests.")]
_Json = Annotated[Path | None, typer.Option("--json", help="Write the ranking here.")]


@dataclass(frozen=True, slots=True)
class _Ready:
    """All that was read and checked before the search."""

    space: Space
    goal: Goal
    notes: tuple[str, ...]


def plan(
    model: _Model,
    nodes: _Nodes,
    trace: _Trace,
    ttft: _Objective = "500ms",  # type: ignore[assignment]  # typer hands defaults to the parser
    tpot: _Objective = "40ms",  # type: ignore[assignment]
    attainment: _Attainment = "90%",  # type: ignore[assignment]
    rank: _Rank = Rank.GOODPUT,
    rate: _Rate = None,
    requests: _Requests = None,
    most: _Most = 64,
    max_context: _MaxContext = None,
    max_num_seqs: _Seqs = 256,
    policy: _Policy = DEFAULT_POLICY,
    seed: _Seed = 0,
    name: _Name = "planned",
    skip_bad: _SkipBad = False,
    json_file: _Json = None,
) -> None:
    """Search the pools that serve a trace best, say why the second best lost, and print the ModelDeployment."""
    console = Console(stderr=True)
    try:
        architecture = model_named(model)
        if max_context is not None and max_context > architecture.max_context:
            raise ValueError(
                f"a context of {max_context} tokens is not possible: {architecture.name} takes 2 to "
                f"{architecture.max_context}"
            )
        shape = Shape(max_context_tokens=max_context or architecture.max_context, seed=seed)
        objectives = Objectives(ttft, tpot, attainment)
        ready = _prepare(trace, architecture, nodes, shape, objectives, rank, rate, requests, skip_bad=skip_bad)
        space = replace(ready.space, max_num_seqs=max_num_seqs, policy=find_policy(policy).name)
        manifest_of = _checked_name(space, name)
        if json_file is not None and not json_file.absolute().parent.is_dir():
            raise ValueError(f"{json_file} cannot be written: its folder does not exist")
    except (TraceError, UnknownPolicy, ValueError) as error:
        console.print(f"penstock plan: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(NOTHING_SEARCHED) from None
    for note in ready.notes:
        console.print(f"plan: {note}", highlight=False, markup=False, soft_wrap=True)
    with _processes() as mapper, PlanProgress(console) as view:
        found = find_plans(space, ready.goal, most=most, requests=requests, mapper=mapper, tell=view.show)
        space = replace(space, sample=space.sample.first(found.requests))
        why = why_second(space, ready.goal, found)
    facts = _facts(trace.name, space, seed)
    if not found.ranking:
        nothing = why_nothing(space, ready.goal, found)
        console.print(f"penstock plan: {nothing}", style="red", highlight=False, markup=False, soft_wrap=True)
        _write(json_file, as_json(space, ready.goal, found, nothing, facts))
        raise typer.Exit(NOTHING_HOLDS)
    print_plans(console, space, ready.goal, found, why)
    if note := _too_short(space, found.ranking[0].rate):
        console.print(f"plan: {note}", highlight=False, markup=False, soft_wrap=True)
    _write(json_file, as_json(space, ready.goal, found, why, facts))
    typer.echo(manifest(space, found.ranking[0].plan, manifest_of), nl=False)


def _too_short(space: Space, rate: float) -> str:
    """A warning where runs end before batches are what they come to; empty where they do not."""
    lasted, wanted = answers(space, rate), lasting(space, rate)
    if lasted >= _ENOUGH:
        return ""
    more = f"give --requests {min(wanted, _LONGEST)}" if len(space.sample) < _LONGEST else "there may be no longer runs"
    return (
        f"runs of {len(space.sample)} requests last {lasted:.2g} answers at {rate:.3g} requests a second, too short "
        f"for batches to grow to what they come to in the end: plans hold less than is said here; {more}"
    )


def _prepare(
    path: Path, model: ModelArchitecture, nodes: str, shape: Shape, objectives: Objectives, rank: Rank,
    rate: float | None, requests: int | None, *, skip_bad: bool,
) -> _Ready:  # fmt: skip
    """Read the trace and see that some worker fits; raises before anything is simulated."""
    shaped = shape_trace(read_trace(path, skip_bad=skip_bad), shape)
    groups = parse_nodes(nodes)
    sample = draw_sample(shaped.trace, requests or _LONGEST, shape.seed)
    context = shape.max_context_tokens if shape.max_context_tokens != model.max_context else sample.context
    space = Space(model, groups, sample, objectives, max(context or 0, sample.context))
    if not any(cells_of(model, group, space.context) for group in groups):
        raise Impossible(what_fits(model, groups, space.context))
    if rank is not Rank.GOODPUT and rate is None:
        if shaped.trace.duration_s <= 0:
            raise ValueError("the trace is an instant, so it has no rate; give --rate")
        rate = len(shaped.trace.requests) / shaped.trace.duration_s
    return _Ready(space, Goal(objectives, rank, rate), shaped.notes)


def _checked_name(space: Space, name: str) -> str:
    if len(name) > 40 or not re.fullmatch(DNS_LABEL_PATTERN, name):
        raise ValueError(
            f"{name!r} is no name of a ModelDeployment; write up to 40 lower-case letters, digits and -, which may be "
            "neither first nor last"
        )
    return name


@contextmanager
def _processes() -> Iterator[Mapper]:
    """A `map` over the cores there are; in this process where there is only one."""
    count = len(os.sched_getaffinity(0))
    if count < 2:
        yield map
        return
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("fork")) as pool:
        # All processes are made now, before the terminal's line has a thread that a fork would lose.
        pool.submit(int).result()
        try:
            yield pool.map
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _facts(trace: str, space: Space, seed: int) -> dict[str, Any]:
    goal = space.objectives
    return {
        "trace": trace,
        "model": space.model.name,
        "nodes": [
            {"accelerator": group.accelerator.name, "nodes": group.nodes, "accelerators": group.accelerators}
            for group in space.groups
        ],
        "objectives": {"ttft_seconds": goal.ttft_s, "tpot_seconds": goal.tpot_s, "attainment": goal.attainment},
        "requests": len(space.sample),
        "context": space.context,
        "policy": space.policy,
        "seed": seed,
    }


def _write(json_file: Path | None, content: dict[str, Any]) -> None:
    if json_file is not None:
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(plan)
