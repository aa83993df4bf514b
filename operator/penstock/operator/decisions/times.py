"""Times as Kubernetes writes them, and as numbers."""

from __future__ import annotations

from datetime import UTC, datetime


def epoch(text: str) -> float:
    """Epoch seconds of an RFC 3339 time."""
    return datetime.fromisoformat(text).timestamp()


def rfc3339(seconds: float) -> str:
    """Epoch seconds as Kubernetes writes times, to the second."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
