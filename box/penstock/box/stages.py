"""What `penstock up` is doing and how long each part took: told while it happens, kept as JSON for the benchmark."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Reporter(Protocol):
    """Someone who watches: a terminal, a log, nobody."""

    def begin(self, stage: str) -> None:
        """A stage begins."""

    def detail(self, text: str, done: int = 0, total: int = 0) -> None:
        """What the stage is at; `total` is 0 when nobody knows what is left."""

    def end(self, stage: str, seconds: float) -> None:
        """The stage ended well."""


class Silent:
    """Nobody watches."""

    def begin(self, stage: str) -> None:
        """Ignored."""

    def detail(self, text: str, done: int = 0, total: int = 0) -> None:
        """Ignored."""

    def end(self, stage: str, seconds: float) -> None:
        """Ignored."""


class Stages:
    """Runs stages one after another and remembers their seconds."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Reporter]:
        """Time the block as stage `name`; a stage that raises is not recorded."""
        self.reporter.begin(name)
        started = time.monotonic()
        yield self.reporter
        self.seconds[name] = round(time.monotonic() - started, 3)
        self.reporter.end(name, self.seconds[name])

    def write(self, path: Path) -> None:
        """Store the seconds by stage, and their sum, as JSON."""
        document = {"stages": self.seconds, "total_seconds": round(sum(self.seconds.values()), 3)}
        path.write_text(json.dumps(document, indent=2) + "\n")
