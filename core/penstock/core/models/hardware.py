"""The accelerators Penstock knows by name: memory, bandwidth, compute, link, watts and price, each with its source.

FLOP rates are dense (data sheets that print only the sparse figure are halved). Memory is what the runtime reports as
usable, which is what engines take their share of; a data sheet's "80 GB" is more than a program can have. Prices are
on-demand list prices in USD, indicative only: an AcceleratorClass object carries the user's own.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Accelerator", "Link", "LinkKind", "find_accelerator", "known_accelerators", "suggest_accelerator"]

_GIB = 2**30


class LinkKind(StrEnum):
    """What joins the accelerators of one node."""

    NVLINK = "NVLink"
    INFINITY_FABRIC = "InfinityFabric"
    PCIE = "PCIe"
    UPI = "UPI"


@dataclass(frozen=True, slots=True)
class Link:
    """One accelerator's way to its neighbours in the node."""

    kind: LinkKind
    bytes_per_second: float
    """In each direction, all lanes of one accelerator together."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One kind of accelerator. Sizes in bytes, rates per second, watts of the module alone (not its server)."""

    name: str
    """DNS label, also the name of its AcceleratorClass."""
    vendor: str
    memory_bytes: int
    memory_bandwidth: float
    """Bytes per second."""
    bf16_flops: float
    """Dense."""
    fp8_flops: float | None
    """Dense; None where the hardware has no fp8 units."""
    link: Link
    tdp_watts: float
    idle_watts: float
    """A model loaded, nothing running: what a waiting worker draws."""
    price_per_hour: float
    """USD."""
    product: str = ""
    sources: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)
    """(field name, public reference) of each figure."""

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "memory_bandwidth", "bf16_flops", "tdp_watts"):
            if not getattr(self, name) > 0:
                raise ValueError(f"accelerator {self.name}: {name} is {getattr(self, name)}; must be above 0")
        if not 0 <= self.idle_watts <= self.tdp_watts:
            raise ValueError(f"accelerator {self.name}: idle_watts must be between 0 and tdp_watts")

    def source_of(self, figure: str) -> str:
        """Public reference of one figure (`memory_bandwidth`); empty for an accelerator the user described."""
        return dict(self.sources).get(figure, "")

    @property
    def is_cpu(self) -> bool:
        """Whether it is a processor socket and takes no device resource of the node."""
        return self.link.kind is LinkKind.UPI


def known_accelerators() -> tuple[Accelerator, ...]:
    """Every accelerator of the catalogue, in the catalogue's order."""
    return tuple(_ACCELERATORS.values())


def find_accelerator(name: str) -> Accelerator | None:
    """The accelerator of this name (`h100-80g`); None when the catalogue has none."""
    return _ACCELERATORS.get(name.strip().lower())


def suggest_accelerator(name: str, limit: int = 3) -> tuple[str, ...]:
    """Names close to a mistyped one, best first."""
    return tuple(difflib.get_close_matches(name.strip().lower(), _ACCELERATORS, n=limit, cutoff=0.5))


_NVIDIA = "NVIDIA {} data sheet"
_MELANGE = "arXiv 2404.14527 (Melange), table of hourly prices"
_IDLE = "arXiv 2605.23918, idle draw with a resident CUDA context"
_INFERRED_IDLE = "inferred: the share of TDP measured on its sibling (arXiv 2605.23918)"
_CUDA_TOTAL = "total memory as the CUDA runtime reports it (cudaGetDeviceProperties), ECC on"


def _sources(sheet: str, memory: str, idle: str, price: str) -> tuple[tuple[str, str], ...]:
    figures = dict.fromkeys(("memory_bandwidth", "bf16_flops", "fp8_flops", "link", "tdp_watts"), sheet)
    return tuple((figures | {"memory_bytes": memory, "idle_watts": idle, "price_per_hour": price}).items())


def _gpu(
    name: str, product: str, *, memory: float, bandwidth: float, bf16: float, fp8: float | None, link: Link,
    tdp: float, idle: float, price: float, price_source: str, idle_source: str = _INFERRED_IDLE,
) -> Accelerator:  # fmt: skip
    """An NVIDIA GPU: memory in GiB, bandwidth in GB/s, rates in TFLOP/s."""
    return Accelerator(
        name=name,
        vendor="nvidia",
        product=product,
        memory_bytes=round(memory * _GIB),
        memory_bandwidth=bandwidth * 1e9,
        bf16_flops=bf16 * 1e12,
        fp8_flops=None if fp8 is None else fp8 * 1e12,
        link=link,
        tdp_watts=tdp,
        idle_watts=idle,
        price_per_hour=price,
        sources=_sources(_NVIDIA.format(product), _CUDA_TOTAL, idle_source, price_source),
    )


_NVLINK3 = Link(LinkKind.NVLINK, 300e9)
_NVLINK4 = Link(LinkKind.NVLINK, 450e9)
_NVLINK5 = Link(LinkKind.NVLINK, 900e9)
_PCIE4 = Link(LinkKind.PCIE, 32e9)

_TABLE = (
    _gpu("a100-40g", "A100 SXM4 40GB", memory=39.4, bandwidth=1555, bf16=312, fp8=None, link=_NVLINK3, tdp=400,
         idle=80, price=2.75, price_source="AWS p4d.24xlarge on demand / 8, 2025", idle_source=_IDLE),
    _gpu("a100-80g", "A100 SXM4 80GB", memory=79.3, bandwidth=2039, bf16=312, fp8=None, link=_NVLINK3, tdp=400,
         idle=80, price=3.67, price_source=_MELANGE, idle_source=_IDLE),
    _gpu("h100-80g", "H100 SXM5 80GB", memory=79.1, bandwidth=3350, bf16=989.4, fp8=1978.9, link=_NVLINK4, tdp=700,
         idle=121.7, price=7.516, price_source=_MELANGE, idle_source=_IDLE),
    _gpu("h200-141g", "H200 SXM5 141GB", memory=139.8, bandwidth=4800, bf16=989.4, fp8=1978.9, link=_NVLINK4, tdp=700,
         idle=121.7, price=7.91, price_source="AWS p5en.48xlarge on demand / 8, 2025"),
    _gpu("b200-180g", "HGX B200 180GB", memory=178.4, bandwidth=8000, bf16=2250, fp8=4500, link=_NVLINK5, tdp=1000,
         idle=174, price=14.24, price_source="AWS p6-b200.48xlarge on demand / 8, 2025"),
    _gpu("l4-24g", "L4", memory=22.0, bandwidth=300, bf16=121, fp8=242.5, link=_PCIE4, tdp=72,
         idle=17, price=0.70, price_source=_MELANGE, idle_source="arXiv 2604.09048 (Watt Counts), idle draw"),
    _gpu("l40s-48g", "L40S", memory=44.4, bandwidth=864, bf16=362.05, fp8=733, link=_PCIE4, tdp=350,
         idle=102.1, price=1.86, price_source="AWS g6e.xlarge on demand, 2025", idle_source=_IDLE),
    _gpu("a10g-24g", "A10G", memory=22.1, bandwidth=600, bf16=70, fp8=None, link=_PCIE4, tdp=300,
         idle=60, price=1.01, price_source=_MELANGE),
    _gpu("a40-48g", "A40", memory=44.4, bandwidth=696, bf16=149.7, fp8=None, link=_PCIE4, tdp=300,
         idle=60, price=1.28, price_source="CoreWeave A40 on demand, 2024"),
    Accelerator(
        name="mi300x-192g", vendor="amd", product="Instinct MI300X", memory_bytes=round(191.5 * _GIB),
        memory_bandwidth=5.3e12, bf16_flops=1307.4e12, fp8_flops=2614.9e12,
        link=Link(LinkKind.INFINITY_FABRIC, 448e9), tdp_watts=750, idle_watts=140, price_per_hour=6.0,
        sources=_sources("AMD Instinct MI300X data sheet", "total memory as rocm-smi reports it",
                         "inferred: 19 % of TDP, the mean share of the measured GPUs",
                         "OCI BM.GPU.MI300X.8 list price per GPU, 2025"),
    ),
    Accelerator(
        name="cpu", vendor="intel", product="Xeon Platinum 8480+, one socket with AMX", memory_bytes=256 * _GIB,
        memory_bandwidth=307.2e9, bf16_flops=229e12, fp8_flops=None, link=Link(LinkKind.UPI, 96e9),
        tdp_watts=350, idle_watts=100, price_per_hour=4.84,
        sources=_sources("Intel ARK 8480+: eight DDR5-4800 channels; 56 cores x 2048 bf16 FLOP a cycle at 2.0 GHz",
                         "chosen: 16 modules of 16 GiB", "inferred: socket with memory refresh and one busy core",
                         "AWS m7i.metal-24xl on demand, 2025"),
    ),
)  # fmt: skip

_ACCELERATORS = {accelerator.name: accelerator for accelerator in _TABLE}
