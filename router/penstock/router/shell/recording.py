"""Recording picks, where somebody asked for it: a policy around the policy, put there at the start.

A router that does not record has no such policy, and so pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from penstock.core.fleet import FleetView, Pick, Rejection, Request
from penstock.core.records import Ring, write_record
from penstock.router.decisions import Policy, find_policy
from penstock.router.decisions.records import pick_on_record

__all__ = ["Recorded", "policies"]


class Recorded:
    """A policy whose every answer goes on record."""

    def __init__(self, policy: Policy, write: Callable[[bytes], None]) -> None:
        """`write` takes one line."""
        self._policy, self._write = policy, write

    @property
    def name(self) -> str:
        """The policy's own name."""
        return self._policy.name

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """The policy's own answer."""
        answer, record = pick_on_record(self._policy, request, view, now, seed)
        self._write(write_record(record))
        return answer


def policies(folder: str) -> Callable[[str], Policy]:
    """Where policies come from by name: recording into this folder, unless it is empty. Raises OSError."""
    if not folder:
        return find_policy
    ring = Ring(folder, "picks")
    return lambda name: Recorded(find_policy(name), ring.append)
