"""Small clusters and workloads that several tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from penstock.core.models import LatencyProfile, ModelArchitecture, ProfileSource, find_model
from penstock.simulator import Scenario, parse_nodes

sys.path.insert(0, str(Path(__file__).parent))  # for the helper modules of this folder

PROFILE = LatencyProfile((10, 0.1, 1e-6), (20, 0.2, 1e-4), ProfileSource.BENCHMARK, "made up")


@pytest.fixture(scope="session")
def model() -> ModelArchitecture:
    found = find_model("llama-3.1-8b")
    assert found is not None
    return found


@pytest.fixture
def scenario(model: ModelArchitecture) -> Scenario:
    """Four workers on two nodes, each with room for 20,000 tokens."""
    return Scenario(model, parse_nodes("a100-80g=2x2"), profile=PROFILE, kv_capacity=20_000, max_context=8192)
