"""One supervised process: started, watched, restarted with a growing pause, or held down on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
# After this many seconds alive a process has earned a short pause again.
_SETTLED_SECONDS = 10.0
_LOG_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. `descriptors` stay open in the child under the same numbers."""

    name: str
    kind: str
    arguments: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    descriptors: tuple[int, ...] = ()


class SupervisedProcess:
    """Keeps a command running until it is held or the box ends."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.restarts = 0
        self._process: asyncio.subprocess.Process | None = None
        # Cleared while someone holds the process down on purpose.
        self._wanted = asyncio.Event()
        self._wanted.set()

    def describe(self) -> dict[str, object]:
        """Name, kind, state (`Running`, `Restarting`, `Held`), pid inside the box and number of restarts."""
        alive = self._process is not None and self._process.returncode is None
        state = "Running" if alive else "Restarting" if self._wanted.is_set() else "Held"
        pid = self._process.pid if alive and self._process else None
        return {
            "name": self.command.name,
            "kind": self.command.kind,
            "state": state,
            "pid": pid,
            "restarts": self.restarts,
        }

    async def run(self) -> None:
        """Run and restart for ever; ends by cancellation only."""
        pause = _FIRST_PAUSE
        while True:
            await self._wanted.wait()
            started = time.monotonic()
            await self._run_once()
            if not self._wanted.is_set():
                pause = _FIRST_PAUSE
                continue
            self.restarts += 1
            pause = _FIRST_PAUSE if time.monotonic() - started > _SETTLED_SECONDS else min(2 * pause, _LONGEST_PAUSE)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))

    async def _run_once(self) -> None:
        # Appending, so that the log can be cut while the process writes to it.
        with self.command.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.command.environment),
                cwd="/",
                pass_fds=self.command.descriptors,
                start_new_session=True,
            )
        await self._process.wait()

    async def kill(self, *, hold: bool) -> bool:
        """SIGKILL; with `hold` it stays down until `release`. True when something was running."""
        if hold:
            self._wanted.clear()
        process = self._process
        if process is None or process.returncode is not None:
            return False
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
        return True

    def release(self) -> None:
        """Let a held process run again."""
        self._wanted.set()

    def trim_log(self) -> None:
        """Keep the log's size bounded: a full one becomes `<log>.1`, the previous of which is dropped."""
        log = self.command.log
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            older = log.with_name(f"{log.name}.1")
            older.write_bytes(log.read_bytes())
            os.truncate(log, 0)
