"""Planners by name: who says how many workers are needed once load and profiles are known.

A planner is asked only then: a deployment that is switched off, unmeasured or without profiles holds what it has
whatever the planner, and the guard re-checks every plan. What a planner from a file gets wrong is told to somebody, and
target tracking answers instead. Registered once at the start of a process.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from penstock.autoscaler.decisions.snapshot import DeploymentView
from penstock.core.policy_files import bring, where

if TYPE_CHECKING:
    from penstock.autoscaler.decisions.plan import DeploymentPlan, PlanRules

__all__ = [
    "DEFAULT_PLANNER", "PLANNERS", "Planner", "UnknownPlanner", "find_planner", "register_planner", "withdraw_planner",
    "written_planners",
]  # fmt: skip

DEFAULT_PLANNER = "TargetTracking"
"""The planner that ships."""

Tell = Callable[[str, str], None]
"""(planner, what it did wrong)."""


class Planner(Protocol):
    """What every planner is."""

    @property
    def name(self) -> str:
        """The name by which it is chosen."""
        ...

    def plan(self, view: DeploymentView, rules: PlanRules) -> DeploymentPlan | None:
        """Workers for every pool of this deployment; None leaves it to target tracking. Pure."""
        ...


class UnknownPlanner(ValueError):
    """A planner's name nobody knows, or one that is taken."""


_known: dict[str, Planner] = {}
PLANNERS: Mapping[str, Planner] = MappingProxyType(_known)
"""Planners that were registered, by name."""


def find_planner(name: str) -> Planner | None:
    """The planner of that name; None is the one that ships. Raises `UnknownPlanner`."""
    if name == DEFAULT_PLANNER:
        return None
    if name not in _known:
        there = ", ".join((DEFAULT_PLANNER, *_known))
        raise UnknownPlanner(f"unknown planner {name!r}; known planners are {there}")
    return _known[name]


def register_planner(planner: Planner) -> None:
    """Let a planner be found by its name. Raises `UnknownPlanner` where the name is taken."""
    if planner.name in (DEFAULT_PLANNER, *_known):
        raise UnknownPlanner(f"there is a planner {planner.name!r} already; give yours another name")
    _known[planner.name] = planner


def withdraw_planner(name: str) -> None:
    """Forget a planner that was registered."""
    _known.pop(name, None)


def written_planners(module: ModuleType, tell: Tell) -> tuple[Written, ...]:
    """The planners of a policy file that was run. Raises `PolicyFileError` where there is something else."""
    return tuple(Written(planner, str(module.__file__), tell) for planner in bring(module, "PLANNERS", ("plan",)))


class Written:
    """A planner from a file, whose every answer is checked."""

    def __init__(self, planner: Planner, file: str, tell: Tell) -> None:
        """`tell` is called once for every answer that could not be used."""
        self._planner, self._file, self._tell = planner, file, tell
        self.name = planner.name

    def plan(self, view: DeploymentView, rules: PlanRules) -> DeploymentPlan | None:
        """The planner's answer; None where there is none to be used."""
        try:
            return _checked(self._planner.plan(view, rules), view)
        except _Unusable as unusable:
            self._tell(self.name, str(unusable))
        except Exception as error:
            self._tell(self.name, f"{type(error).__name__}: {error} ({where(error, self._file)})")
        return None


class _Unusable(Exception):
    """A plan that cannot be carried out."""


def _checked(answer: Any, view: DeploymentView) -> DeploymentPlan | None:
    # Imported here because plans ask for planners.
    from penstock.autoscaler.decisions.plan import DeploymentPlan

    if answer is None:
        return None
    if not isinstance(answer, DeploymentPlan):
        raise _Unusable(f"returned {type(answer).__name__}, not a DeploymentPlan or None")
    pools = {pool.name for pool in view.pools}
    if answer.key != view.key or set(answer.targets) != pools:
        raise _Unusable(f"gave targets for {sorted(answer.targets)}; give one for each of {sorted(pools)}")
    return replace(
        answer, targets={name: replace(it, replicas=_count(name, it.replicas)) for name, it in answer.targets.items()}
    )


def _count(pool: str, replicas: Any) -> int:
    try:
        count = operator.index(replicas)
    except TypeError:
        raise _Unusable(f"gave {replicas!r} replicas for {pool}; give a whole number") from None
    if count < 0:
        raise _Unusable(f"gave {count} replicas for {pool}; give 0 or more")
    return count
