"""The plan as Prometheus metrics: desired replicas for an HPA or KEDA, forecast load, and decisions by reason."""

from collections.abc import Iterator

from penstock.autoscaler.decisions.guard import Refused
from penstock.autoscaler.shell.scaling import Scaling
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_PREFIX = "penstock_autoscaler"
_POOL = ("namespace", "deployment", "pool", "role", "accelerator", "worker_pool")
_REASONS = ("ScaledOut", "ScaledIn", *(str(reason) for reason in Refused))
_ROLE = ("namespace", "deployment", "role")


class ScalingCollector(Collector):
    """Reads the last cycle's outcome whenever Prometheus asks."""

    def __init__(self, scaling: Scaling) -> None:
        self._scaling = scaling

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from self._pools()
        yield from self._loads()
        decisions = CounterMetricFamily(
            f"{_PREFIX}_decisions", "Changes made, and changes refused by the guard, by reason.", labels=["reason"]
        )
        # Shown as 0 before it first happens: Prometheus sees no increase in a series that begins at 1.
        for reason, number in sorted((dict.fromkeys(_REASONS, 0) | self._scaling.decisions).items()):
            decisions.add_metric([reason], number)
        yield decisions
        failures = CounterMetricFamily(f"{_PREFIX}_failures", "Writes and cycles that failed.")
        failures.add_metric([], self._scaling.failures)
        yield failures

    def _pools(self) -> Iterator[Metric]:
        desired = GaugeMetricFamily(
            f"{_PREFIX}_desired_replicas",
            "Workers the forecast load needs, for an HPA or KEDA.",
            labels=_POOL,
        )
        allowed = GaugeMetricFamily(
            f"{_PREFIX}_allowed_replicas", "Workers the guard allows now, on the way there.", labels=_POOL
        )
        degraded = GaugeMetricFamily(
            f"{_PREFIX}_degraded", "1 while scaling is held for a reason to look at.", labels=[*_ROLE[:2], "reason"]
        )
        for each in self._scaling.decided:
            for pool in each.view.pools:
                labels = [*each.view.key, pool.pool, pool.role, pool.accelerator, pool.name]
                desired.add_metric(labels, each.plan.moves.get(pool.name, pool.replicas))
                allowed.add_metric(labels, each.guarded.moves.get(pool.name, pool.replicas))
            if (why := each.guarded.degraded) is not None:
                degraded.add_metric([*each.view.key, str(why.refused)], 1)
        yield from (desired, allowed, degraded)

    def _loads(self) -> Iterator[Metric]:
        level = GaugeMetricFamily(
            f"{_PREFIX}_demand_requests_per_second", "Requests that arrive, by conservation.", labels=_ROLE
        )
        upper = GaugeMetricFamily(
            f"{_PREFIX}_forecast_requests_per_second", "Upper quantile of the forecast load.", labels=_ROLE
        )
        for each in self._scaling.decided:
            for role, load in sorted(each.view.loads.items()):
                level.add_metric([*each.view.key, role], load.level)
                upper.add_metric([*each.view.key, role], load.rate)
        yield from (level, upper)
