"""Policies that only the twin has: those of papers, to compare with; routers do not know their names."""

from penstock.simulator.policies.registry import TWIN_POLICIES, find_twin_policy

__all__ = ["TWIN_POLICIES", "find_twin_policy"]
