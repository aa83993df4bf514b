"""An AcceleratorClass object as the hardware that memory and latency are computed from.

The object's own figures count; what it leaves out is taken from the catalogue's entry of the same name.
"""

from __future__ import annotations

from collections.abc import Iterable

from penstock.api import AcceleratorClass, Flops
from penstock.api.quantities import parse_quantity
from penstock.core.models import Accelerator, Link, LinkKind, find_accelerator
from penstock.operator.decisions.observed import Node

_LINKS = {kind.value: kind for kind in LinkKind}
_UNKNOWN_FLOPS = 1.0
"""Stands in where neither object nor catalogue gives FLOP/s: memory can be computed, latency cannot (`has_flops`)."""
_SLOW_LINK = Link(LinkKind.PCIE, 16e9)
"""What any server has between two cards: 16 lanes of PCIe 3."""


def hardware_of(accelerator: AcceleratorClass) -> Accelerator:
    """The core's view of an accelerator class."""
    spec, known = accelerator.spec, find_accelerator(accelerator.metadata.name)
    flops, power, link = spec.flops, spec.power, spec.link
    return Accelerator(
        name=accelerator.metadata.name,
        vendor=known.vendor if known else "",
        memory_bytes=spec.memory_bytes,
        memory_bandwidth=spec.memory_bandwidth_bytes,
        bf16_flops=_bf16(flops, known),
        fp8_flops=_fp8(flops, known),
        link=Link(_LINKS[link.kind], parse_quantity(link.bandwidth)) if link else (known.link if known else _SLOW_LINK),
        tdp_watts=float(power.max) if power else (known.tdp_watts if known else 1.0),
        idle_watts=float(power.idle) if power else (known.idle_watts if known else 0.0),
        price_per_hour=float(spec.price or 0),
        product=known.product if known else "",
    )


def has_flops(accelerator: AcceleratorClass) -> bool:
    """Whether a roofline can be computed for the class."""
    return accelerator.spec.flops is not None or find_accelerator(accelerator.metadata.name) is not None


def nodes_of(accelerator: AcceleratorClass, nodes: Iterable[Node]) -> list[Node]:
    """Nodes that have the class: they match its selector and, for a device, have some of it."""
    selector, resource = accelerator.spec.node_selector, accelerator.spec.resource_name
    return [
        node
        for node in nodes
        if all(node.labels.get(key) == value for key, value in selector.items())
        and (resource is None or node.allocatable.get(resource, 0) > 0)
    ]


def _bf16(flops: Flops | None, known: Accelerator | None) -> float:
    if flops is not None and flops.bf16:
        return parse_quantity(flops.bf16)
    return known.bf16_flops if known else _UNKNOWN_FLOPS


def _fp8(flops: Flops | None, known: Accelerator | None) -> float | None:
    if flops is not None:
        return parse_quantity(flops.fp8) if flops.fp8 else None
    return known.fp8_flops if known else None
