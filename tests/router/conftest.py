"""Makes the helpers beside the tests importable (pytest's importlib mode adds no folder to the path)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
import uvloop


@pytest.fixture(scope="session")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """Tests run on the loop the router runs on."""
    return uvloop.EventLoopPolicy()
