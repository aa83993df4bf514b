"""What the operator counts about itself, under the names `penstock_operator_<noun>_<unit>`."""

from __future__ import annotations

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
)


class Metrics:
    """The operator's series, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for each in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            self.registry.register(each)
        self.reconcile = Histogram(
            "penstock_operator_reconcile_seconds",
            "Time of one reconcile, writes included",
            ["result"],
            registry=self.registry,
            buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15),
        )
        self.depth = Gauge(
            "penstock_operator_queue_deployments", "Deployments waiting to be reconciled", registry=self.registry
        )
        self.leader = Gauge("penstock_operator_leader_bool", "1 while this process leads", registry=self.registry)
        self.writes = Counter(
            "penstock_operator_writes_total",
            "Writes to the API server",
            ["kind", "verb", "code"],
            registry=self.registry,
        )
        self.errors = Counter("penstock_operator_errors_total", "Failed reconciles", ["reason"], registry=self.registry)
        self.events_dropped = Counter(
            "penstock_operator_events_dropped_total", "Events not posted: queue full or refused", registry=self.registry
        )
        self.stale = Counter(
            "penstock_operator_stale_objects_total",
            "Objects whose deletion only a list showed",
            ["kind"],
            registry=self.registry,
        )
        self.watch_restarts = Counter(
            "penstock_operator_watch_restarts_total", "Times all watches began anew", registry=self.registry
        )
