"""`penstock profile fit`: a PerformanceProfile with the error of the fit, from a benchmark run or from `/metrics`.

The run is what `penstock replay --outcomes FILE` wrote, sent straight to one worker; metrics are those of workers with
whatever traffic they have. The error goes to standard error, the object to standard output. Exit code 2 means that
nothing could be fitted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from penstock.cli.profile_metrics import Wanted, fit_from_metrics, report
from penstock.cli.profile_object import profile_object
from penstock.cli.profile_outcomes import read_outcomes
from penstock.cli.values import parse_duration
from penstock.core.models import Parallelism
from penstock.core.models.fitting import Quality, fit_profile
from rich.console import Console

NOTHING_FITTED = 2

app = typer.Typer(name="profile", help="How fast workers are.", no_args_is_help=True)


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


_Outcomes = Annotated[
    Path | None, typer.Option(help="What `penstock replay --outcomes` wrote of a run against one worker.")
]
_Metrics = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL|FILE",
        help="A worker to scrape, such as http://127.0.0.1:8000, or a file that --save wrote; once for each.",
    ),
]
_Model = Annotated[str | None, typer.Option(help="The served model's name (default: what the metrics say).")]
_Accelerator = Annotated[str, typer.Option(help="The AcceleratorClass of the worker, such as h100-80g.")]
_Degree = Annotated[int, typer.Option(min=1, max=64, help="Of the worker's parallelism.")]
_Name = Annotated[str | None, typer.Option(help="Name of the object (default: made from accelerator and degrees).")]
_Provenance = Annotated[str, typer.Option(help="Who measured, where and when.")]
_For = Annotated[
    float, typer.Option("--for", parser=_duration, metavar="DURATION", help="Scrape for this long; or press Ctrl-C.")
]
_Interval = Annotated[float, typer.Option(parser=_duration, metavar="DURATION", help="From one scrape to the next.")]
_Timeout = Annotated[float, typer.Option(parser=_duration, metavar="DURATION", help="Bound on one scrape.")]
_Save = Annotated[Path | None, typer.Option(help="Write the scrapes here, to be fitted again.")]
_Budget = Annotated[
    int | None, typer.Option(min=1, help="The engine's: longer prompts take several passes and are left out.")
]


@app.callback()
def _group() -> None:
    """How fast workers are."""


@app.command("fit")
def fit(
    accelerator: _Accelerator,
    outcomes: _Outcomes = None,
    metrics: _Metrics = None,
    model: _Model = None,
    tensor: _Degree = 1,
    pipeline: _Degree = 1,
    name: _Name = None,
    provenance: _Provenance = "",
    duration: _For = "5m",  # type: ignore[assignment]  # typer hands defaults to the parser
    interval: _Interval = "1s",  # type: ignore[assignment]
    timeout: _Timeout = "2s",  # type: ignore[assignment]
    save: _Save = None,
    max_num_batched_tokens: _Budget = None,
) -> None:
    """Fit workers' latency from a benchmark run or from their metrics, say how far it is off, and print the
    PerformanceProfile."""
    console = Console(stderr=True)
    degrees = Parallelism(tensor=tensor, pipeline=pipeline)
    try:
        if (outcomes is None) == (not metrics):
            raise ValueError("give one of --outcomes, a benchmark run, and --metrics, workers or their scrapes")
        if outcomes is not None:
            lines, made = _from_outcomes(outcomes, model, accelerator, degrees, name, provenance)
        else:
            wanted = Wanted(metrics or (), interval, duration, timeout, save, max_num_batched_tokens)
            lines, made = _from_metrics(wanted, model, accelerator, degrees, name, provenance, console)
    except (OSError, ValueError) as error:
        console.print(
            f"penstock profile fit: {_said(error)}", style="red", highlight=False, markup=False, soft_wrap=True
        )
        raise typer.Exit(NOTHING_FITTED) from None
    for line in lines:
        console.print(f"profile: {line}", highlight=False, markup=False, soft_wrap=True)
    typer.echo(yaml.safe_dump(made, sort_keys=False, allow_unicode=True), nl=False)


def _said(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: cannot be read: {error.strerror}"
    return str(error)


_Told = tuple[list[str], dict[str, Any]]
"""What to say of a fit, and its object."""


def _from_outcomes(
    outcomes: Path, model: str | None, accelerator: str, degrees: Parallelism, name: str | None, provenance: str
) -> _Told:
    if model is None:
        raise ValueError("a benchmark run does not say which model was served; give --model")
    observed = list(read_outcomes(outcomes))
    if not observed:
        raise ValueError(f"{outcomes}: no request was completed in it, so there is nothing to fit")
    said = provenance or f"penstock profile fit, {outcomes.name}, {len(observed)} requests"
    fitted = fit_profile(observed, said)
    errors = f"{said}; median error prefill {fitted.prefill.median_error:.1%}, decode {fitted.decode.median_error:.1%}"
    made = profile_object(replace(fitted.profile, provenance=errors), model, accelerator, degrees, name)
    phases = (("prefill", fitted.prefill), ("decode", fitted.decode))
    return [f"{phase}: {_sentence(quality)}" for phase, quality in phases], made


def _from_metrics(
    wanted: Wanted, model: str | None, accelerator: str, degrees: Parallelism, name: str | None, provenance: str,
    console: Console,
) -> _Told:  # fmt: skip
    found = fit_from_metrics(wanted, provenance, console)
    lines = list(report(found))
    served = found.models[0] if found.models else ""
    if model is not None and served and model != served:
        lines.append(f"note: the workers serve {served}, the profile is for {model}")
    if not (model or served):
        raise ValueError("the metrics do not say which model is served; give --model")
    return lines, profile_object(found.fit.profile, model or served, accelerator, degrees, name, found.kv_capacity)


def _sentence(quality: Quality) -> str:
    return (
        f"off by {quality.median_error:.1%} at the median and {quality.p90_error:.1%} at the 90 % quantile of "
        f"{quality.samples} samples; R2 {quality.r_squared:.3f}"
    )


if __name__ == "__main__":
    app()
