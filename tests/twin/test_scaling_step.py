"""A load of 1x, 4x and 1x again with prefill and decode apart and 30 s of start-up: late for a minute, and no longer.

The same shape is played in a box by `e2e/test_scaling.py`; here it takes seconds, so that a change of forecast or plan
that leaves people waiting is seen at once.
"""

from __future__ import annotations

import pytest
from penstock.autoscaler.decisions.cycle import CycleTimes
from penstock.core.fleet import Role
from penstock.core.models import ModelArchitecture, Parallelism
from penstock.simulator import Autoscaling, Bounds, PoolSpec, Scenario, StartUp, Twin, parse_nodes
from twin_loads import load_in_steps

STEPS = ((180.0, 3.0), (180.0, 12.0), (240.0, 3.0))
"""Seconds, and requests per second."""
TTFT_S, TPOT_S, SETTLING_S = 2.0, 0.1, 60.0
BUDGET = 14


def settling(at: float) -> bool:
    starts = (0.0, STEPS[0][0], STEPS[0][0] + STEPS[1][0])
    return any(start <= at < start + SETTLING_S for start in starts)


@pytest.mark.parametrize(("seed", "lead_s"), [(0, 0.0), (2, 33.0)])
def test_a_step_is_late_for_a_minute_and_no_longer(model: ModelArchitecture, seed: int, lead_s: float) -> None:
    """With the second the decode workers saw so little of what overran the prefill workers that too few were wanted."""
    trace = load_in_steps(STEPS, 11, lead_s, (1500, 4500), 90)
    end = lead_s + sum(seconds for seconds, _ in STEPS)
    kind = ("a100-80g", Parallelism(), 1)
    scenario = Scenario(
        model,
        parse_nodes("a100-80g=2x8"),
        pools=(PoolSpec("prefill", Role.PREFILL, *kind), PoolSpec("decode", Role.DECODE, *kind)),
        max_num_seqs=6,
        max_context=8192,
        ttft_s=TTFT_S,
        tpot_s=TPOT_S,
        start_up=StartUp(0.5, 0.0, 0.0, 30.0, 2.0),
        autoscaling=Autoscaling(
            (Bounds("prefill", 1, 8), Bounds("decode", 1, 8)),
            cycle_interval_s=2.0,
            times=CycleTimes(time_scale=0.2, scrape_interval_s=2.0),
            max_accelerators=BUDGET,
            until_s=end,
        ),
        seed=seed,
    )
    result = Twin(scenario, trace).run()
    outcomes = [outcome for outcome in result.outcomes if outcome is not None]
    assert len(outcomes) == len(trace.requests)
    settled = [o for o in outcomes if not settling(o.sent_s - lead_s)]
    met = sum(o.meets(TTFT_S, TPOT_S) for o in settled)
    assert met >= 0.95 * len(settled), f"{met} of {len(settled)}"
    hours = result.resources.total.gpu_hours
    assert hours <= 0.7 * BUDGET * result.end_s / 3600.0
