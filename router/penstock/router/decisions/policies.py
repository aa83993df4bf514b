"""Policies by name: which worker, or which pair, serves a request.

Those that ship are always there. A process may register more before it picks (from policy files); nothing else changes.
"""

from collections.abc import Mapping
from types import MappingProxyType

from penstock.router.decisions.kv_aware import KVAware
from penstock.router.decisions.policies_common import Policy
from penstock.router.decisions.policies_plain import LeastLoaded, PowerOfTwo, Random, RoundRobin
from penstock.router.decisions.prefix_affinity import PrefixAffinity

__all__ = [
    "BUILT_IN", "DEFAULT_POLICY", "POLICIES", "NameTaken", "Policy", "UnknownPolicy", "find_policy", "reads_prompts",
    "register", "withdraw",
]  # fmt: skip

_known: dict[str, Policy] = {
    p.name: p for p in (RoundRobin(), LeastLoaded(), PowerOfTwo(), Random(), PrefixAffinity(), KVAware())
}
POLICIES: Mapping[str, Policy] = MappingProxyType(_known)
"""Every policy by its name, those registered since the start among them."""
BUILT_IN = tuple(_known)
"""Names of the policies that ship."""

DEFAULT_POLICY = KVAware.name

_readers = {PrefixAffinity.name, KVAware.name}


def reads_prompts(policy: Policy) -> bool:
    """Whether a policy looks at a prompt's blocks: then it is worth making them."""
    return policy.name in _readers


class UnknownPolicy(ValueError):
    """A policy name nobody knows."""


class NameTaken(ValueError):
    """A policy has the name of another one."""


def register(policy: Policy, *, reads: bool) -> None:
    """Let a policy be found by its name; `reads` says whether it looks at prompts. Raises `NameTaken`."""
    if policy.name in _known:
        raise NameTaken(f"there is a policy {policy.name!r} already; give yours another name")
    _known[policy.name] = policy
    if reads:
        _readers.add(policy.name)


def withdraw(name: str) -> None:
    """Forget a policy that was registered; those that ship stay."""
    if name not in BUILT_IN:
        _known.pop(name, None)
        _readers.discard(name)


def find_policy(name: str) -> Policy:
    """The policy of that name; `UnknownPolicy` says which there are."""
    policy = POLICIES.get(name)
    if policy is None:
        raise UnknownPolicy(f"unknown routing policy {name!r}; known policies are {', '.join(POLICIES)}")
    return policy
