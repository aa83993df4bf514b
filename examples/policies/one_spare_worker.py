"""A planner to learn from: what the load needs by Little's law, and one worker more for what nobody foresees.

The lab plays it in every scenario that has an autoscaler; the autoscaler takes the same file:

    penstock lab eval examples/policies/one_spare_worker.py
    python -m penstock.autoscaler --policy-file examples/policies/one_spare_worker.py --planner OneSpareWorker

A planner says how many workers there should be. It is asked only where load and profiles are known: without data
everything holds. Whatever it says, the guard keeps to bounds and budgets, and takes workers away slowly.
"""

import math

from penstock.autoscaler.decisions.plan import DeploymentPlan, PlanRules, Target, Why
from penstock.autoscaler.decisions.snapshot import DeploymentView


class OneSpareWorker:
    """Enough workers for the measured requests under way, at half of each one's KV cache, and one spare."""

    # What users write as --planner, and scenarios as autoscaler.planner.
    name = "OneSpareWorker"

    def plan(self, view: DeploymentView, rules: PlanRules) -> DeploymentPlan | None:
        """A target for every pool of the deployment; None would leave it to target tracking."""
        # view.mix is what an average request looks like: tokens in, tokens out. It is known whenever we are asked.
        mix = view.mix
        if mix is None:
            return None

        targets = {}
        for pool in view.pools:
            # view.loads has one forecast for each role; load.rate is its upper quantile, in requests a second.
            load, worker = view.loads.get(pool.role), pool.worker
            if load is None or worker is None:
                return None

            # How long a request stays, and how many fit into one worker's memory: with those two, Little's law
            # (under way = rate x stay) says how many workers are needed.
            stay_s = view.objectives.ttft_s + mix.output * view.objectives.tpot_s
            memory = worker.kv_capacity_tokens
            fits = worker.max_sequences if memory is None else max(1.0, 0.5 * memory / (mix.prompt + mix.output))
            needed = math.ceil(load.rate * stay_s / fits)

            # Bounds are the guard's affair, but a plan that keeps to them reads better in `kubectl describe`.
            targets[pool.name] = Target(min(pool.most, max(pool.least, needed + 1)))

        # `why` and what the load needs are measured anew around us; the sentence is what people will read.
        return DeploymentPlan(view.key, targets, Why.LOAD, "workers for the load by Little's law, and one spare")
