"""From the lines of a trace file to a trace, with every line that could not be read accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from penstock.core.traces.formats import (
    AZURE_COLUMNS,
    BURSTGPT_COLUMNS,
    BadLine,
    BadLineError,
    RawRequest,
    TraceFormat,
    Unanswered,
    UnknownTraceError,
    burstgpt_header,
    detect_format,
    read_azure_line,
    read_burstgpt_line,
    read_mooncake_line,
    read_penstock_header,
    read_penstock_line,
)
from penstock.core.traces.requests import DEFAULT_BLOCK_TOKENS, Trace

_LOOK_AHEAD_LINES = 100
"""How far to look for a line that tells the form, when the first ones are damaged and may be skipped."""


@dataclass(frozen=True, slots=True)
class ParsedTrace:
    """A trace, the form it was written in, and the lines that were left out."""

    trace: Trace
    format: TraceFormat
    skipped: tuple[BadLine, ...]
    unanswered: int = 0
    """Requests left out because they failed where they were recorded, so that their length is not known."""


def parse_trace(lines: Iterable[str], *, skip_bad: bool = False) -> ParsedTrace:
    """Read a whole trace from its lines; blank lines are ignored, arrivals are sorted and start at 0 s.

    Raises UnknownTraceError when the form is none of ours, BadLineError at the first line that is no
    request (with `skip_bad` such lines are left out and listed instead), ValueError when no request is left.
    """
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip("\ufeff \t\r\n")]
    form, first = _find_form(numbered, look_ahead=_LOOK_AHEAD_LINES if skip_bad else 1)
    skipped = [BadLine(number, "stands before the first line of a form we know") for number, _ in numbered[:first]]
    block_tokens, body = _split_header(form, numbered[first:])
    unanswered: list[int] = []
    reader = _reader(form, block_tokens, numbered[first][1])
    raw = list(_read_lines(body, reader, skipped if skip_bad else None, unanswered))
    if not raw:
        raise ValueError(f"holds no request ({form}, {len(skipped)} bad lines skipped)")
    raw.sort(key=lambda request: request.time_s)
    trace = Trace(tuple(request.since(raw[0].time_s) for request in raw), block_tokens)
    return ParsedTrace(trace, form, tuple(skipped), len(unanswered))


def _find_form(numbered: list[tuple[int, str]], look_ahead: int) -> tuple[TraceFormat, int]:
    for at, (_, line) in enumerate(numbered[:look_ahead]):
        form = detect_format(line)
        if form is not None:
            return form, at
    raise UnknownTraceError(
        "is no trace in a form we know: expected an Azure CSV (header "
        f"{','.join(AZURE_COLUMNS)}), a BurstGPT CSV (header with {', '.join(BURSTGPT_COLUMNS)}), a Mooncake JSONL "
        "(timestamp, input_length, output_length, hash_ids) or our JSONL (timestamp_ms, input_tokens, output_tokens, "
        "prefix_blocks)"
    )


def _split_header(form: TraceFormat, numbered: list[tuple[int, str]]) -> tuple[int, list[tuple[int, str]]]:
    """Tokens per block, and the lines that must be requests."""
    number, line = numbered[0]
    if form in (TraceFormat.AZURE_CSV, TraceFormat.BURSTGPT_CSV):
        return DEFAULT_BLOCK_TOKENS, numbered[1:]
    try:
        block_tokens = read_penstock_header(line)
    except ValueError as error:
        raise BadLineError(BadLine(number, str(error))) from None
    return (DEFAULT_BLOCK_TOKENS, numbered) if block_tokens is None else (block_tokens, numbered[1:])


def _reader(form: TraceFormat, block_tokens: int, head: str) -> Callable[[str], RawRequest]:
    if form is TraceFormat.AZURE_CSV:
        return read_azure_line
    if form is TraceFormat.BURSTGPT_CSV:
        header = burstgpt_header(head)
        return lambda line: read_burstgpt_line(line, header)
    if form is TraceFormat.MOONCAKE_JSONL:
        return read_mooncake_line
    return lambda line: read_penstock_line(line, block_tokens)


def _read_lines(
    lines: Iterable[tuple[int, str]],
    read: Callable[[str], RawRequest],
    skipped: list[BadLine] | None,
    unanswered: list[int],
) -> Iterator[RawRequest]:
    for number, line in lines:
        try:
            yield read(line)
        except Unanswered:
            unanswered.append(number)
        except ValueError as error:
            bad = BadLine(number, str(error))
            if skipped is None:
                raise BadLineError(bad) from None
            skipped.append(bad)
