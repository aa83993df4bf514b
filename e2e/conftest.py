"""One box for all scenarios that need Penstock installed: two nodes of eight accelerators and one with none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from penstock.box.testing import temporary_box, why_no_box
from penstock.core.traces import Trace, parse_trace
from verbs import Cluster

NODES = "a100-80g=2x8,cpu=1x0"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A box with the chart and `examples/quickstart` installed, that example available."""
    if reason := why_no_box():
        pytest.skip(reason)
    with temporary_box(NODES, example="quickstart") as box:
        yield Cluster(Path(box.program("kubectl")), box.kubeconfig, box.paths.control_socket, box.gateway_url)


@pytest.fixture(scope="session")
def azure() -> Callable[[], Trace]:
    """Reads the Azure 2023 conversation trace where it lies; skips where it does not."""
    path = DATA / "AzureLLMInferenceTrace_conv.csv"
    if not path.exists():
        pytest.skip("the Azure conversation trace is not beside this checkout (../shared/data)")
    return lambda: parse_trace(path.read_text().splitlines()).trace
