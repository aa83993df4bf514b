"""Policies from files: what a file must bring, and how its policies are kept from doing harm by mistake.

A written policy is asked like any other. Where it raises, or names a worker that may not be picked, the request goes to
the least loaded worker instead, and somebody is told: a mistake in a policy costs its advantage, never a request. Its
mistakes are caught, not its malice: it is code, and runs with the rights of its process.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from msgspec.structs import replace
from penstock.core.fleet import ANSWERING, FleetView, Pick, Rejection, Request, Slots
from penstock.core.policy_files import PolicyFileError, bring, where
from penstock.router.decisions.policies_common import Policy
from penstock.router.decisions.policies_plain import LeastLoaded

__all__ = ["INSTEAD", "Written", "written_policies"]

INSTEAD = LeastLoaded()
"""Who is asked where a written policy fails."""

Tell = Callable[[str, str], None]
"""(policy, what it did wrong)."""


def written_policies(module: ModuleType, tell: Tell) -> tuple[Written, ...]:
    """The routing policies of a policy file that was run. Raises `PolicyFileError` where there is something else."""
    found = bring(module, "POLICIES", ("pick",))
    if not found and callable(getattr(module, "pick", None)):
        raise PolicyFileError(f"{module.__file__}: pick stands alone; put it into a class that has a name")
    return tuple(Written(policy, str(module.__file__), tell) for policy in found)


class Written:
    """A policy from a file, whose every answer is checked."""

    def __init__(self, policy: Policy, file: str, tell: Tell) -> None:
        """`tell` is called once for every answer that could not be used."""
        self._policy, self._file, self._tell = policy, file, tell
        self.name = policy.name
        self.reads_prompts = bool(getattr(policy, "reads_prompts", True))
        """Whether it looks at a prompt's blocks. One that does not may say so and spares the router making them."""

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        """The policy's answer, or that of `INSTEAD`."""
        try:
            return self._checked(self._policy.pick(request, view, now, seed), request, view)
        except Exception as error:
            self._tell(self.name, self._sentence(error))
        return INSTEAD.pick(request, view, now, seed)

    def _checked(self, answer: Any, request: Request, view: FleetView) -> Pick | Rejection:
        if isinstance(answer, Rejection):
            return answer
        if not isinstance(answer, Pick):
            raise _Unusable(f"returned {type(answer).__name__}, not a Pick or a Rejection")
        decode = _slot("decode", answer.decode, view.with_room(request.model, ANSWERING))
        prefill = answer.prefill
        if prefill is not None:
            prefill = _slot("prefill", prefill, view.with_room(request.model))
            if view.domain[prefill] != view.domain[decode]:
                raise _Unusable(f"paired slots {prefill} and {decode}, which lie in different transfer domains")
        candidates, scores = np.asarray(answer.candidates), np.asarray(answer.scores)
        if candidates.ndim != 1 or candidates.shape != scores.shape or not (candidates == decode).any():
            raise _Unusable("gave candidates and scores that are not one for each, with the picked worker among them")
        return replace(answer, decode=decode, prefill=prefill, policy=self.name, candidates=candidates, scores=scores)

    def _sentence(self, error: Exception) -> str:
        if isinstance(error, _Unusable):
            return str(error)
        return f"{type(error).__name__}: {error} ({where(error, self._file)})"


class _Unusable(Exception):
    """An answer that cannot be carried out."""


def _slot(what: str, slot: Any, allowed: Slots) -> int:
    """A slot as a plain number, if it may be picked."""
    try:
        number = operator.index(slot)
    except TypeError:
        raise _Unusable(f"gave {what}={slot!r}, which is no slot number") from None
    if not (allowed == number).any():
        raise _Unusable(f"gave {what}={number}, which is no slot that may be picked now")
    return number
