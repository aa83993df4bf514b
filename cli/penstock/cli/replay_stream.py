"""Watching a streamed completion: when its content began and how it ended, without parsing what lies between.

Chunks are not tokens, so nothing is counted here: the engine's own `usage` at the end says how many there were.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_TAIL_BYTES = 16 * 1024
"""Kept from the stream's end: the last words, the finish reason, the usage and `[DONE]` are well under this."""


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """What the last events of a stream said; None where they did not."""

    done: bool
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None


class StreamWatch:
    """Fed with the bytes of an event stream and the time they came at."""

    __slots__ = ("_head", "_tail", "first_content_at", "first_event_at")

    def __init__(self) -> None:
        self._head: bytes | None = b""
        """Bytes not yet searched for the first content; None once it was found."""
        self._tail = b""
        self.first_event_at: float | None = None
        self.first_content_at: float | None = None

    def feed(self, data: bytes, now: float) -> None:
        """Take the next bytes, which came at `now` (seconds on the caller's clock)."""
        if self._head is not None:
            self._look_for_content(data, now)
        self._tail = (self._tail + data)[-_TAIL_BYTES:]

    @property
    def done(self) -> bool:
        """Whether the stream's last event has come."""
        return b"[DONE]" in self._tail

    def end(self) -> StreamEnd:
        """What the stream's end says; call it when no more bytes will come."""
        facts: dict[str, Any] = {"done": False}
        for event in _events(self._tail, tolerant=True):
            if event is None:
                facts["done"] = True
            else:
                facts |= _facts(event)
        return StreamEnd(**facts)

    def _look_for_content(self, data: bytes, now: float) -> None:
        whole, newline, rest = ((self._head or b"") + data).rpartition(b"\n")
        for event in _events(whole + newline):
            self.first_event_at = self.first_event_at or now
            if event is not None and _has_content(event):
                self.first_content_at = now
                self._head = None
                return
        self._head = rest


def _events(text: bytes, *, tolerant: bool = False) -> Iterator[dict[str, Any] | None]:
    """The JSON objects of an event stream; None stands for `[DONE]`.

    With `tolerant` a first line that is cut is passed over. Raises ValueError on an event that is no JSON object.
    """
    for at, line in enumerate(text.split(b"\n")):
        if not line.startswith(b"data:"):
            continue
        payload = line[5:].strip()
        if payload == b"[DONE]":
            yield None
            continue
        try:
            event = json.loads(payload)
        except ValueError:
            if tolerant and (at == 0 or not text.endswith(b"\n")):
                continue
            raise
        if not isinstance(event, dict):
            raise ValueError(f"an event is no JSON object: {payload[:80]!r}")
        yield event


def _has_content(event: dict[str, Any]) -> bool:
    return any(
        choice.get("text") or (choice.get("delta") or {}).get("content") for choice in event.get("choices") or ()
    )


def _facts(event: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if event.get("error"):
        facts["error"] = error_message(event)
    for choice in event.get("choices") or ():
        if choice.get("finish_reason"):
            facts["finish_reason"] = choice["finish_reason"]
    usage = event.get("usage")
    if usage:
        facts["prompt_tokens"] = usage.get("prompt_tokens")
        facts["output_tokens"] = usage.get("completion_tokens")
        facts["cached_tokens"] = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return facts


def error_message(body: dict[str, Any]) -> str:
    """The message of an error in OpenAI's form, or the body itself, in at most 300 characters."""
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or body)[:300]
