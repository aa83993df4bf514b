"""The fleet every decision is made over: requests, workers as columns, picks, signals, reasons.

What may not live here: policies (they are the router's), sockets, clocks, Kubernetes objects.
"""

from penstock.core.fleet.columns import Fleet
from penstock.core.fleet.layout import Breaker
from penstock.core.fleet.picks import Pick, Rejection, Reservation, Scores, Slots
from penstock.core.fleet.reasons import Failure, PickReason, RejectReason
from penstock.core.fleet.requests import Request
from penstock.core.fleet.signals import UNKNOWN, Signal, total
from penstock.core.fleet.view import FleetView
from penstock.core.fleet.workers import Role, Worker

__all__ = [
    "UNKNOWN",
    "Breaker",
    "Failure",
    "Fleet",
    "FleetView",
    "Pick",
    "PickReason",
    "RejectReason",
    "Rejection",
    "Request",
    "Reservation",
    "Role",
    "Scores",
    "Signal",
    "Slots",
    "Worker",
    "total",
]
