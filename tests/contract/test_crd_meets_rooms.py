"""Where the API and the rooms say the same thing in two places, they say the same."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from penstock.api import AcceleratorClass, Adapter, Link, ModelDeployment, RoutingSpec
from penstock.api.engine_args import OWNED_FLAGS
from penstock.core.models.hardware import LinkKind, known_accelerators
from penstock.operator.decisions.hardware import hardware_of
from penstock.router.decisions import find_policy
from penstock.workers.decisions.adapters import ADAPTERS
from penstock.workers.decisions.adapters.arguments import OWNED

REPOSITORY = Path(__file__).resolve().parents[2]
CATALOGUE: dict[str, Any] = yaml.safe_load(
    (REPOSITORY / "charts" / "penstock" / "files" / "acceleratorclasses.yaml").read_text()
)


def test_link_kinds_are_those_of_the_hardware() -> None:
    assert set(get_args(Link.model_fields["kind"].annotation)) == {kind.value for kind in LinkKind}


def test_adapters_are_those_of_the_workers() -> None:
    assert {adapter.value for adapter in Adapter} == set(ADAPTERS)


def test_the_api_refuses_the_flags_the_adapters_refuse() -> None:
    assert {f"--{flag}" for flag in OWNED_FLAGS} == set(OWNED)


def test_the_default_policy_exists() -> None:
    assert find_policy(RoutingSpec().policy)


@pytest.mark.parametrize("known", known_accelerators(), ids=lambda known: known.name)
def test_the_charts_class_is_the_catalogues_accelerator(known: Any) -> None:
    """Through YAML, quantities and the operator's reading, the figures come out as they went in."""
    stored = {"metadata": {"name": known.name}, "spec": CATALOGUE[known.name]}
    read = hardware_of(AcceleratorClass.read(stored))
    assert read.memory_bytes == pytest.approx(known.memory_bytes, rel=1e-6)
    assert read.memory_bandwidth == pytest.approx(known.memory_bandwidth, rel=1e-6)
    assert read.bf16_flops == pytest.approx(known.bf16_flops, rel=1e-6)
    assert read.fp8_flops == (None if known.fp8_flops is None else pytest.approx(known.fp8_flops, rel=1e-6))
    assert read.link.kind is known.link.kind
    assert read.link.bytes_per_second == pytest.approx(known.link.bytes_per_second)
    assert read.tdp_watts == pytest.approx(known.tdp_watts, abs=0.5)
    assert read.price_per_hour == pytest.approx(known.price_per_hour)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "examples").rglob("modeldeployment.yaml")), ids=str)
def test_examples_use_classes_the_chart_ships(path: Path) -> None:
    spec = ModelDeployment.read(yaml.safe_load(path.read_text())).spec
    assert {name for pool in spec.pools for name in pool.accelerator_classes} <= set(CATALOGUE)
