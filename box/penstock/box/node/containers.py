"""Starting, stopping and entering containers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from penstock.box.node.channel import Exec, StartContainer, receive_fds
from penstock.box.node.forks import CannotStart, Spawner, pipe_to_read, read_all
from penstock.box.node.logs import LogFile, Pump
from penstock.box.node.pods import wait_for
from penstock.box.node.records import ContainerRecord

_START_PATIENCE = 30.0
_DRAIN_PATIENCE = 2.0
_MAX_OUTPUT = 16 << 20


@dataclass(slots=True)
class Containers:
    """The life of containers, above the spawner."""

    spawner: Spawner
    _endings: set[asyncio.Future[None]] = field(default_factory=set)
    """Ends being worked on; the loop itself holds tasks only weakly."""

    async def start(self, record: ContainerRecord) -> None:
        """Start a created container; returns once its program executes. Raises CannotStart with the reason."""
        if record.log_path is not None:
            record.log = LogFile(record.log_path)
        tty = record.config.tty
        request = StartContainer(
            root=record.root, argv=record.process.argv, env=record.process.env, cwd=record.process.cwd,
            uid=record.process.uid, gid=record.process.gid, capabilities=record.process.capabilities, tty=tty,
            namespaces=tuple((_own_fd(fd), flag) for flag, fd in record.sandbox.namespaces.items()),
            pid_namespace=f"/proc/{record.sandbox.holder}/ns/pid" if record.sandbox.holder else None,
        )  # fmt: skip

        def launched(pid: int) -> None:
            record.pid = pid
            with contextlib.suppress(ProcessLookupError):  # already over
                record.pidfd = os.pidfd_open(pid)

        try:
            streams = await self._launch(
                request, tty, record.config.stdin, launched, lambda code: self._ended(record, code)
            )
            self._record_start(record, streams)
        except (CannotStart, TimeoutError) as error:
            record.message = str(error) or "the container's process did not start in time"
            record.signal(signal.SIGKILL)
            raise CannotStart(record.message) from error
        finally:
            record.launched.set()

    def _record_start(self, record: ContainerRecord, streams: Streams) -> None:
        record.started_at = time.time_ns()
        with contextlib.suppress(OSError):  # already over
            record.mount_namespace = Path(f"/proc/{record.pid}/ns/mnt").stat().st_ino
        record.stdin = streams.stdin
        log = record.log or LogFile(Path(os.devnull))
        record.log = log
        for name, fd in streams.outputs.items():
            record.pumps[name] = Pump(fd, name, log)

    async def _launch(
        self, request: StartContainer | Exec, tty: bool, stdin: bool, launched: Callable[[int], None],
        on_exit: Callable[[int], None],
    ) -> Streams:  # fmt: skip
        """Fork the process of `request` with fresh streams and wait until its program executes."""
        ends = _terminal() if tty else _pipes(stdin)
        error, error_end = pipe_to_read()
        try:
            launched(await self.spawner.fork(request, (*ends.theirs, error_end), on_exit))
        except BaseException:
            ends.close()
            os.close(error)
            raise
        finally:
            for fd in (*ends.theirs, error_end):
                os.close(fd)
        said = await read_all(error, _START_PATIENCE)
        if said:
            ends.close()
            raise CannotStart(said.decode(errors="replace"))
        return ends.ours()

    def _ended(self, record: ContainerRecord, code: int) -> None:
        record.exit_code = 128 - code if code < 0 else code
        record.finished_at = time.time_ns()
        ending = asyncio.ensure_future(self._drain(record))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    async def _drain(self, record: ContainerRecord) -> None:
        """Kill what shares the container's files, write its last words, and only then call it ended."""
        await record.launched.wait()
        if record.sandbox.holder is not None:
            kill_mount_namespace(record.mount_namespace)
        for pump in tuple(record.pumps.values()):
            if not await wait_for(pump.ended, _DRAIN_PATIENCE):
                pump.close()
        record.exited.set()
        record.close()

    async def stop(self, record: ContainerRecord, grace: float) -> None:
        """SIGTERM, at most `grace` seconds, SIGKILL; returns when the container has ended."""
        if not record.running:
            return
        record.signal(signal.SIGTERM)
        if grace > 0 and await wait_for(record.exited, grace):
            return
        record.signal(signal.SIGKILL)
        await record.exited.wait()

    async def run(self, record: ContainerRecord, argv: list[str], timeout: float) -> tuple[bytes, bytes, int]:
        """Run a command in the container; returns its output, error output and exit code.

        `timeout` in seconds, 0 for none. Raises TimeoutError after having killed it, CannotStart.
        """
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        pids: list[int] = []
        streams = await self._launch(self._exec(record, argv, tty=False), False, False, pids.append, _setter(ended))
        limit = timeout or 365 * 86400.0
        reads = [asyncio.ensure_future(read_all(fd, limit, _MAX_OUTPUT)) for fd in streams.outputs.values()]
        try:
            code = await asyncio.wait_for(asyncio.shield(ended), limit)
            # A child left behind in the background may hold the pipes open for ever.
            await asyncio.wait(reads, timeout=_DRAIN_PATIENCE)
        except (TimeoutError, asyncio.CancelledError):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pids[0], signal.SIGKILL)
            raise
        finally:
            for read in reads:
                read.cancel()
            results = await asyncio.gather(*reads, return_exceptions=True)
        out, err = (result if isinstance(result, bytes) else b"" for result in results)
        return out, err, 128 - code if code < 0 else code

    def _exec(self, record: ContainerRecord, argv: list[str], *, tty: bool) -> Exec:
        if not record.running:
            raise CannotStart(f"container {record.config.metadata.name} is not running")
        if not argv:
            raise CannotStart("no command given")
        env = (*record.process.env, ("TERM", "xterm")) if tty else record.process.env
        return Exec(record.pid, tuple(argv), env, record.process.cwd, record.process.capabilities, tty)

    async def join(
        self, record: ContainerRecord, argv: list[str], fds: tuple[int, ...], *, tty: bool
    ) -> tuple[int, asyncio.Future[int]]:
        """Run a command in the container on the caller's streams, or console socket: (pid, exit code to come)."""
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        error, error_end = pipe_to_read()
        try:
            pid = await self.spawner.fork(self._exec(record, argv, tty=tty), (*fds, error_end), _setter(ended))
        finally:
            os.close(error_end)
        said = await read_all(error, _START_PATIENCE)
        if said:
            raise CannotStart(said.decode(errors="replace"))
        return pid, ended


def _setter(future: asyncio.Future[int]) -> Callable[[int], None]:
    return lambda code: None if future.done() else future.set_result(code)


def _own_fd(fd: int) -> str:
    return f"/proc/{os.getpid()}/fd/{fd}"


def kill_mount_namespace(inode: int) -> None:
    """SIGKILL every process in a mount namespace: all of a container that has no pid namespace of its own."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if (entry / "ns/mnt").stat().st_ino == inode:
                os.kill(int(entry.name), signal.SIGKILL)


@dataclass(slots=True)
class Streams:
    """Our ends of a process's streams: where to write its input (-1: nowhere), what to read by stream name."""

    stdin: int
    outputs: dict[str, int]


@dataclass(slots=True)
class _Ends:
    theirs: tuple[int, ...]
    inputs: int
    outputs: dict[str, int]
    console: socket.socket | None = None

    def ours(self) -> Streams:
        if self.console is None:
            return Streams(self.inputs, self.outputs)
        with self.console:
            _byte, fds = receive_fds(self.console, 1, 1)
        return Streams(fds[0], {"stdout": os.dup(fds[0])})

    def close(self) -> None:
        for fd in self.outputs.values():
            os.close(fd)
        if self.inputs >= 0:
            os.close(self.inputs)
        if self.console is not None:
            self.console.close()


def _pipes(stdin: bool) -> _Ends:
    out, out_end = pipe_to_read()
    err, err_end = pipe_to_read()
    if stdin:
        in_end, inputs = os.pipe2(os.O_CLOEXEC)
    else:
        in_end, inputs = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), -1
    return _Ends((in_end, out_end, err_end), inputs, {"stdout": out, "stderr": err})


def _terminal() -> _Ends:
    ours, theirs = socket.socketpair()
    return _Ends((theirs.detach(),), -1, {}, ours)
