"""From what workers said to signals, and from signals to replicas: pure functions of samples and a time."""

from penstock.autoscaler.decisions.aggregate import LoadSignals, Rules, aggregate
from penstock.autoscaler.decisions.counters import increase
from penstock.autoscaler.decisions.observations import TimedSample, WorkerHistory

__all__ = ["LoadSignals", "Rules", "TimedSample", "WorkerHistory", "aggregate", "increase"]
