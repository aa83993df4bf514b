"""`penstock profile fit`: a PerformanceProfile from a benchmark run, with the error of the fit.

The run is what `penstock replay --outcomes FILE` wrote, sent straight to one worker. The error goes to standard error,
the object to standard output. Exit code 2 means that nothing could be fitted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from penstock.api import PerformanceProfile
from penstock.api.base import DNS_NAME_PATTERN
from penstock.core.models import Parallelism
from penstock.core.models.fitting import Fit, Observed, Quality, fit_profile
from penstock.core.reports import Verdict
from pydantic import ValidationError
from rich.console import Console

NOTHING_FITTED = 2

app = typer.Typer(name="profile", help="How fast workers are.", no_args_is_help=True)

_Outcomes = Annotated[Path, typer.Option(help="What `penstock replay --outcomes` wrote of a run against one worker.")]
_Model = Annotated[str, typer.Option(help="The served model's name.")]
_Accelerator = Annotated[str, typer.Option(help="The AcceleratorClass of the worker, such as h100-80g.")]
_Degree = Annotated[int, typer.Option(min=1, max=64, help="Of the worker's parallelism.")]
_Name = Annotated[str | None, typer.Option(help="Name of the object (default: made from accelerator and degrees).")]
_Provenance = Annotated[str, typer.Option(help="Who measured, where and when.")]


@app.callback()
def _group() -> None:
    """How fast workers are."""


@app.command("fit")
def fit(
    outcomes: _Outcomes,
    model: _Model,
    accelerator: _Accelerator,
    tensor: _Degree = 1,
    pipeline: _Degree = 1,
    name: _Name = None,
    provenance: _Provenance = "",
) -> None:
    """Fit a worker's latency from a benchmark run, say how far it is off, and print the PerformanceProfile."""
    console = Console(stderr=True)
    try:
        observed = list(read_outcomes(outcomes))
        fitted = fit_profile(observed, provenance or f"penstock profile fit, {outcomes.name}, {len(observed)} requests")
        degrees = Parallelism(tensor=tensor, pipeline=pipeline)
        made = profile_object(fitted, model, accelerator, degrees, name)
    except (OSError, ValueError) as error:
        said = f"{outcomes}: cannot be read: {error.strerror}" if isinstance(error, OSError) else error
        console.print(f"penstock profile fit: {said}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(NOTHING_FITTED) from None
    for phase, quality in (("prefill", fitted.prefill), ("decode", fitted.decode)):
        console.print(f"profile: {phase}: {_sentence(quality)}", highlight=False, markup=False, soft_wrap=True)
    typer.echo(yaml.safe_dump(made, sort_keys=False), nl=False)


def read_outcomes(path: Path) -> Iterator[Observed]:
    """The completed requests of a file of outcomes. Raises ValueError with file, line and reason."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                found = json.loads(line)
                if found["verdict"] == Verdict.COMPLETED and None not in (found["ttft_s"], found["prompt_tokens"]):
                    yield _observed(found)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path}: line {number} is no outcome ({type(error).__name__}: {error}); give a file that "
                    "penstock replay --outcomes wrote"
                ) from None


def profile_object(fitted: Fit, model: str, accelerator: str, degrees: Parallelism, name: str | None) -> dict[str, Any]:
    """The object as a manifest. Raises ValueError for a name that the API does not take, of object, model or class."""
    a, b, c = fitted.profile.prefill
    d, e, f = fitted.profile.decode
    spec = {
        "modelName": model,
        "acceleratorClassName": accelerator,
        "parallelism": degrees.to_dict(),
        "source": "Benchmark",
        "prefill": {"base": _decimal(a), "perToken": _decimal(b), "perSquaredToken": _decimal(c)},
        "decode": {"base": _decimal(d), "perSequence": _decimal(e), "perContextToken": _decimal(f)},
        "provenance": f"{fitted.profile.provenance}; median error prefill {fitted.prefill.median_error:.1%}, "
        f"decode {fitted.decode.median_error:.1%}",
    }
    spread = "-".join(f"{key[0]}p{degree}" for key, degree in degrees.to_dict().items())
    plain = re.sub(r"[^a-z0-9]+", "-", model.rpartition("/")[2].lower()).strip("-")
    called = name or f"{plain}-{accelerator}-{spread}"
    if len(called) > 253 or not re.fullmatch(DNS_NAME_PATTERN, called):
        raise ValueError(
            f"{called!r} is no name of an object; give one by --name: lower-case letters, digits, - and ., which "
            "may be neither first nor last"
        )
    made = {
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "PerformanceProfile",
        "metadata": {"name": called},
        "spec": spec,
    }
    try:
        PerformanceProfile.model_validate(made)
    except ValidationError as error:
        wrong = (f"{one['loc'][-1]} {one['input']!r}: {one['msg']}" for one in error.errors())
        raise ValueError(f"the API takes no such profile: {'; '.join(wrong)}") from None
    return made


def _observed(found: dict[str, Any]) -> Observed:
    sent = float(found["sent_s"])
    return Observed(
        sent,
        sent + float(found["ttft_s"]),
        sent + float(found["e2e_s"]),
        int(found["prompt_tokens"]),
        int(found["output_tokens"] or 0),
        int(found["cached_tokens"] or 0),
    )


def _decimal(value: float) -> str:
    """A number as the API takes it, to twelve places."""
    return f"{value:.12f}".rstrip("0").rstrip(".") or "0"


def _sentence(quality: Quality) -> str:
    return (
        f"off by {quality.median_error:.1%} at the median and {quality.p90_error:.1%} at the 90 % quantile of "
        f"{quality.samples} samples; R2 {quality.r_squared:.3f}"
    )


if __name__ == "__main__":
    app()
