"""A whole box for the tests in this folder: two nodes with GPUs, nothing installed, one per test session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop
from penstock.box.lifecycle import Box
from penstock.box.testing import temporary_box, why_no_box


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The usual loop; uvloop too where a module's marker asks for both."""
    usual = {"asyncio": asyncio.new_event_loop}
    asks = item.get_closest_marker("asyncio")
    return {**usual, "uvloop": uvloop.new_event_loop} if asks and "loop_factories" in asks.kwargs else usual


@pytest.fixture(scope="session")
def box() -> Iterator[Box]:
    """A running box: `.kubeconfig`, `.program("kubectl")`, `.kill_node(...)`; see `penstock.box.testing.kubectl`."""
    if reason := why_no_box():
        pytest.skip(reason)
    with temporary_box("h100-80g=1x8,a100-80g=1x8") as running:
        yield running
