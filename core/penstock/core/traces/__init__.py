"""Traces: what was asked, when, and which prompts began alike; the same for the replay and for the twin.

A trace says for each request when it arrived, how many tokens went in and came out, and (where the source
knows) which runs of prompt tokens it shared with others. Everything here is pure: lines in, requests out;
opening files and sending requests belong to the rooms that do I/O. Nothing here may know a server, a clock
or a model.
"""

from penstock.core.traces.formats import BadLine, BadLineError, TraceFormat, UnknownTraceError, detect_format
from penstock.core.traces.parse import ParsedTrace, parse_trace
from penstock.core.traces.prompts import PromptMaker, as_json, as_words
from penstock.core.traces.requests import DEFAULT_BLOCK_TOKENS, Trace, TraceRequest
from penstock.core.traces.shape import (
    drop_over_context,
    limit_duration,
    needs_spreading,
    scale_rate,
    spread_slots,
)

__all__ = [
    "DEFAULT_BLOCK_TOKENS",
    "BadLine",
    "BadLineError",
    "ParsedTrace",
    "PromptMaker",
    "Trace",
    "TraceFormat",
    "TraceRequest",
    "UnknownTraceError",
    "as_json",
    "as_words",
    "detect_format",
    "drop_over_context",
    "limit_duration",
    "needs_spreading",
    "parse_trace",
    "scale_rate",
    "spread_slots",
]
