"""Names: what Kubernetes specifies for Services and pods, and an honest no for everything else."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from dnslib import QTYPE, RCODE, DNSRecord
from hypothesis import given
from hypothesis import strategies as st
from penstock.box.services.dns import answer, serve_dns
from penstock.box.services.zone import Zone, build_zone, pod_address

DOMAIN = "cluster.local"


def _service(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "ns"}, "spec": spec}


def _zone() -> Zone:
    services = [
        _service("web", clusterIP="10.96.0.20", ports=[{"name": "http", "port": 80}, {"port": 81}]),
        _service("db", clusterIP="None", ports=[{"name": "sql", "port": 5432}]),
        _service("out", type="ExternalName", externalName="web.ns.svc.cluster.local"),
        _service("far", type="ExternalName", externalName="example.org"),
    ]
    slices = [
        {
            "metadata": {"name": "db-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4",
            "ports": [{"name": "sql", "port": 5433, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.244.1.2"], "hostname": "db-0", "conditions": {"ready": True}},
                {"addresses": ["10.244.1.3"], "conditions": {"ready": True}},
                {"addresses": ["10.244.1.4"], "hostname": "db-2", "conditions": {"ready": False}},
            ],
        }
    ]
    return build_zone(services, slices, DOMAIN)


def _ask(name: str, kind: str = "A", zone: Zone | None = None) -> DNSRecord:
    reply = answer(DNSRecord.question(name, kind).pack(), zone or _zone(), DOMAIN, udp=True)
    assert reply is not None
    return DNSRecord.parse(reply)


def _data(reply: DNSRecord) -> list[str]:
    return [str(record.rdata) for record in reply.rr]


@pytest.mark.parametrize(
    ("name", "kind", "data"),
    [
        ("web.ns.svc.cluster.local", "A", ["10.96.0.20"]),
        ("WEB.ns.svc.Cluster.Local", "A", ["10.96.0.20"]),
        ("db.ns.svc.cluster.local", "A", ["10.244.1.2", "10.244.1.3"]),
        ("db-0.db.ns.svc.cluster.local", "A", ["10.244.1.2"]),
        ("10-244-1-3.db.ns.svc.cluster.local", "A", ["10.244.1.3"]),
        ("10-244-7-9.ns.pod.cluster.local", "A", ["10.244.7.9"]),
        ("_http._tcp.web.ns.svc.cluster.local", "SRV", ["0 100 80 web.ns.svc.cluster.local."]),
        ("20.0.96.10.in-addr.arpa", "PTR", ["web.ns.svc.cluster.local."]),
        ("2.1.244.10.in-addr.arpa", "PTR", ["db-0.db.ns.svc.cluster.local."]),
    ],
)
def test_names_of_the_cluster(name: str, kind: str, data: list[str]) -> None:
    reply = _ask(name, kind)
    assert (reply.header.rcode, reply.header.aa) == (RCODE.NOERROR, 1)
    assert sorted(_data(reply)) == data


def test_srv_of_a_headless_service_names_each_pod() -> None:
    data = _data(_ask("_sql._tcp.db.ns.svc.cluster.local", "SRV"))
    assert sorted(data) == [
        "0 100 5433 10-244-1-3.db.ns.svc.cluster.local.",
        "0 100 5433 db-0.db.ns.svc.cluster.local.",
    ]


@pytest.mark.parametrize("name", ["web.ns.svc.cluster.local", "ns.svc.cluster.local", "_tcp.web.ns.svc.cluster.local"])
def test_a_name_that_exists_without_such_a_record_is_no_data_and_not_no_name(name: str) -> None:
    reply = _ask(name, "AAAA")
    assert (reply.header.rcode, reply.rr) == (RCODE.NOERROR, [])
    assert reply.auth[0].rtype == QTYPE.SOA


@pytest.mark.parametrize("name", ["nobody.ns.svc.cluster.local", "db-2.db.ns.svc.cluster.local", "x.cluster.local"])
def test_a_name_of_ours_that_is_not_there_does_not_exist(name: str) -> None:
    assert _ask(name).header.rcode == RCODE.NXDOMAIN


@pytest.mark.parametrize("name", ["example.org", "xcluster.local", "local"])
def test_names_of_others_are_refused_at_once(name: str) -> None:
    assert _ask(name).header.rcode == RCODE.REFUSED


def test_an_external_name_is_followed_as_far_as_we_know() -> None:
    assert _data(_ask("out.ns.svc.cluster.local")) == ["web.ns.svc.cluster.local.", "10.96.0.20"]
    assert _data(_ask("far.ns.svc.cluster.local")) == ["example.org."]


def test_aliases_in_a_circle_end() -> None:
    services = [
        _service("a", type="ExternalName", externalName="b.ns.svc.cluster.local"),
        _service("b", type="ExternalName", externalName="a.ns.svc.cluster.local"),
    ]
    assert len(_ask("a.ns.svc.cluster.local", zone=build_zone(services, [], DOMAIN)).rr) < 20


def test_too_long_for_a_datagram_says_so() -> None:
    pods = [{"addresses": [f"10.244.1.{i}"], "conditions": {"ready": True}} for i in range(2, 200)]
    labels = {"kubernetes.io/service-name": "db"}
    piece = {"metadata": {"name": "s", "namespace": "ns", "labels": labels}, "addressType": "IPv4", "endpoints": pods}
    zone = build_zone([_service("db", clusterIP="None")], [piece], DOMAIN)
    query = DNSRecord.question("db.ns.svc.cluster.local").pack()
    short, whole = (answer(query, zone, DOMAIN, udp=udp) for udp in (True, False))
    assert short is not None
    assert whole is not None
    assert len(short) <= 512
    assert DNSRecord.parse(short).header.tc == 1
    assert len(DNSRecord.parse(whole).rr) == 198


@given(st.binary(max_size=200))
def test_no_datagram_stops_the_server_and_no_answer_is_answered(data: bytes) -> None:
    reply = answer(data, _zone(), DOMAIN, udp=True)
    if reply is not None:
        assert reply[2] & 0x80
        assert reply[:2] == data[:2]
        assert answer(reply, _zone(), DOMAIN, udp=True) is None


@pytest.mark.parametrize(
    "name", ["10-244-1.ns.pod.cluster.local", "10-244-1-999.ns.pod.cluster.local", "pod.cluster.local"]
)
def test_only_addresses_are_pod_names(name: str) -> None:
    assert pod_address(name, DOMAIN) is None


async def test_it_answers_over_udp_and_tcp() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    zone = _zone()
    await serve_dns(("127.0.0.1",), lambda message, udp: answer(message, zone, DOMAIN, udp=udp), port)
    question = DNSRecord.question("web.ns.svc.cluster.local")
    for tcp in (False, True):
        reply = await asyncio.to_thread(question.send, "127.0.0.1", port, tcp=tcp, timeout=5)
        assert _data(DNSRecord.parse(reply)) == ["10.96.0.20"]
