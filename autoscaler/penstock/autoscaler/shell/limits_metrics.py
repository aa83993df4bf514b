"""What a plan is held against, as Prometheus metrics: objectives, bounds, budgets, and what is held of them now.

A dashboard that shows latency without what was promised, or replicas without their bounds, asks its reader to know both
by heart. A limit that nobody set, and money where a class has no price, have no series.
"""

from collections.abc import Callable, Iterator

from penstock.autoscaler.decisions.snapshot import DeploymentView, PoolView
from penstock.autoscaler.shell.scaling import Scaling
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_PREFIX = "penstock_autoscaler"
_DEPLOYMENT = ("namespace", "deployment", "model")
_POOL = ("namespace", "deployment", "pool", "role", "accelerator", "worker_pool")
_REASON = ("namespace", "deployment", "reason")

_OF_DEPLOYMENT: dict[str, tuple[str, Callable[[DeploymentView], float | None]]] = {
    "objective_ttft_seconds": ("Time to first token that is owed.", lambda v: v.objectives.ttft_s),
    "objective_tpot_seconds": ("Time per output token that is owed.", lambda v: v.objectives.tpot_s),
    "objective_attainment_ratio": ("Share of requests that is owed both.", lambda v: v.objectives.attainment),
    "budget_accelerators": ("Most accelerators the deployment may hold.", lambda v: v.max_accelerators),
    "budget_cost_per_hour": ("Most money per hour the deployment may cost.", lambda v: v.max_cost),
}
_OF_POOL: dict[str, tuple[str, Callable[[PoolView], float | None]]] = {
    "min_replicas": ("Fewest workers of the WorkerPool.", lambda p: p.least),
    "max_replicas": ("Most workers of the WorkerPool.", lambda p: p.most),
    "held_accelerators": (
        "Accelerators that pods hold or wait for, those of pods on their way out included.",
        lambda p: _pods(p) * p.accelerators,
    ),
    "held_cost_per_hour": (
        "Money per hour of these pods.",
        lambda p: None if p.cost_per_hour is None else _pods(p) * p.cost_per_hour,
    ),
}


class LimitsCollector(Collector):
    """Reads the last cycle's outcome whenever Prometheus asks."""

    def __init__(self, scaling: Scaling) -> None:
        self._scaling = scaling

    def collect(self) -> Iterator[Metric]:
        """All families."""
        views = [each.view for each in self._scaling.decided]
        for name, (text, of) in _OF_DEPLOYMENT.items():
            family = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=_DEPLOYMENT)
            for view in views:
                _add(family, (*view.key, view.model), of(view))
            yield family
        for name, (text, of_pool) in _OF_POOL.items():
            family = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=_POOL)
            for view in views:
                for pool in view.pools:
                    _add(family, (*view.key, pool.pool, pool.role, pool.accelerator, pool.name), of_pool(pool))
            yield family
        yield from self._reasons()

    def _reasons(self) -> Iterator[Metric]:
        why = GaugeMetricFamily(f"{_PREFIX}_plan", "1 for why the plan is what it is.", labels=_REASON)
        held = GaugeMetricFamily(f"{_PREFIX}_held_back", "1 while the guard holds the plan back.", labels=_REASON)
        for each in self._scaling.decided:
            why.add_metric([*each.view.key, str(each.plan.why)], 1)
            for reason in sorted({str(refusal.refused) for refusal in each.guarded.refusals}):
                held.add_metric([*each.view.key, reason], 1)
        yield from (why, held)


def _pods(pool: PoolView) -> int:
    return pool.pods.live + pool.pods.terminating


def _add(family: GaugeMetricFamily, labels: tuple[str, ...], value: float | None) -> None:
    if value is not None:
        family.add_metric(labels, value)
