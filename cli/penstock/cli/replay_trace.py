"""Opening a trace file and shaping it for a run, with a sentence for each thing that was changed on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penstock.core.traces import (
    ParsedTrace,
    Trace,
    drop_over_context,
    limit_duration,
    needs_spreading,
    parse_trace,
    scale_rate,
    spread_slots,
)


class TraceError(Exception):
    """The trace cannot be played; the message says which file, which line, why."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What to make of a trace. Durations in seconds; None means no bound."""

    limit_s: float | None = None
    rate_scale: float = 1.0
    keep_bursts: bool = False
    max_context_tokens: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Shaped:
    """A trace ready to play."""

    trace: Trace
    dropped_over_context: int
    spread: bool
    notes: tuple[str, ...]


def read_trace(path: Path, *, skip_bad: bool) -> ParsedTrace:
    """Read a trace file. Raises TraceError with file, line and reason."""
    try:
        with path.open(encoding="utf-8") as lines:
            return parse_trace(lines, skip_bad=skip_bad)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path}: is not text; give a CSV or JSONL file, unpacked") from None
    except ValueError as error:
        hint = "" if skip_bad or not str(error).startswith("line ") else " (--skip-bad goes on without such lines)"
        raise TraceError(f"{path}: {error}{hint}") from None


def shape_trace(parsed: ParsedTrace, shape: Shape) -> Shaped:
    """Spread, scale, cut and limit, in this order. Raises TraceError when nothing is left to send."""
    notes = [f"{len(parsed.trace.requests)} requests over {parsed.trace.duration_s:.0f} s ({parsed.format})"]
    trace, spread = parsed.trace, needs_spreading(parsed.trace) and not shape.keep_bursts
    if parsed.skipped:
        first = parsed.skipped[0]
        notes.append(f"{len(parsed.skipped)} bad lines left out, the first one line {first.number}: {first.reason}")
    if parsed.unanswered:
        notes.append(f"{parsed.unanswered} requests left out: they failed where they were recorded")
    if spread:
        trace = spread_slots(trace, shape.seed)
        notes.append("arrivals stamped alike are spread over their slot of at most 3 s (--keep-bursts leaves them)")
    trace, dropped = _fit(_bound(trace, shape), shape, notes)
    if not trace.requests:
        raise TraceError("no request is left to send: raise --limit, or the model's context is too short for any")
    return Shaped(trace, dropped, spread, tuple(notes))


def _bound(trace: Trace, shape: Shape) -> Trace:
    scaled = scale_rate(trace, shape.rate_scale) if shape.rate_scale != 1.0 else trace
    return scaled if shape.limit_s is None else limit_duration(scaled, shape.limit_s)


def _fit(trace: Trace, shape: Shape, notes: list[str]) -> tuple[Trace, int]:
    if shape.max_context_tokens is None:
        return trace, 0
    kept, dropped = drop_over_context(trace, shape.max_context_tokens)
    if dropped:
        notes.append(f"{dropped} requests dropped: over the model's context of {shape.max_context_tokens} tokens")
    return kept, dropped
