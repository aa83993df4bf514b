"""The supervisor's orders: what the command that starts a box leaves for the process that runs inside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

INNER_API_PORT = 6443
INNER_ETCD_PORT = 2379
INNER_ETCD_PEER_PORT = 2380


@dataclass(frozen=True, slots=True)
class ServiceRef:
    """One port of a Service."""

    namespace: str
    name: str
    port: str


GATEWAY = ServiceRef("penstock-system", "penstock-router", "http")
"""Where the host's gateway port leads: the router that the chart installs."""


@dataclass(frozen=True, slots=True)
class ProcessOrder:
    """One process to supervise: `kind` is `component` or `node`."""

    name: str
    kind: str
    arguments: list[str]
    descriptors: list[int]


@dataclass(frozen=True, slots=True)
class Settings:
    """A box: its nodes' addresses, its processes in the order they start, and the ports of the host that lead in."""

    name: str
    version: str
    nodes: str
    node_names: list[str]
    node_addresses: list[str]
    processes: list[ProcessOrder]
    programs: dict[str, str]
    api_port: int
    gateway_port: int

    def write(self, path: Path) -> None:
        """Store as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Load what `write` stored."""
        raw = json.loads(path.read_text())
        raw["processes"] = [ProcessOrder(**order) for order in raw["processes"]]
        return cls(**raw)
