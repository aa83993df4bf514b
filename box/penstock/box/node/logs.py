"""Container output into the log files the kubelet reads, and to whoever is attached.

A line of such a file is `<time> stdout|stderr F|P <text>`: P marks a piece of a line too long for one. Output is
stamped per read, not per line, so a chatty engine costs one clock reading per 64 KiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

_CHUNK = 1 << 16
_MAX_LINE = 16 << 10


def stamp(nanoseconds: int) -> bytes:
    """A time since the epoch as RFC 3339 with nanoseconds, UTC."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % rest


class LineFormatter:
    """Cuts a stream of bytes into log lines; what has no line end yet waits for the next call."""

    def __init__(self, stream: str) -> None:
        self._full = b" " + stream.encode() + b" F "
        self._part = b" " + stream.encode() + b" P "
        self._rest = b""

    def feed(self, data: bytes, now: int) -> bytes:
        """Log lines for `data` at `now` (nanoseconds since the epoch); empty data ends the stream."""
        at = stamp(now)
        *lines, rest = (self._rest + data).split(b"\n")
        pieces: list[bytes] = []
        for line in lines:
            self._cut(line, at, pieces, self._full)
        if not data and rest:
            self._cut(rest, at, pieces, self._full)
            rest = b""
        while len(rest) > _MAX_LINE:
            pieces += (at, self._part, rest[:_MAX_LINE], b"\n")
            rest = rest[_MAX_LINE:]
        self._rest = rest
        return b"".join(pieces)

    def _cut(self, line: bytes, at: bytes, pieces: list[bytes], last: bytes) -> None:
        while len(line) > _MAX_LINE:
            pieces += (at, self._part, line[:_MAX_LINE], b"\n")
            line = line[_MAX_LINE:]
        pieces += (at, last, line, b"\n")


class LogFile:
    """The file of one container, reopened when the kubelet has renamed it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self.reopen()

    def reopen(self) -> None:
        """Open the path anew (creating it) and let go of the old file."""
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def write(self, data: bytes) -> None:
        """Append; a full disk loses lines, never the container."""
        with contextlib.suppress(OSError):
            os.write(self._fd, data)

    def close(self) -> None:
        """Close the file; twice does no harm."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Pump:
    """Moves one output stream of a container into its log file and to those attached, on the event loop."""

    def __init__(self, fd: int, stream: str, log: LogFile, clock: Callable[[], int] = time.time_ns) -> None:
        self._fd = fd
        self._log = log
        self._clock = clock
        self._lines = LineFormatter(stream)
        self.attached: set[int] = set()
        """Descriptors that get a copy of the output; one that cannot take it at once misses it."""
        self.ended = asyncio.Event()
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last process of a terminal is gone
            data = b""
        lines = self._lines.feed(data, self._clock())
        if lines:
            self._log.write(lines)
        if not data:
            self.close()
            return
        for fd in tuple(self.attached):
            self._copy(fd, data)

    def _copy(self, fd: int, data: bytes) -> None:
        try:
            os.write(fd, data)
        except BlockingIOError:
            pass
        except OSError:
            self.attached.discard(fd)

    def close(self) -> None:
        """Stop reading; twice does no harm."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self.ended.set()
