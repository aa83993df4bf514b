"""Workloads that no trace recorded: arrivals, lengths and sessions, deterministic by seed, all of them as traces."""

from penstock.simulator.workloads.arrivals import ArrivalProcess, arrivals, diurnal, spikes
from penstock.simulator.workloads.fitted import like
from penstock.simulator.workloads.sessions import SessionShape, sessions

__all__ = ["ArrivalProcess", "SessionShape", "arrivals", "diurnal", "like", "sessions", "spikes"]
