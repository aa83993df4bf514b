"""The signals as Prometheus metrics: each value together with its age and its coverage.

A value that is not known has no series, because a gap is what Prometheus shows for missing data; its coverage is
exported as 0, so that an alert can tell a gap from a pool that is gone.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields

from penstock.autoscaler.decisions import LoadSignals
from penstock.autoscaler.shell.objects import PoolKey
from penstock.autoscaler.shell.scraper import Result
from penstock.core.fleet import Signal
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_PREFIX = "penstock_autoscaler"
_POOL_LABELS = ("namespace", "deployment", "pool", "role", "accelerator", "model")
_DEPLOYMENT_LABELS = ("namespace", "deployment", "model")
_HELP = {
    "running_requests": "Requests in the running batches.",
    "waiting_requests": "Requests waiting for a place in a batch.",
    "kv_usage_ratio": "Share of KV blocks in use, 0 to 1, mean of the workers.",
    "finished_requests_per_second": "Requests ended per second.",
    "prompt_tokens_per_second": "Prompt tokens processed per second.",
    "generation_tokens_per_second": "Tokens generated per second.",
    "ttft_mean_seconds": "Mean time to first token over the signal window.",
    "tpot_mean_seconds": "Mean time per output token over the signal window.",
    "prefix_hit_ratio": "Share of looked-up prompt tokens found in the prefix cache over the signal window.",
}
SIGNALS = tuple(field.name for field in fields(LoadSignals))


@dataclass(frozen=True, slots=True)
class WorkerCounts:
    """Workers of a pool by what can be said of them."""

    ready: int
    starting: int
    unready: int
    """Started once, and not ready now."""
    terminating: int


@dataclass(frozen=True, slots=True)
class PoolState:
    """Everything exported about one pool."""

    key: PoolKey
    signals: LoadSignals
    workers: WorkerCounts
    desired: int | None


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """Everything exported about one deployment: its pools taken together."""

    namespace: str
    deployment: str
    model: str
    signals: LoadSignals


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after one evaluation, at `at` seconds on the loop's clock."""

    at: float
    pools: tuple[PoolState, ...] = ()
    deployments: tuple[DeploymentState, ...] = ()


class SignalCollector(Collector):
    """Writes the latest snapshot whenever Prometheus asks; ages count on until then."""

    def __init__(self) -> None:
        self.snapshot = Snapshot(at=0.0)
        self.now = 0.0
        self.scrapes: Mapping[Result, int] = {}

    def collect(self) -> Iterator[Metric]:
        """All families."""
        waited = max(0.0, self.now - self.snapshot.at)
        pools = [(_pool_labels(p.key), p.signals) for p in self.snapshot.pools]
        deployments = [((d.namespace, d.deployment, d.model), d.signals) for d in self.snapshot.deployments]
        yield from _signal_families("pool", _POOL_LABELS, pools, waited)
        yield from _signal_families("deployment", _DEPLOYMENT_LABELS, deployments, waited)
        yield from self._workers()
        scrapes = CounterMetricFamily(f"{_PREFIX}_scrapes", "Scrapes of workers by how they ended.", labels=["reason"])
        for result, number in sorted(self.scrapes.items()):
            scrapes.add_metric([str(result)], number)
        yield scrapes

    def _workers(self) -> Iterator[Metric]:
        workers = GaugeMetricFamily(
            f"{_PREFIX}_pool_workers", "Workers of a pool by state.", labels=[*_POOL_LABELS, "state"]
        )
        desired = GaugeMetricFamily(
            f"{_PREFIX}_pool_desired_workers", "Workers the pool is scaled to.", labels=_POOL_LABELS
        )
        for pool in self.snapshot.pools:
            labels = _pool_labels(pool.key)
            for field in fields(WorkerCounts):
                workers.add_metric([*labels, field.name], getattr(pool.workers, field.name))
            if pool.desired is not None:
                desired.add_metric(labels, pool.desired)
        yield workers
        yield desired


def _pool_labels(key: PoolKey) -> tuple[str, ...]:
    return (key.namespace, key.deployment, key.pool, key.role, key.accelerator, key.model)


def _signal_families(
    scope: str, labels: tuple[str, ...], states: Iterable[tuple[tuple[str, ...], LoadSignals]], waited: float
) -> Iterator[Metric]:
    values = {name: GaugeMetricFamily(f"{_PREFIX}_{scope}_{name}", _HELP[name], labels=labels) for name in SIGNALS}
    meta = [*labels, "signal"]
    ages = GaugeMetricFamily(f"{_PREFIX}_{scope}_signal_age_seconds", "Age of the oldest sample used.", labels=meta)
    coverage = GaugeMetricFamily(
        f"{_PREFIX}_{scope}_signal_coverage_ratio", "Share of the workers that are part of the signal.", labels=meta
    )
    for label_values, signals in states:
        for name in SIGNALS:
            signal: Signal = getattr(signals, name)
            if signal.known:
                values[name].add_metric(label_values, signal.value)
            if math.isfinite(signal.age):
                ages.add_metric([*label_values, name], signal.age + waited)
            coverage.add_metric([*label_values, name], signal.coverage)
    yield from (*values.values(), ages, coverage)
