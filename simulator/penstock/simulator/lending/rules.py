"""What lending costs, and for which scenarios it is modelled."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from penstock.core.engine import SchedulingPolicy
from penstock.core.fleet import Role
from penstock.simulator.scenario import Impossible, Scenario

__all__ = ["LendingRules", "check_scenario"]


@dataclass(frozen=True, slots=True)
class LendingRules:
    """Times in milliseconds where not said otherwise."""

    period_s: float = 0.5
    """How often the manager plans."""
    trip_ms: float = 4.0
    """What messages there and back add to a pass that attends to KV elsewhere, all layers together."""
    query_ms: float = 0.105
    """What each query on its way adds to that."""
    move_ms: float = 0.0131
    """What a token's KV takes to another worker; the pass that it is moved in waits for it."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"lending: {one.name} is {value}; give at least 0")
        if self.period_s == 0:
            raise ValueError("lending: period_s is 0, so that time would never pass; give more than 0")


def check_scenario(scenario: Scenario) -> None:
    """Raises `Impossible` for what lending and moving are not modelled with."""
    left_out = {
        "prefix caching": scenario.prefix_caching,
        "faults": bool(scenario.crashes or scenario.faults),
        "an autoscaler": scenario.autoscaling is not None,
        "prefill and decode apart": any(pool.role is not Role.PREFILL_DECODE for pool in scenario.pools),
        "preemption by swapping": scenario.host is not None,
        "priorities": scenario.scheduling_policy is not SchedulingPolicy.FCFS,
        "a router that looks at engines' own load": scenario.scrape_interval_s > 0,
    }
    for what, there in left_out.items():
        if there:
            raise Impossible(f"workers that share KV memory are not modelled with {what}; leave it out")
