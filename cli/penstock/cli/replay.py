"""`penstock replay`: plays a trace of requests against an OpenAI endpoint and reports what its users saw.

Exit code 0 means that every request was completed, 1 that not all were, 2 that nothing was sent.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from msgspec.structs import asdict
from penstock.cli.replay_client import Target, Timeouts, normal_base
from penstock.cli.replay_run import Plan, Progress, PromptForm
from penstock.cli.replay_run import replay as play
from penstock.cli.replay_server import ServerError, find_model
from penstock.cli.replay_target import default_url
from penstock.cli.replay_trace import Shape, Shaped, TraceError, read_trace, shape_trace
from penstock.cli.report_view import ProgressView, print_report
from penstock.cli.values import parse_duration
from penstock.core.reports import Report, summarise
from penstock.core.traces import ParsedTrace
from rich.console import Console

NOT_ALL_COMPLETED = 1
NOTHING_SENT = 2
_SPARE_DESCRIPTORS = 256


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


_Trace = Annotated[Path, typer.Argument(help="Azure CSV, Mooncake JSONL or our own JSONL, told apart by content.")]
_Model = Annotated[str, typer.Option(help="The served model's name.")]
_Url = Annotated[str | None, typer.Option(help="Base URL (default: the running box's, or http://127.0.0.1:8000).")]
_Limit = Annotated[
    float | None, typer.Option(parser=_duration, metavar="DURATION", help="Send for this long, such as 300s.")
]
_RateScale = Annotated[float, typer.Option(min=1e-6, max=1e6, help="Times the trace's arrival rate.")]
_Seed = Annotated[int, typer.Option(min=0, help="Of prompts, and of arrivals within a slot.")]
_Objective = Annotated[float, typer.Option(parser=_duration, metavar="DURATION", help="Objective for attainment.")]
_Json = Annotated[Path | None, typer.Option("--json", help="Write the report here.")]
_Outcomes = Annotated[Path | None, typer.Option("--outcomes", help="Write one JSON line for each request here.")]
_MaxContext = Annotated[int | None, typer.Option(min=1, help="Drop longer requests (default: what the server says).")]
_KeepBursts = Annotated[bool, typer.Option("--keep-bursts", help="Leave arrivals of one stamp in one instant.")]
_SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without lines that are no requests.")]
_Form = Annotated[PromptForm, typer.Option(help="Token ids, or words for engines that count words.")]
_MaxInFlight = Annotated[int, typer.Option(min=1, max=60_000, help="Bound on unanswered requests.")]
_Timeout = Annotated[float, typer.Option(parser=_duration, metavar="DURATION", help="Bound on one request.")]
_Key = Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.")]


@dataclass(frozen=True, slots=True)
class _Ready:
    """All that was looked up and read before the first request."""

    base: str
    target: Target
    parsed: ParsedTrace
    shaped: Shaped


def replay(
    trace: _Trace,
    model: _Model,
    url: _Url = None,
    limit: _Limit = None,
    rate_scale: _RateScale = 1.0,
    seed: _Seed = 0,
    ttft: _Objective = "500ms",  # type: ignore[assignment]  # typer hands defaults to the parser
    tpot: _Objective = "40ms",  # type: ignore[assignment]
    json_file: _Json = None,
    outcomes_file: _Outcomes = None,
    max_context: _MaxContext = None,
    keep_bursts: _KeepBursts = False,
    skip_bad: _SkipBad = False,
    prompt_form: _Form = PromptForm.IDS,
    max_in_flight: _MaxInFlight = 4096,
    request_timeout: _Timeout = "600s",  # type: ignore[assignment]
    api_key: _Key = None,
) -> None:
    """Play a trace open-loop through the gateway and report TTFT, TPOT, attainment and errors."""
    console = Console(stderr=True)
    shape = Shape(limit, rate_scale, keep_bursts, max_context, seed)
    try:
        ready = _prepare(trace, model, url, api_key, shape, skip_bad=skip_bad)
        _check_writable(json_file, outcomes_file)
    except (TraceError, ServerError, ValueError) as error:
        console.print(f"penstock replay: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(NOTHING_SENT) from None
    for note in ready.shaped.notes:
        console.print(f"replay: {note}", highlight=False, markup=False, soft_wrap=True)
    plan = Plan(ready.shaped.trace, model, seed, prompt_form, max_in_flight, Timeouts(request_s=request_timeout))
    progress = Progress(planned=len(plan.trace.requests))
    uvloop.run(_play(plan, ready.target, progress, console))
    facts = _facts(trace.name, plan, ready, shape, progress)
    report = summarise(progress.outcomes, ttft_objective_s=ttft, tpot_objective_s=tpot, run=facts)
    print_report(Console(), report)
    _write(report, progress, json_file, outcomes_file)
    raise typer.Exit(0 if report.requests.completed == progress.planned else NOT_ALL_COMPLETED)


def _prepare(trace: Path, model: str, url: str | None, api_key: str | None, shape: Shape, *, skip_bad: bool) -> _Ready:
    """Read the trace, ask the server, shape the one by the other; raises before anything was sent."""
    base = normal_base(url or default_url())
    parsed = read_trace(trace, skip_bad=skip_bad)
    served = find_model(base, model, api_key)
    bound = shape.max_context_tokens or served.max_context_tokens
    return _Ready(base, Target.of(base, api_key), parsed, shape_trace(parsed, replace(shape, max_context_tokens=bound)))


def _check_writable(*files: Path | None) -> None:
    """A report that cannot be written is found out now, not after the run."""
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            raise ValueError(f"{file} cannot be written: its folder does not exist")


async def _play(plan: Plan, target: Target, progress: Progress, console: Console) -> None:
    """Run the plan; Ctrl-C (or SIGTERM) ends it, and what was measured until then is reported."""
    _allow_connections(plan.max_in_flight)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    with ProgressView(console, progress, plan.trace.duration_s) as view:
        ticker = loop.create_task(_tick_for_ever(view))
        try:
            located = await target.located(plan.timeouts.connect_s)
            await play(plan, located, stop, progress)
        finally:
            ticker.cancel()


async def _tick_for_ever(view: ProgressView) -> None:
    while True:
        await asyncio.sleep(0.2)
        view.tick()


def _allow_connections(wanted: int) -> None:
    """Raise the soft limit of open files as far as the run may need and the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < need:
        allowed = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _facts(trace: str, plan: Plan, ready: _Ready, shape: Shape, progress: Progress) -> dict[str, Any]:
    """What was run, for the report."""
    return {
        "trace": trace,
        "format": str(ready.parsed.format),
        "model": plan.model,
        "url": ready.base,
        "seed": plan.seed,
        "rate_scale": shape.rate_scale,
        "limit_seconds": shape.limit_s,
        "prompt_form": str(plan.prompt_form),
        "planned": progress.planned,
        "skipped_lines": len(ready.parsed.skipped),
        "dropped_over_context": ready.shaped.dropped_over_context,
        "arrivals_spread": ready.shaped.spread,
        "held_back": progress.held_back,
        "interrupted": progress.interrupted,
    }


def _write(report: Report, progress: Progress, json_file: Path | None, outcomes_file: Path | None) -> None:
    if json_file:
        json_file.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    if outcomes_file:
        in_order = sorted(progress.outcomes, key=lambda outcome: outcome.index)
        lines = (json.dumps({**asdict(outcome), "tpot_s": outcome.tpot_s}) for outcome in in_order)
        outcomes_file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    typer.run(replay)
