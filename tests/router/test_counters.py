"""The router's metrics page: what may go wrong with a served model is there before it happens, at 0."""

from __future__ import annotations

from penstock.core.fleet import Failure, Fleet, RejectReason, Worker
from penstock.router.shell.metrics import Collector, Counters


def values(counters: Counters) -> dict[tuple[str, ...], float]:
    """Value by series name and label values, of a router that serves one worker of `m`."""
    fleet = Fleet(4)
    fleet.add(Worker("default/w", "127.0.0.1", 8000, "m", namespace="default", deployment="d", pool="serve"))
    families = Collector(counters, fleet, dict).collect()
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_failures_of_a_served_model_begin_at_zero() -> None:
    found = values(Counters())
    assert all(found["penstock_router_retries_total", "m", reason] == 0 for reason in Failure)
    assert all(found["penstock_router_cut_total", "m", reason] == 0 for reason in Failure)
    assert all(found["penstock_router_rejected_total", "m", reason] == 0 for reason in RejectReason)
    assert found["penstock_router_continued_total", "m"] == found["penstock_router_client_gone_total", "m"] == 0
    # Prefill legs and status codes are of models that had any: the rest would be series for nothing.
    assert not [
        key for key in found if key[0] in ("penstock_router_prefill_legs_total", "penstock_router_requests_total")
    ]


def test_what_happened_stands_beside_what_did_not() -> None:
    counters = Counters()
    counters.requests["m", "KVAware", 200] = 7
    counters.requests["", "", 404] = 1
    counters.retries["m", Failure.RESET] = 2
    counters.retries["gone", Failure.RESET] = 3
    counters.legs["m", "Held"] = 5
    counters.continued["m"] = 4
    found = values(counters)
    assert found["penstock_router_requests_total", "m", "KVAware", "200"] == 7
    assert found["penstock_router_requests_total", "m", "KVAware", "502"] == 0
    assert found["penstock_router_requests_total", "", "", "404"] == 1
    assert ("penstock_router_requests_total", "", "", "200") not in found
    assert found["penstock_router_retries_total", "m", "Reset"] == 2
    assert found["penstock_router_retries_total", "gone", "Reset"] == 3
    assert found["penstock_router_prefill_legs_total", "m", "Held"] == 5
    assert found["penstock_router_prefill_legs_total", "m", "NothingHeld"] == 0
    assert found["penstock_router_continued_total", "m"] == 4
