"""The accelerators: published figures, no sparse rate, a source for each."""

import re
from dataclasses import replace

import pytest
from penstock.core.models import Accelerator, find_accelerator, known_accelerators, suggest_accelerator

FIGURES = (
    "memory_bytes",
    "memory_bandwidth",
    "bf16_flops",
    "fp8_flops",
    "link",
    "tdp_watts",
    "idle_watts",
    "price_per_hour",
)


@pytest.mark.parametrize("known", known_accelerators(), ids=lambda known: known.name)
def test_every_figure_has_a_source_and_the_name_is_a_dns_label(known: Accelerator) -> None:
    assert all(known.source_of(figure) for figure in FIGURES)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", known.name)


@pytest.mark.parametrize("known", known_accelerators(), ids=lambda known: known.name)
def test_memory_is_a_little_less_than_the_name_says(known: Accelerator) -> None:
    nominal = re.search(r"-(\d+)g$", known.name)
    if nominal is None:
        assert known.is_cpu
        return
    assert 0.9 <= known.memory_bytes / (int(nominal[1]) * 2**30) <= 1.0


@pytest.mark.parametrize("known", known_accelerators(), ids=lambda known: known.name)
def test_fp8_doubles_bf16_where_there_is_any(known: Accelerator) -> None:
    if known.fp8_flops is None:
        assert known.name.startswith(("a1", "a4", "cpu"))
    else:
        assert known.fp8_flops / known.bf16_flops == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize(
    ("name", "teraflops", "gigabytes_per_second"),
    [("a100-80g", 312, 2039), ("h100-80g", 989.4, 3350), ("h200-141g", 989.4, 4800), ("mi300x-192g", 1307.4, 5300)],
)
def test_published_peaks(name: str, teraflops: float, gigabytes_per_second: float) -> None:
    known = find_accelerator(name)
    assert known is not None
    assert (known.bf16_flops / 1e12, known.memory_bandwidth / 1e9) == pytest.approx((teraflops, gigabytes_per_second))


def test_a_near_miss_is_suggested() -> None:
    assert suggest_accelerator("h100-80gb")[0] == "h100-80g"
    assert find_accelerator("H100-80G") is find_accelerator("h100-80g")


@pytest.mark.parametrize("field", ["memory_bytes", "memory_bandwidth", "bf16_flops", "tdp_watts"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_described_accelerator_without_substance_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"accelerator l4-24g: {field}"):
        replace(find_accelerator("l4-24g"), **{field: value})
