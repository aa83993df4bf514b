"""A whole box for the tests in this folder: two nodes with GPUs, nothing installed, one per test session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from penstock.box.lifecycle import Box
from penstock.box.testing import temporary_box, why_no_box


@pytest.fixture(scope="session")
def box() -> Iterator[Box]:
    """A running box: `.kubeconfig`, `.program("kubectl")`, `.kill_node(...)`; see `penstock.box.testing.kubectl`."""
    if reason := why_no_box():
        pytest.skip(reason)
    with temporary_box("h100-80g=1x8,a100-80g=1x8") as running:
        yield running
