"""The fleet every decision is made over: requests, workers as columns, picks, signals, reasons.

What may not live here: policies (they are the router's), sockets, clocks, Kubernetes objects.
"""

from penstock.core.fleet.columns import Fleet
from penstock.core.fleet.layout import Breaker
from penstock.core.fleet.picks import Pick, Prefills, Rejection, Reservation, Scores, Slots, Term
from penstock.core.fleet.prefixes import PrefixIndex
from penstock.core.fleet.reasons import Failure, PickReason, RejectReason
from penstock.core.fleet.requests import Request
from penstock.core.fleet.signals import UNKNOWN, Signal, total
from penstock.core.fleet.stalls import TYPICAL_OUTPUT
from penstock.core.fleet.view import ANSWERING, FleetView, Roles
from penstock.core.fleet.workers import Role, Worker

__all__ = [
    "ANSWERING",
    "TYPICAL_OUTPUT",
    "UNKNOWN",
    "Breaker",
    "Failure",
    "Fleet",
    "FleetView",
    "Pick",
    "PickReason",
    "Prefills",
    "PrefixIndex",
    "RejectReason",
    "Rejection",
    "Request",
    "Reservation",
    "Role",
    "Roles",
    "Scores",
    "Signal",
    "Slots",
    "Term",
    "Worker",
    "total",
]
