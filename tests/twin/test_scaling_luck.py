"""The same load, scraped at other moments: every run wants the same workers, to within one worker and one cycle.

When a worker is scraped is chance, in a cluster as in the twin. The load is that of `e2e/test_twin_agrees.py`: 1x, 3x
and 1x again, cold at the start, where a few requests more or less in one scrape decide most.
"""

from __future__ import annotations

from itertools import combinations, pairwise

from penstock.autoscaler.decisions.cycle import CycleTimes
from penstock.core.fleet import Role
from penstock.core.models import ModelArchitecture, Parallelism
from penstock.core.traces import Trace
from penstock.simulator import Autoscaling, Bounds, PoolSpec, Scenario, StartUp, Twin, parse_nodes
from twin_loads import load_in_steps

STEPS = ((75.0, 1.1), (100.0, 3.3), (105.0, 1.1))
"""Seconds, and requests per second."""
END_S = sum(seconds for seconds, _ in STEPS)
CYCLE_S, STARTUP_S, LEAD_S = 5.0, 30.0, 31.0
RUNS = 8

Course = list[tuple[float, int]]
"""From when on how many workers are wanted."""


def course(model: ModelArchitecture, trace: Trace, seed: int) -> Course:
    """What is wanted with scrapes at the moments of this seed; everything is answered."""
    scenario = Scenario(
        model,
        parse_nodes("a100-80g=2x8"),
        pools=(PoolSpec("serve", Role.PREFILL_DECODE, "a100-80g", Parallelism(), 1),),
        max_context=8192,
        ttft_s=2.0,
        tpot_s=0.1,
        cold=True,
        start_up=StartUp(2.0, 0.0, 0.0, STARTUP_S, 0.0),
        autoscaling=Autoscaling(
            (Bounds("serve", 1, 8),),
            cycle_interval_s=CYCLE_S,
            times=CycleTimes(time_scale=0.2),
            max_accelerators=8,
            until_s=LEAD_S + END_S,
        ),
        seed=seed,
    )
    result = Twin(scenario, trace).run()
    assert all(outcome is not None for outcome in result.outcomes)
    assert result.scaling is not None
    return [(0.0, 1), *((change.at_s, change.after) for change in result.scaling.changes)]


def wanted(of: Course, since: float, until: float) -> set[int]:
    """Everything that is wanted at some time from one second to another."""
    ends = [at for at, _ in of[1:]] + [float("inf")]
    return {count for (at, count), end in zip(of, ends, strict=True) if at <= until and end > since}


def agree(one: Course, other: Course) -> bool:
    seconds = range(int(LEAD_S + END_S))
    return all(
        any(abs(count - near) <= 1 for near in wanted(that, at - CYCLE_S, at + CYCLE_S))
        for this, that in ((one, other), (other, one))
        for at in seconds
        for count in wanted(this, at, at)
    )


def test_when_workers_are_scraped_decides_no_more_than_one_worker_and_one_cycle(model: ModelArchitecture) -> None:
    trace = load_in_steps(STEPS, 11, LEAD_S, (4000, 8000), 20)
    courses = [course(model, trace, seed) for seed in range(RUNS)]
    apart = [(one, other) for one, other in combinations(courses, 2) if not agree(one, other)]
    assert apart == []
    # The bound can fail: workers that stood still agree with none of them, and the runs are not the same one.
    assert not any(agree(each, [(0.0, still)]) for each in courses for still in range(1, 9))
    assert any(one != other for one, other in pairwise(courses))
