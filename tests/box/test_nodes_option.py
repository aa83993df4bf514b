"""`--nodes`: what it means, and what is refused."""

from __future__ import annotations

import json
from ipaddress import IPv4Network, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.box.components import POD_RANGE
from penstock.box.errors import BoxError
from penstock.box.netlink import BRIDGE_ADDRESS
from penstock.box.nodes import DEFAULT_NODES, MAX_NODES, NodeFiles, parse_nodes, write_node_spec


def test_each_class_gets_its_nodes_with_its_gpus() -> None:
    nodes = parse_nodes("h100-80g=1x8, a100-80g=2x4")
    assert [(n.name, n.accelerator, n.gpus) for n in nodes] == [
        ("h100-80g-0", "h100-80g", 8),
        ("a100-80g-0", "a100-80g", 4),
        ("a100-80g-1", "a100-80g", 4),
    ]


def test_a_node_may_have_no_gpus() -> None:
    assert [n.gpus for n in parse_nodes("cpu=1x0")] == [0]


def test_the_default_is_usable() -> None:
    assert parse_nodes(DEFAULT_NODES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not CLASS=NODESxGPUS"),
        ("h100", "is not CLASS=NODESxGPUS"),
        ("h100=2", "is not CLASS=NODESxGPUS"),
        ("h100=-1x8", "is not CLASS=NODESxGPUS"),
        ("H100=1x8", "is not CLASS=NODESxGPUS"),
        ("-h=1x8", "is not CLASS=NODESxGPUS"),
        ("h100=1x8,", "is not CLASS=NODESxGPUS"),
        ("h100=1x8,h100=1x8", "stands there twice"),
        ("h100=0x8", "0 nodes asked for"),
        (f"h100={MAX_NODES + 1}x8", "nodes asked for"),
        ("h100=1x65", "at most 64"),
    ],
)
def test_other_forms_are_refused_with_a_reason(text: str, said: str) -> None:
    with pytest.raises(BoxError, match=said):
        parse_nodes(text)


@given(st.lists(st.integers(min_value=0, max_value=20), min_size=1, max_size=8).filter(lambda counts: sum(counts) > 0))
def test_no_two_nodes_share_an_address_or_a_pod_range(counts: list[int]) -> None:
    nodes = parse_nodes(",".join(f"class-{index}={count}x1" for index, count in enumerate(counts)))
    assert len({n.name for n in nodes}) == len(nodes) == sum(counts)
    assert len({n.address for n in nodes}) == len(nodes)
    ranges = {IPv4Network(n.pod_range) for n in nodes}
    assert len(ranges) == len(nodes)
    assert all(r.subnet_of(IPv4Network(POD_RANGE)) and ip_address(BRIDGE_ADDRESS) not in r for r in ranges)


def test_the_spec_file_holds_what_a_node_process_reads(tmp_path: Path) -> None:
    (node,) = parse_nodes("h100-80g=1x8")
    files = NodeFiles(*(tmp_path / name for name in ("k", "ca", "crt", "key", "state", "logs", "bin")))
    spec = json.loads(write_node_spec(tmp_path / "spec.json", node, files).read_text())
    assert spec["gpus"] == {"resource": "nvidia.com/gpu", "count": 8}
    assert spec["labels"] == {"penstock.dev/accelerator": "h100-80g"}
    assert spec["podCIDR"] == "10.244.1.0/24"
    assert {"name", "ip", "kubeconfig", "ca", "clientCA", "servingCert", "servingKey", "binDir", "venv"} <= spec.keys()
