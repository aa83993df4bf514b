"""`penstock simulate`: plays a trace through the twin, a simulated cluster that runs the router's own decisions.

Exit code 0 means that every request was completed, 1 that not all were, 2 that nothing was simulated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from penstock.cli.replay_trace import Shape, Shaped, TraceError, read_trace, shape_trace
from penstock.cli.simulate_view import ProgressView, print_simulation
from penstock.cli.values import parse_duration
from penstock.core.models import ModelArchitecture, Parallelism, find_model, suggest
from penstock.core.reports import Report
from penstock.core.traces import ParsedTrace, Trace
from penstock.router.decisions.policies import DEFAULT_POLICY, UnknownPolicy, find_policy
from penstock.simulator import ENDLESS, Scenario, WorkerSpec, make_report, parse_nodes, plan_workers, simulate
from penstock.simulator.workloads import ArrivalProcess, like
from penstock.simulator.workloads import arrivals as make_arrivals
from rich.console import Console

NOT_ALL_COMPLETED = 1
NOTHING_SIMULATED = 2
_LONGEST_S = 30 * 86_400.0
_MOST_REQUESTS = 10_000_000


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _capacity(text: str) -> int:
    if text == "infinite":
        return ENDLESS
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= ENDLESS):
        raise typer.BadParameter(f"{text!r} is no KV capacity; give tokens, or infinite")
    return int(text)


_Trace = Annotated[Path, typer.Option(help="Azure CSV, Mooncake JSONL or our own JSONL, told apart by content.")]
_Model = Annotated[str, typer.Option(help="A model of the catalogue, such as llama-3.1-70b.")]
_Nodes = Annotated[str, typer.Option(help="class=NODESxACCELERATORS, such as a100-80g=2x8,h100-80g=1x8.")]
_Policy = Annotated[str, typer.Option(help="The router's policy.")]
_Tensor = Annotated[int | None, typer.Option(min=1, max=64, help="Accelerators of a worker (default: the fewest).")]
_Limit = Annotated[
    float | None, typer.Option(parser=_duration, metavar="DURATION", help="Only what arrives before, such as 300s.")
]
_RateScale = Annotated[float, typer.Option(min=1e-6, max=1e6, help="Times the trace's arrival rate.")]
_Arrivals = Annotated[
    ArrivalProcess | None, typer.Option(help="Arrivals of this kind with the trace's lengths; needs --rate.")
]
_Rate = Annotated[float | None, typer.Option(min=1e-6, max=1e6, help="Requests a second, with --arrivals.")]
_For = Annotated[
    float | None,
    typer.Option(
        "--for", parser=_duration, metavar="DURATION", help="How long, with --arrivals (default: the trace's)."
    ),
]
_Cv = Annotated[float, typer.Option(min=1e-2, max=100, help="Burstiness of --arrivals Gamma.")]
_Capacity = Annotated[
    int | None,
    typer.Option(
        parser=_capacity, metavar="TOKENS|infinite", help="KV cache of a worker (default: what memory leaves)."
    ),
]
_BlockSize = Annotated[int | None, typer.Option(min=1, max=8192, help="Tokens of a KV block.")]
_MaxContext = Annotated[int | None, typer.Option(min=2, help="Drop longer requests (default: the model's limit).")]
_Batched = Annotated[int, typer.Option(min=1, max=1 << 20, help="Token budget of one engine step.")]
_Seqs = Annotated[int, typer.Option(min=1, max=1 << 16, help="Sequences of one engine step.")]
_Objective = Annotated[float, typer.Option(parser=_duration, metavar="DURATION", help="Objective.")]
_Seed = Annotated[int, typer.Option(min=0, help="Of arrivals, lengths and ties.")]
_KeepBursts = Annotated[bool, typer.Option("--keep-bursts", help="Leave arrivals of one stamp in one instant.")]
_SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without lines that are no requests.")]
_Cold = Annotated[bool, typer.Option("--cold", help="Let workers start first, phase by phase.")]
_Json = Annotated[Path | None, typer.Option("--json", help="Write the report here.")]


@dataclass(frozen=True, slots=True)
class _Ready:
    """All that was read and checked before the first event."""

    scenario: Scenario
    parsed: ParsedTrace
    shaped: Shaped
    trace: Trace
    workers: tuple[WorkerSpec, ...]


@dataclass(frozen=True, slots=True)
class _Arriving:
    """Arrivals in place of the trace's."""

    process: ArrivalProcess
    rate: float
    seconds: float | None
    cv: float


def simulate_command(
    trace: _Trace,
    model: _Model,
    nodes: _Nodes,
    policy: _Policy = DEFAULT_POLICY,
    tensor: _Tensor = None,
    limit: _Limit = None,
    rate_scale: _RateScale = 1.0,
    arrivals: _Arrivals = None,
    rate: _Rate = None,
    duration: _For = None,
    cv: _Cv = 4.0,
    kv_capacity: _Capacity = None,
    block_size: _BlockSize = None,
    max_context: _MaxContext = None,
    max_num_batched_tokens: _Batched = 8192,
    max_num_seqs: _Seqs = 256,
    ttft: _Objective = "500ms",  # type: ignore[assignment]  # typer hands defaults to the parser
    tpot: _Objective = "40ms",  # type: ignore[assignment]
    seed: _Seed = 0,
    keep_bursts: _KeepBursts = False,
    skip_bad: _SkipBad = False,
    cold: _Cold = False,
    json_file: _Json = None,
) -> None:
    """Play a trace through a simulated cluster that runs the router's own decisions, and report as replay does."""
    console = Console(stderr=True)
    try:
        arriving = _arriving(arrivals, rate, duration, cv)
        scenario = Scenario(
            model=_model(model),
            groups=parse_nodes(nodes),
            policy=find_policy(policy).name,
            parallelism=None if tensor is None else Parallelism(tensor=tensor),
            max_context=max_context,
            kv_capacity=kv_capacity,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            ttft_s=ttft,
            tpot_s=tpot,
            cold=cold,
            seed=seed,
        )
        shape = Shape(limit, rate_scale, keep_bursts, max_context or scenario.model.max_context, seed)
        ready = _prepare(trace, scenario, shape, arriving, skip_bad=skip_bad)
        _check_writable(json_file)
    except (TraceError, UnknownPolicy, ValueError) as error:
        console.print(f"penstock simulate: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(NOTHING_SIMULATED) from None
    for note in (*ready.shaped.notes, _cluster(ready.workers)):
        console.print(f"simulate: {note}", highlight=False, markup=False, soft_wrap=True)
    with ProgressView(console, len(ready.trace.requests)) as view:
        result = simulate(scenario, ready.trace, view.show)
    facts = _facts(trace.name, ready, rate_scale, arriving)
    report = make_report(result, ttft_s=ttft, tpot_s=tpot, run=facts)
    print_simulation(Console(), report, result.resources)
    _write(report, json_file)
    raise typer.Exit(0 if report.requests.completed == report.requests.total else NOT_ALL_COMPLETED)


def _model(name: str) -> ModelArchitecture:
    found = find_model(name)
    if found is None:
        near = suggest(name)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"model {name!r} is not in the catalogue{hint}")
    return found


def _arriving(process: ArrivalProcess | None, rate: float | None, seconds: float | None, cv: float) -> _Arriving | None:
    if process is None and rate is None and seconds is None:
        return None
    if process is None or rate is None:
        raise ValueError("--arrivals and --rate go together; --for says for how long")
    if seconds is not None and not 0 < seconds <= _LONGEST_S:
        raise ValueError(f"--for is {seconds} s; give more than 0 and at most 30 days")
    return _Arriving(process, rate, seconds, cv)


def _prepare(path: Path, scenario: Scenario, shape: Shape, arriving: _Arriving | None, *, skip_bad: bool) -> _Ready:
    """Read and shape the trace, and see that there can be such a cluster; raises before anything is simulated."""
    parsed = read_trace(path, skip_bad=skip_bad)
    shaped = shape_trace(parsed, shape)
    trace = shaped.trace
    if arriving is not None:
        seconds = arriving.seconds or trace.duration_s
        if seconds * arriving.rate > _MOST_REQUESTS:
            raise ValueError(
                f"{seconds * arriving.rate:.0f} requests are more than {_MOST_REQUESTS}; lower --rate or --for"
            )
        times = make_arrivals(arriving.rate, seconds, arriving.process, arriving.cv, shape.seed)
        trace = like(trace, times, shape.seed)
    if not trace.requests:
        raise ValueError("no request arrives: raise --rate or --for")
    return _Ready(scenario, parsed, shaped, trace, plan_workers(scenario, trace))


def _cluster(workers: tuple[WorkerSpec, ...]) -> str:
    """The workers in words."""
    kinds: dict[str, int] = {}
    for worker in workers:
        capacity = worker.config.num_blocks * worker.config.block_size
        tokens = "endless KV cache" if capacity >= ENDLESS // 2 else f"KV cache of {capacity} tokens"
        kind = f"{worker.accelerator.name} ({worker.parallelism}), {tokens}, profile {worker.profile.source}"
        kinds[kind] = kinds.get(kind, 0) + 1
    return "; ".join(f"{count} workers on {kind}" for kind, count in kinds.items())


def _check_writable(file: Path | None) -> None:
    if file is not None and not file.absolute().parent.is_dir():
        raise ValueError(f"{file} cannot be written: its folder does not exist")


def _facts(trace: str, ready: _Ready, rate_scale: float, arriving: _Arriving | None) -> dict[str, Any]:
    """What was run, for the report."""
    scenario = ready.scenario
    first = ready.workers[0]
    return {
        "trace": trace,
        "format": str(ready.parsed.format),
        "model": scenario.model.name,
        "policy": scenario.policy,
        "nodes": [
            {"accelerator": group.accelerator.name, "nodes": group.nodes, "accelerators": group.accelerators}
            for group in scenario.groups
        ],
        "workers": len(ready.workers),
        "block_size": first.config.block_size,
        "max_context": first.config.max_model_len,
        "seed": scenario.seed,
        "rate_scale": rate_scale,
        "arrivals": "trace" if arriving is None else str(arriving.process),
        "planned": len(ready.trace.requests),
        "skipped_lines": len(ready.parsed.skipped),
        "dropped_over_context": ready.shaped.dropped_over_context,
        "arrivals_spread": ready.shaped.spread,
    }


def _write(report: Report, json_file: Path | None) -> None:
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(simulate_command)
