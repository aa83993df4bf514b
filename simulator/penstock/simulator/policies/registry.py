"""Every policy of a simulated cluster by its name: the router's, and the twin's own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from penstock.router.decisions.policies import POLICIES, Policy, UnknownPolicy
from penstock.simulator.policies.llumnix import AdaptiveRoles
from penstock.simulator.policies.mooncake import GlobalHit, LocalHitOnly
from penstock.simulator.policies.splitwise import JoinShortestQueue, Splitwise

__all__ = ["TWIN_POLICIES", "find_twin_policy"]

TWIN_POLICIES: Mapping[str, Policy] = MappingProxyType(
    {policy.name: policy for policy in (JoinShortestQueue(), Splitwise(), LocalHitOnly(), GlobalHit(), AdaptiveRoles())}
)
"""Those that only the twin has."""


def find_twin_policy(name: str) -> Policy:
    """The policy of that name; `UnknownPolicy` says which there are."""
    found = POLICIES.get(name) or TWIN_POLICIES.get(name)
    if found is None:
        known = ", ".join((*POLICIES, *TWIN_POLICIES))
        raise UnknownPolicy(f"unknown routing policy {name!r}; known policies are {known}")
    return found
