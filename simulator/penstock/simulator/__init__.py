"""The twin: a discrete-event simulator of a whole cluster that runs the cluster's own decisions.

`simulate(scenario, trace)` plays a trace through the router's own picks and the simulated engine's own state machine,
on a virtual clock. Nothing here may read a clock, open a socket or import a shell.
"""

from penstock.simulator.faults import Fault, LostEvents, Partition, Slow, Throttle, Timeouts
from penstock.simulator.links import Level, Link, Topology
from penstock.simulator.placement import plan_workers
from penstock.simulator.report import Resources, make_report
from penstock.simulator.scaling_rules import Autoscaling, Bounds, Drain, PowerDomain, Provisioning
from penstock.simulator.scenario import (
    ENDLESS,
    Crash,
    FirstToken,
    Impossible,
    NodeGroup,
    PoolSpec,
    Scenario,
    WorkerSpec,
    parse_nodes,
)
from penstock.simulator.startup import StartUp
from penstock.simulator.twin import Result, Twin, simulate

__all__ = [
    "ENDLESS",
    "Autoscaling",
    "Bounds",
    "Crash",
    "Drain",
    "Fault",
    "FirstToken",
    "Impossible",
    "Level",
    "Link",
    "LostEvents",
    "NodeGroup",
    "Partition",
    "PoolSpec",
    "PowerDomain",
    "Provisioning",
    "Resources",
    "Result",
    "Scenario",
    "Slow",
    "StartUp",
    "Throttle",
    "Timeouts",
    "Topology",
    "Twin",
    "WorkerSpec",
    "make_report",
    "parse_nodes",
    "plan_workers",
    "simulate",
]
