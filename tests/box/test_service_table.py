"""Routes: which address leads to which pods, as kube-proxy would have it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from penstock.box.services.listeners import Turns
from penstock.box.services.table import Route, build_table


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    base = {"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20"], "ports": [{"name": "http", "port": 80}]}
    return {"metadata": {"name": name, "namespace": "ns"}, "spec": base | spec}


def endpoint(address: str, *, ready: bool | None = True, **conditions: bool) -> dict[str, Any]:
    return {"addresses": [address], "conditions": {"ready": ready, **conditions}}


def piece(*endpoints: dict[str, Any], of: str = "web", name: str = "http", port: int = 8000) -> dict[str, Any]:
    return {
        "metadata": {"name": f"{of}-x", "namespace": "ns", "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4",
        "ports": [{"name": name, "port": port, "protocol": "TCP"}],
        "endpoints": list(endpoints),
    }


def _endpoints(*slices: dict[str, Any], **spec: Any) -> tuple[tuple[str, int], ...]:
    return build_table([service(**spec)], slices).by_address[("10.96.0.20", 80)].endpoints


def test_a_port_leads_to_the_ready_endpoints_of_all_slices() -> None:
    slices = [piece(endpoint("10.244.1.3"), endpoint("10.244.1.2")), piece(endpoint("10.244.2.2"))]
    assert _endpoints(*slices) == (("10.244.1.2", 8000), ("10.244.1.3", 8000), ("10.244.2.2", 8000))


def test_unready_endpoints_get_nothing_and_unknown_readiness_counts_as_ready() -> None:
    slices = piece(endpoint("10.244.1.2", ready=False), endpoint("10.244.1.3", ready=None))
    assert _endpoints(slices) == (("10.244.1.3", 8000),)


def test_when_all_are_leaving_those_that_still_serve_are_used() -> None:
    leaving = endpoint("10.244.1.2", ready=False, serving=True, terminating=True)
    gone = endpoint("10.244.1.3", ready=False, serving=False, terminating=True)
    assert _endpoints(piece(leaving, gone)) == (("10.244.1.2", 8000),)
    assert _endpoints(piece(leaving, endpoint("10.244.1.4"))) == (("10.244.1.4", 8000),)


def test_ports_are_matched_by_name() -> None:
    assert _endpoints(piece(endpoint("10.244.1.2"), name="metrics")) == ()


def test_headless_and_external_services_have_no_listener() -> None:
    headless = service("a", clusterIP="None", clusterIPs=["None"])
    external = service("b", type="ExternalName", externalName="example.org", clusterIP="")
    assert build_table([headless, external], []).by_address == {}


def test_udp_ports_are_not_relayed() -> None:
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}]
    assert build_table([service(ports=ports)], []).by_address == {}


def test_a_route_is_found_by_its_names_too() -> None:
    table = build_table([service()], [piece(endpoint("10.244.1.2"))])
    assert table.by_name[("ns", "web", "http")].endpoints == (("10.244.1.2", 8000),)


@given(st.integers(min_value=1, max_value=9), st.integers(min_value=1, max_value=5))
def test_turns_are_fair(endpoints: int, rounds: int) -> None:
    route = Route("ns", "web", "", tuple((f"10.244.1.{i}", 80) for i in range(endpoints)))
    turns = Turns()
    orders = [turns.order(route, "client") for _ in range(rounds * endpoints)]
    firsts = [order[0] for order in orders]
    assert all(firsts.count(address) == rounds for address in route.endpoints)
    assert all(sorted(order) == sorted(route.endpoints) for order in orders)


def test_a_sticky_route_keeps_a_client_on_one_endpoint() -> None:
    route = Route("ns", "web", "", tuple((f"10.244.1.{i}", 80) for i in range(7)), sticky=True)
    turns = Turns()
    assert len({turns.order(route, "10.244.9.9")[0] for _ in range(20)}) == 1
    assert len({turns.order(route, f"10.244.9.{i}")[0] for i in range(50)}) > 1


def test_no_route_offers_nobody() -> None:
    assert list(Turns().order(None, "")) == []
