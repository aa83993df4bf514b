"""A spec that makes no sense to us, as an exception: it ends resolution and becomes `Accepted=False`."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.api import Reason


class Refusal(Exception):
    """Why the deployment is not accepted: a reason for programs and a sentence with the remedy for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def names(known: Iterable[str]) -> str:
    """The names that do exist, for a sentence; says so when there are none."""
    listed = sorted(str(name) for name in known)
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "") if listed else "none"
