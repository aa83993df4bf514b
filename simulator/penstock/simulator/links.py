"""What joins the nodes: the link that KV caches move over, and the tree of nodes, racks and rows it is cut into.

A transfer takes the way through the lowest common ancestor of its two ends: between workers of one node the
accelerators' own link, inside a rack both nodes' network, between racks the racks' uplinks too, and so on. What is not
given is not a bottleneck.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Level", "Link", "Topology"]


class Level(IntEnum):
    """Parts of a cluster, the smallest first."""

    NODE = 0
    RACK = 1
    ROW = 2
    CLUSTER = 3


@dataclass(frozen=True, slots=True)
class Link:
    """A node's way into the network, which KV caches of prefilled prompts take to their decode workers.

    The defaults are one 400 Gb/s port a node and a millisecond for the hand-shake: assumptions, to be replaced by what
    a cluster measures.
    """

    gbytes_per_s: float = 50.0
    """10^9 bytes a second in each direction, of all workers of the node together."""
    latency_s: float = 1e-3
    """From the asking to the first byte."""
    shared: bool = True
    """Whether transfers at one time share it evenly; else each has all of it for itself."""
    overlap: float = 0.0
    """Share of the bytes that move layer by layer while the prompt is still being computed, 0 to 1. What moves
    meanwhile is taken to disturb nobody."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gbytes_per_s) and self.gbytes_per_s > 0):
            raise ValueError(f"a link of {self.gbytes_per_s} GB/s moves nothing; give a rate above 0")
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            raise ValueError(f"a link's latency is {self.latency_s} s; give 0 or more")
        if not 0.0 <= self.overlap <= 1.0:
            raise ValueError(f"a link's overlap is {self.overlap}; give the share of the bytes hidden, 0 to 1")

    def seconds(self, size: float) -> float:
        """What moving `size` bytes takes alone."""
        return self.latency_s + size * (1.0 - self.overlap) / (self.gbytes_per_s * 1e9)


@dataclass(frozen=True, slots=True)
class Topology:
    """How nodes stand in racks and rows, in the order of node groups, and what joins those."""

    nodes_per_rack: int | None = None
    """None: all nodes stand in one rack."""
    racks_per_row: int | None = None
    """None: all racks stand in one row."""
    rack_gbytes_per_s: float | None = None
    """A rack's uplink in each direction; None: never the bottleneck."""
    row_gbytes_per_s: float | None = None
    domain: Level = Level.CLUSTER
    """The part of the tree within which a prefill worker may be paired with a decode worker."""

    def __post_init__(self) -> None:
        for name in ("nodes_per_rack", "racks_per_row"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"topology: {name} is {count}; give at least 1, or leave it out for one of all")
        for name in ("rack_gbytes_per_s", "row_gbytes_per_s"):
            rate = getattr(self, name)
            if rate is not None and not rate > 0:
                raise ValueError(f"topology: {name} is {rate}; give a rate above 0, or leave it out for no limit")

    def rack(self, node: int) -> int:
        """The rack of a node."""
        return 0 if self.nodes_per_rack is None else node // self.nodes_per_rack

    def row(self, node: int) -> int:
        """The row of a node."""
        return 0 if self.racks_per_row is None else self.rack(node) // self.racks_per_row

    def meeting(self, one: int, other: int) -> Level:
        """The lowest part of the tree that holds both nodes."""
        if one == other:
            return Level.NODE
        if self.rack(one) == self.rack(other):
            return Level.RACK
        return Level.ROW if self.row(one) == self.row(other) else Level.CLUSTER

    def domain_of(self, node: int) -> str:
        """Name of the transfer domain a node lies in; empty where there is only one."""
        match self.domain:
            case Level.NODE:
                return f"node-{node}"
            case Level.RACK:
                return f"rack-{self.rack(node)}"
            case Level.ROW:
                return f"row-{self.row(node)}"
            case Level.CLUSTER:
                return ""
