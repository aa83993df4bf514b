"""Workloads that no trace recorded: arrivals, lengths, sessions, agents, tenants; deterministic by seed."""

from penstock.simulator.workloads.agents import Agents, AgentShape, agents
from penstock.simulator.workloads.arrivals import ArrivalProcess, arrivals, diurnal, spikes
from penstock.simulator.workloads.fitted import (
    Burstiness,
    LengthShape,
    fit_burstiness,
    fit_lengths,
    fit_rate,
    fit_sessions,
    fit_tenants,
    like,
    stream_like,
)
from penstock.simulator.workloads.sessions import SessionShape, closed_sessions, sessions
from penstock.simulator.workloads.shares import (
    Tenant,
    expert_loads,
    fit_zipf,
    with_models,
    with_tenants,
    zipf_shares,
)
from penstock.simulator.workloads.source import Columns, Recorded, Workload, as_workload

__all__ = [
    "AgentShape",
    "Agents",
    "ArrivalProcess",
    "Burstiness",
    "Columns",
    "LengthShape",
    "Recorded",
    "SessionShape",
    "Tenant",
    "Workload",
    "agents",
    "arrivals",
    "as_workload",
    "closed_sessions",
    "diurnal",
    "expert_loads",
    "fit_burstiness",
    "fit_lengths",
    "fit_rate",
    "fit_sessions",
    "fit_tenants",
    "fit_zipf",
    "like",
    "sessions",
    "spikes",
    "stream_like",
    "with_models",
    "with_tenants",
    "zipf_shares",
]
