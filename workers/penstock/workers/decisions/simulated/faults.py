"""Faults on demand: what can be made to go wrong with a simulated engine, and how it is written down.

A fault is text, so that a flag, an environment variable and an HTTP body say it alike: `crash`, `crash@30` (seconds
from now), `hang`, `slow=4` (times longer iterations), `throttle=0.7` (clock at 70 %), `drop-events=0.5` (share of KV
event batches lost), `no-metrics` (the page of metrics answers 503), `none` (all is well again). Several are joined by
commas.
"""

from dataclasses import dataclass, replace

from penstock.core.wire import WireError


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong at the moment; the default is nothing."""

    crash_after_s: float | None = None
    """Seconds until the process dies without a word; None: it does not."""
    hang: bool = False
    """Iterations stop; connections stay open and nothing more is said, on any path."""
    slow: float = 1.0
    """Factor on the duration of every iteration."""
    clock: float = 1.0
    """Share of the accelerator's clock that is left: compute-bound prefill suffers most, decode less."""
    drop_events: float = 0.0
    """Share of KV event batches that are lost, sequence numbers and all."""
    no_metrics: bool = False
    """Nobody learns the engine's load: `/metrics` answers 503, everything else goes on."""


def parse_faults(text: str, current: Faults | None = None) -> Faults:
    """`current` changed as `text` says; raises `WireError` naming the part that is not a fault."""
    faults = current or Faults()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        faults = _apply(faults, part)
    return faults


def _apply(faults: Faults, part: str) -> Faults:
    name, _, value = part.replace("@", "=", 1).partition("=")
    match name:
        case "none":
            return Faults()
        case "hang":
            return replace(faults, hang=True)
        case "no-metrics":
            return replace(faults, no_metrics=True)
        case "crash":
            return replace(faults, crash_after_s=_number(part, value or "0", 0.0, 86_400.0))
        case "slow":
            return replace(faults, slow=_number(part, value, 0.01, 1e6))
        case "throttle":
            return replace(faults, clock=_number(part, value, 0.05, 1.0))
        case "drop-events":
            return replace(faults, drop_events=_number(part, value, 0.0, 1.0))
    known = "crash[@seconds], hang, slow=N, throttle=SHARE, drop-events=SHARE, no-metrics, none"
    raise WireError(f"{part!r} is not a fault; use {known}")


def _number(part: str, value: str, least: float, most: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise WireError(f"{part!r} needs a number from {least:g} to {most:g}")
    return number
