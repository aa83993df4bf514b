"""Makes the helpers beside the tests importable (pytest's importlib mode adds no folder to the path)."""

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop the router runs on."""
    return {"uvloop": uvloop.new_event_loop}
