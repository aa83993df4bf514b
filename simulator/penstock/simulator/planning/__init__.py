"""Plan search: which pools on which nodes serve a workload best, tried in the twin.

Enter with a `Space` (model, nodes, sample of requests, objectives) and a `Goal`, leave with the `Found` ranking of
`find_plans`. Pure, like the twin: samples have seeds, and the processes that tries run in are the caller's.
"""

from penstock.simulator.planning.candidates import Cell, Plan, PlanPool, cells_of
from penstock.simulator.planning.explain import percent, what_fits, why_nothing, why_second
from penstock.simulator.planning.goal import Goal, Objectives, Rank, Sample, Space, draw_sample
from penstock.simulator.planning.search import Counts, Found, Standing, find_plans, rank_plans
from penstock.simulator.planning.trial import Trial, judge_plan, try_plan

__all__ = [
    "Cell", "Counts", "Found", "Goal", "Objectives", "Plan", "PlanPool", "Rank", "Sample", "Space", "Standing", "Trial",
    "cells_of", "draw_sample", "find_plans", "judge_plan", "percent", "rank_plans", "try_plan", "what_fits",
    "why_nothing", "why_second",
]  # fmt: skip
