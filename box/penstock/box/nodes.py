"""The nodes of a box: what `--nodes` means, and the spec file that each node process is started with."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from penstock.box.components import CLUSTER_DOMAIN, DNS_ADDRESS
from penstock.box.errors import BoxError

GPU_RESOURCE = "nvidia.com/gpu"
ACCELERATOR_LABEL = "penstock.dev/accelerator"
DEFAULT_NODES = "h100-80g=1x8,a100-80g=1x8"

# Nodes take 10.89.0.10 onwards and pods 10.244.1.0/24 onwards (10.244.0.0/24 holds the bridge itself).
_FIRST_HOST = 10
MAX_NODES = 200
MAX_GPUS = 64

_GROUP = re.compile(r"(?P<class>[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?)=(?P<nodes>[0-9]{1,4})x(?P<gpus>[0-9]{1,4})")


@dataclass(frozen=True, slots=True)
class Node:
    """One node: its name, accelerator class, GPUs and place in the box's network."""

    name: str
    accelerator: str
    gpus: int
    ordinal: int

    @property
    def address(self) -> str:
        """The node's own address, inside the box only."""
        return f"10.89.0.{_FIRST_HOST + self.ordinal}"

    @property
    def pod_range(self) -> str:
        """The range its pods' addresses are taken from."""
        return f"10.244.{1 + self.ordinal}.0/24"


def parse_nodes(text: str) -> tuple[Node, ...]:
    """Nodes of `class=nodes x GPUs, ...`, e.g. `h100-80g=1x8,a100-80g=2x8`; raises BoxError with the form expected."""
    nodes: list[Node] = []
    classes: set[str] = set()
    for part in text.split(","):
        match = _GROUP.fullmatch(part.strip())
        if match is None:
            raise BoxError(f"--nodes: {part.strip()!r} is not CLASS=NODESxGPUS, for example h100-80g=2x8 or cpu=1x0")
        name, count, gpus = match["class"], int(match["nodes"]), int(match["gpus"])
        if name in classes:
            raise BoxError(f"--nodes: class {name} stands there twice; add the numbers up")
        if gpus > MAX_GPUS:
            raise BoxError(f"--nodes: {name} asks for {gpus} GPUs on one node, at most {MAX_GPUS} are possible")
        classes.add(name)
        nodes += [Node(f"{name}-{index}", name, gpus, len(nodes) + index) for index in range(count)]
    if not 1 <= len(nodes) <= MAX_NODES:
        raise BoxError(f"--nodes: {len(nodes)} nodes asked for, a box has 1 to {MAX_NODES}")
    return tuple(nodes)


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """The files a node process is told about."""

    kubeconfig: Path
    ca: Path
    serving_certificate: Path
    serving_key: Path
    state: Path
    logs: Path
    programs: Path


def node_spec(node: Node, files: NodeFiles) -> dict[str, object]:
    """The spec of one node process (`python -m penstock.box.node --spec FILE`), ready for JSON."""
    return {
        "name": node.name,
        "ip": node.address,
        "kubeconfig": str(files.kubeconfig),
        "ca": str(files.ca),
        "clientCA": str(files.ca),
        "servingCert": str(files.serving_certificate),
        "servingKey": str(files.serving_key),
        "stateDir": str(files.state),
        "logDir": str(files.logs),
        "binDir": str(files.programs),
        "clusterDNS": DNS_ADDRESS,
        "clusterDomain": CLUSTER_DOMAIN,
        "podCIDR": node.pod_range,
        "labels": {ACCELERATOR_LABEL: node.accelerator},
        "taints": [],
        "gpus": {"resource": GPU_RESOURCE, "count": node.gpus},
        "images": {},
        "venv": sys.prefix,
    }


def write_node_spec(path: Path, node: Node, files: NodeFiles) -> Path:
    """Write the node's spec file; returns `path`."""
    path.write_text(json.dumps(node_spec(node, files), indent=2) + "\n")
    return path
