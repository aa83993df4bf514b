"""The first process of a box, remembered so that no other process that later has its number is ever taken for it."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from penstock.box.errors import BoxError

_START_TIME_FIELD = 19  # field 22 of proc_pid_stat(5), counted after the command's closing bracket
_KILL_SECONDS = 30.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process of the host: its number and its start (clock ticks since boot)."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Identity of a process that runs; raises ProcessLookupError when it does not."""
        stat = _stat(pid)
        if stat is None:
            raise ProcessLookupError(pid)
        return cls(pid, stat[1])

    @classmethod
    def read(cls, path: Path) -> ProcessIdentity | None:
        """Identity stored in `path`; None when nothing usable is there."""
        try:
            raw = json.loads(path.read_text())
            return cls(int(raw["pid"]), int(raw["started"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Store in `path`."""
        path.write_text(json.dumps(asdict(self)) + "\n")

    def alive(self) -> bool:
        """True while exactly this process runs (one that only waits to be buried does not)."""
        stat = _stat(self.pid)
        return stat is not None and stat[1] == self.started and stat[0] not in "ZX"


def end_box(first: ProcessIdentity) -> None:
    """Kill the box whose `unshare` is `first`, and return when every process in it is gone."""
    if not first.alive():
        return
    # The namespace's own first process, so that `unshare` outlives it and ends only when the kernel has ended all.
    inner = _children(first.pid)
    for pid in inner or [first.pid]:
        _kill(pid)
    deadline = time.monotonic() + _KILL_SECONDS
    while first.alive():
        if time.monotonic() > deadline:
            raise BoxError(f"process {first.pid} of the box does not end; it may wait for a disk: try again, or reboot")
        time.sleep(_POLL_SECONDS)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise BoxError(f"the box belongs to another user (process {pid}): run the command as that user") from error


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _stat(pid: int) -> tuple[str, int] | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[_START_TIME_FIELD])
