"""Tells on the terminal what is being done, with the seconds of each stage; plain lines where there is no terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.status import Status

_PLAIN_SECONDS = 10.0


class TerminalReporter:
    """One line for each stage that ended; while it runs, a line that changes (or a plain line every ten seconds).

    `stages`: how many there will be, so that one sees what is left; 0 where nobody knows.
    """

    def __init__(self, console: Console, stages: int = 0) -> None:
        self._console = console
        self.stages = stages
        self._number = 0
        self._status: Status | None = None
        self._stage = ""
        self._began = 0.0
        self._last_plain = 0.0

    def begin(self, stage: str) -> None:
        """A stage begins."""
        self._number += 1
        self._stage, self._began = stage, time.monotonic()
        self._last_plain = self._began
        if self._console.is_terminal:
            self._status = self._console.status(f"{stage} ...{self._place()}")
            self._status.start()
        else:
            self._plain(f"{stage} ...{self._place()}")

    def detail(self, text: str, done: int = 0, total: int = 0) -> None:
        """What the stage is at; with a total, also what is left to wait for."""
        line = f"{self._stage}: {text}{self._share(done, total)}"
        if self._status is not None:
            self._status.update(line)
        elif time.monotonic() - self._last_plain > _PLAIN_SECONDS:
            self._last_plain = time.monotonic()
            self._plain(line)

    def end(self, stage: str, seconds: float) -> None:
        """The stage ended well."""
        self.close()
        self._console.print(f"[green]ok[/green] {stage} [dim]{seconds:.1f} s[/dim]", highlight=False)

    def close(self) -> None:
        """Take the changing line away; also after a failure."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _place(self) -> str:
        return f" ({self._number} of {self.stages})" if self.stages >= self._number else ""

    def _plain(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _share(self, done: int, total: int) -> str:
        if total <= 0:
            return ""
        spent = time.monotonic() - self._began
        left = f", about {spent / done * (total - done):.0f} s left" if done > total * 0.02 and spent > 5 else ""
        return f" {done}/{total} ({100 * done // total} %{left})"
