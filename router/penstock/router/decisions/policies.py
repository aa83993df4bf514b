"""Policies by name: which worker, or which pair, serves a request."""

from collections.abc import Mapping
from types import MappingProxyType

from penstock.router.decisions.kv_aware import KVAware
from penstock.router.decisions.policies_common import Policy
from penstock.router.decisions.policies_plain import LeastLoaded, PowerOfTwo, Random, RoundRobin
from penstock.router.decisions.prefix_affinity import PrefixAffinity

__all__ = ["DEFAULT_POLICY", "POLICIES", "Policy", "UnknownPolicy", "find_policy", "reads_prompts"]

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {p.name: p for p in (RoundRobin(), LeastLoaded(), PowerOfTwo(), Random(), PrefixAffinity(), KVAware())}
)
"""Every policy by its name."""

DEFAULT_POLICY = KVAware.name

_READERS = frozenset({PrefixAffinity.name, KVAware.name})


def reads_prompts(policy: Policy) -> bool:
    """Whether a policy looks at a prompt's blocks: then it is worth making them."""
    return policy.name in _READERS


class UnknownPolicy(ValueError):
    """A policy name nobody knows."""


def find_policy(name: str) -> Policy:
    """The policy of that name; `UnknownPolicy` says which there are."""
    policy = POLICIES.get(name)
    if policy is None:
        raise UnknownPolicy(f"unknown routing policy {name!r}; known policies are {', '.join(POLICIES)}")
    return policy
