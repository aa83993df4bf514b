"""Options that `simulate`, `compare` and `sweep` share, and scenarios made of flags instead of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from penstock.cli.values import parse_duration
from penstock.simulator.files import ScenarioError, ScenarioForm, check_scenario
from penstock.simulator.workloads import ArrivalProcess

__all__ = [
    "BY_FLAGS", "Arrivals", "Batched", "BlockSize", "Capacity", "Cold", "Cv", "For", "Html", "Json", "KeepBursts",
    "Limit", "MaxContext", "Model", "Nodes", "Objective", "Policy", "Rate", "RateScale", "Save", "Seed", "Seeds",
    "Seqs", "Set", "SkipBad", "Tensor", "TraceFile", "form_of_flags",
]  # fmt: skip

BY_FLAGS = "the flags"


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _capacity(text: str) -> int | str:
    if text != "infinite" and not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise typer.BadParameter(f"{text!r} is no KV capacity; give tokens, or infinite")
    return text if text == "infinite" else int(text)


TraceFile = Annotated[
    Path | None, typer.Option(help="Azure or BurstGPT CSV, Mooncake JSONL or our own JSONL, told apart by content.")
]
Model = Annotated[str | None, typer.Option(help="A model of the catalogue, such as llama-3.1-70b.")]
Nodes = Annotated[str | None, typer.Option(help="class=NODESxACCELERATORS, such as a100-80g=2x8,h100-80g=1x8.")]
Policy = Annotated[str | None, typer.Option(help="The router's policy (default: the scenario's, or the chart's).")]
Tensor = Annotated[int | None, typer.Option(min=1, max=64, help="Accelerators of a worker (default: the fewest).")]
Limit = Annotated[
    float | None, typer.Option(parser=_duration, metavar="DURATION", help="Only what arrives before, such as 300s.")
]
RateScale = Annotated[float | None, typer.Option(min=1e-6, max=1e6, help="Times the trace's arrival rate.")]
Arrivals = Annotated[
    ArrivalProcess | None, typer.Option(help="Arrivals of this kind with the trace's lengths; needs --rate.")
]
Rate = Annotated[float | None, typer.Option(min=1e-6, max=1e6, help="Requests a second, with --arrivals.")]
For = Annotated[
    float | None,
    typer.Option(
        "--for", parser=_duration, metavar="DURATION", help="How long, with --arrivals (default: the trace's)."
    ),
]
Cv = Annotated[float | None, typer.Option(min=1e-2, max=100, help="Burstiness of --arrivals Gamma (default: 4).")]
Capacity = Annotated[
    Any,
    typer.Option(
        parser=_capacity, metavar="TOKENS|infinite", help="KV cache of a worker (default: what memory leaves)."
    ),
]
BlockSize = Annotated[int | None, typer.Option(min=1, max=8192, help="Tokens of a KV block.")]
MaxContext = Annotated[int | None, typer.Option(min=2, help="Drop longer requests (default: the model's limit).")]
Batched = Annotated[int | None, typer.Option(min=1, max=1 << 20, help="Token budget of one engine step.")]
Seqs = Annotated[int | None, typer.Option(min=1, max=1 << 16, help="Sequences of one engine step.")]
Objective = Annotated[
    float | None, typer.Option(parser=_duration, metavar="DURATION", help="Objective (default: 500ms, 40ms).")
]
Seed = Annotated[
    int | None, typer.Option(min=0, max=(1 << 31) - 1, help="Of arrivals, lengths and ties; the first one.")
]
Seeds = Annotated[int, typer.Option(min=1, max=1000, help="How many seeds, one run each, on all cores.")]
KeepBursts = Annotated[bool, typer.Option("--keep-bursts", help="Leave arrivals of one stamp in one instant.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without lines that are no requests.")]
Cold = Annotated[bool, typer.Option("--cold", help="Let workers start first, phase by phase.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the report here.")]
Html = Annotated[Path | None, typer.Option("--html", help="Write a page with tables and plots here.")]
Save = Annotated[Path | None, typer.Option("--save", help="Write the scenario as YAML here.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set a field, such as engine.maxNumSeqs=64.")
]


def form_of_flags(flags: dict[str, Any]) -> ScenarioForm:
    """The scenario that flags describe, by their parameters' names. Raises ValueError for what is missing or wrong."""
    for name, what in (("trace", "a trace"), ("model", "a model"), ("nodes", "nodes")):
        if flags.get(name) is None:
            raise ScenarioError(f"--{name} is missing: give {what}, or a scenario file")
    data = {
        "model": flags["model"],
        "nodes": flags["nodes"],
        "policy": flags.get("policy"),
        "workload": _workload(flags),
        "objectives": {"ttft": flags.get("ttft"), "tpot": flags.get("tpot")},
        "parallelism": None if flags.get("tensor") is None else {"tensor": flags["tensor"]},
        "engine": {
            "maxContext": flags.get("max_context"),
            "kvCapacity": flags.get("kv_capacity"),
            "blockSize": flags.get("block_size"),
            "maxNumSeqs": flags.get("max_num_seqs"),
            "maxNumBatchedTokens": flags.get("max_num_batched_tokens"),
        },
        "cold": flags.get("cold") or None,
    }
    return check_scenario(_given(data), BY_FLAGS)


def _workload(flags: dict[str, Any]) -> dict[str, Any]:
    process, rate, seconds, cv = (flags.get(name) for name in ("arrivals", "rate", "duration", "cv"))
    trace = str(flags["trace"])
    if process is None and rate is None and seconds is None and cv is None:
        shape = {"rateScale": flags.get("rate_scale"), "limit": flags.get("limit")}
        return {"trace": {"file": trace, "keepBursts": flags.get("keep_bursts") or None, **shape, **_skip(flags)}}
    if process is None or rate is None:
        raise ScenarioError("--arrivals and --rate go together; --for says for how long")
    for name in ("rate_scale", "limit"):
        if flags.get(name) is not None:
            raise ScenarioError(f"--{name.replace('_', '-')} is of the trace's own arrivals; drop it or --arrivals")
    arriving = {"process": str(process), "rate": rate, "for": seconds, "cv": cv}
    return {"arrivals": arriving, "lengths": {"like": trace, **_skip(flags)}}


def _skip(flags: dict[str, Any]) -> dict[str, Any]:
    return {"skipBad": flags.get("skip_bad") or None}


def _given(data: Any) -> Any:
    """Without what was not given."""
    if not isinstance(data, dict):
        return data
    kept = {key: _given(value) for key, value in data.items() if value is not None}
    return {key: value for key, value in kept.items() if value != {}}
