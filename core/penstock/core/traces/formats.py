"""The four written forms of a trace, told apart by what stands in them, and how one line of each is read.

- Azure CSV: `TIMESTAMP,ContextTokens,GeneratedTokens`, as the Azure LLM inference traces are published. Times are
  UTC text; digits below a microsecond are cut. No request is known to share a prefix.
- Mooncake JSONL: `{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}`; each id stands for
  512 prompt tokens together with everything before them.
- BurstGPT CSV: `Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type`, as BurstGPT is published, and
  its later form that has `Session ID` and `Elapsed time` too; columns go by their names. Times are seconds. A row of 0
  response tokens is a request that failed: it says when somebody asked, but not for how much.
- Penstock JSONL: `{"timestamp_ms": t, "input_tokens": n, "output_tokens": n, "prefix_blocks": [...]}`;
  `prefix_blocks` may be left out; `tenant`, `priority` and `model` may be given. A first line
  `{"penstock_trace": 1, "block_tokens": 64}` may set how many tokens a block stands for (512 without it).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from penstock.core.traces.requests import TraceRequest

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT_COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens")
"""Columns of the BurstGPT form that are read; it has others."""
MOONCAKE_BLOCK_TOKENS = 512
MAX_NAME = 256
MAX_PRIORITY = 1 << 31
MAX_TOKENS = 100_000_000
"""No engine takes a request of this size: a larger number is a damaged line, not a long prompt."""


class TraceFormat(StrEnum):
    """A written form of a trace."""

    AZURE_CSV = "Azure CSV"
    BURSTGPT_CSV = "BurstGPT CSV"
    MOONCAKE_JSONL = "Mooncake JSONL"
    PENSTOCK_JSONL = "Penstock JSONL"


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no request: its number (from 1) and why."""

    number: int
    reason: str


class BadLineError(ValueError):
    """A line of the trace cannot be read as a request."""

    def __init__(self, bad: BadLine) -> None:
        super().__init__(f"line {bad.number}: {bad.reason}")
        self.bad = bad


class Unanswered(ValueError):
    """The line is a request that failed where it was recorded: nobody knows how long its answer would have been."""


class UnknownTraceError(ValueError):
    """The text is in none of the forms we read."""


@dataclass(frozen=True, slots=True)
class RawRequest:
    """A line as read: its time is still on the source's own clock (seconds)."""

    time_s: float
    input_tokens: int
    output_tokens: int
    prefix_blocks: tuple[int, ...] = ()
    tenant: str = ""
    priority: int = 0
    model: str = ""

    def since(self, start_s: float) -> TraceRequest:
        """The request with its arrival counted from `start_s` on the source's clock."""
        return TraceRequest(
            self.time_s - start_s,
            self.input_tokens,
            self.output_tokens,
            self.prefix_blocks,
            self.tenant,
            self.priority,
            self.model,
        )


def detect_format(line: str) -> TraceFormat | None:
    """The form that `line` belongs to, or None when it belongs to none.

    For the CSV forms that line is the header; for the JSON forms it is any line.
    """
    text = line.lstrip("\ufeff").strip()
    cells = tuple(cell.strip() for cell in text.split(","))
    if cells == AZURE_COLUMNS:
        return TraceFormat.AZURE_CSV
    if set(BURSTGPT_COLUMNS) <= set(cells):
        return TraceFormat.BURSTGPT_CSV
    row = _json_object(text)
    if row is None:
        return None
    if "penstock_trace" in row or "timestamp_ms" in row:
        return TraceFormat.PENSTOCK_JSONL
    return TraceFormat.MOONCAKE_JSONL if "input_length" in row else None


def read_azure_line(text: str) -> RawRequest:
    """One data row of an Azure CSV. Raises ValueError with the reason when it is not one."""
    cells = text.split(",")
    if len(cells) != len(AZURE_COLUMNS):
        raise ValueError(f"has {len(cells)} columns; {','.join(AZURE_COLUMNS)} are expected")
    return RawRequest(
        _utc_seconds(cells[0].strip()), _digits(cells[1], "ContextTokens"), _digits(cells[2], "GeneratedTokens")
    )


def read_burstgpt_line(text: str, header: tuple[str, ...]) -> RawRequest:
    """One data row of a BurstGPT CSV whose columns have these names.

    Raises ValueError with the reason when it is not one, `Unanswered` when its request failed.
    """
    cells = text.split(",")
    if len(cells) != len(header):
        raise ValueError(f"has {len(cells)} columns; {','.join(header)} are expected")
    row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
    if row["Response tokens"] in ("0", "0.0"):
        raise Unanswered("Response tokens is 0: the request failed")
    return RawRequest(
        _seconds(row["Timestamp"], "Timestamp"),
        _digits(row["Request tokens"].removesuffix(".0"), "Request tokens"),
        _digits(row["Response tokens"].removesuffix(".0"), "Response tokens"),
        model=row["Model"],
    )


def burstgpt_header(line: str) -> tuple[str, ...]:
    """The names of a BurstGPT CSV's columns, from its first line."""
    return tuple(cell.strip() for cell in line.lstrip("\ufeff").split(","))


def read_mooncake_line(text: str) -> RawRequest:
    """One row of a Mooncake JSONL. Raises ValueError with the reason when it is not one."""
    row = _required_object(text)
    tokens = _count(row, "input_length")
    blocks = _blocks(row.get("hash_ids"), "hash_ids")
    expected = math.ceil(tokens / MOONCAKE_BLOCK_TOKENS)
    if len(blocks) != expected:
        raise ValueError(
            f"hash_ids has {len(blocks)} ids; {tokens} tokens in blocks of {MOONCAKE_BLOCK_TOKENS} need {expected}"
        )
    return RawRequest(_milliseconds(row, "timestamp"), tokens, _count(row, "output_length"), blocks)


def read_penstock_line(text: str, block_tokens: int) -> RawRequest:
    """One row of our own JSONL. Raises ValueError with the reason when it is not one."""
    row = _required_object(text)
    tokens = _count(row, "input_tokens")
    blocks = _blocks(row.get("prefix_blocks", []), "prefix_blocks")
    if len(blocks) > math.ceil(tokens / block_tokens):
        raise ValueError(
            f"prefix_blocks has {len(blocks)} ids of {block_tokens} tokens, more than the {tokens} input_tokens hold"
        )
    return RawRequest(
        _milliseconds(row, "timestamp_ms"),
        tokens,
        _count(row, "output_tokens"),
        blocks,
        _name(row, "tenant"),
        _priority(row),
        _name(row, "model"),
    )


def read_penstock_header(text: str) -> int | None:
    """Tokens per block that a header line sets, or None when the line is no header.

    Raises ValueError when it is a header of a version or with a block size that we cannot read.
    """
    row = _json_object(text)
    if row is None or "penstock_trace" not in row:
        return None
    if row["penstock_trace"] != 1:
        raise ValueError(f"penstock_trace is {row['penstock_trace']!r}; this version reads 1")
    return _count(row, "block_tokens")


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _required_object(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    return row


def _count(row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{key} is {'missing' if key not in row else repr(value)}; a whole number is expected")
    return _checked(value, key)


def _digits(cell: str, key: str) -> int:
    text = cell.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise ValueError(f"{key} is {text!r}; a whole number is expected")
    return _checked(int(text), key)


def _checked(value: int, key: str) -> int:
    if not 1 <= value <= MAX_TOKENS:
        raise ValueError(f"{key} is {value}; 1 to {MAX_TOKENS} is possible")
    return value


def _milliseconds(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(
            f"{key} is {'missing' if key not in row else repr(value)}; milliseconds from the start are expected"
        )
    return value / 1000.0


def _seconds(cell: str, key: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise ValueError(f"{key} is {cell!r}; seconds are expected") from None
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{key} is {cell!r}; seconds from 0 up are expected")
    return value


def _name(row: dict[str, Any], key: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise ValueError(f"{key} must be text of at most {MAX_NAME} characters")
    return value


def _priority(row: dict[str, Any]) -> int:
    value = row.get("priority", 0)
    if type(value) is not int or abs(value) >= MAX_PRIORITY:
        raise ValueError(f"priority is {value!r}; a whole number is expected, a lower one goes first")
    return value


def _blocks(value: object, key: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise ValueError(f"{key} must be a list of whole numbers from 0 up")
    return tuple(value)


def _utc_seconds(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"TIMESTAMP is {text!r}; a time such as 2023-11-16 18:15:46.68 is expected") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
