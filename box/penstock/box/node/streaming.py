"""exec, attach and port-forward: the box's side of the streaming server.

`kubectl exec` speaks SPDY or WebSockets, which the Go program `cri-streaming` serves with the kubelet's own library.
Two unix sockets join us: over *control* we ask it for URLs; over *runtime* it asks us, one JSON line per stream, to
run a command (its descriptors travel along), to attach, or where a pod's network is.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import termios
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from penstock.box.node import linux
from penstock.box.node.channel import receive_fds
from penstock.box.node.containers import Containers
from penstock.box.node.forks import CannotStart
from penstock.box.node.records import ContainerRecord, Shelf

_PATIENCE = 10.0


@dataclass(slots=True)
class StreamingServer:
    """Where the streaming server is asked for URLs."""

    control: Path

    async def url_for(self, kind: str, request: Any) -> str:
        """A one-time URL for the protocol's Exec, Attach or PortForward request; RuntimeError when there is none."""
        question = {"kind": kind, "request": MessageToDict(request, preserving_proto_field_name=True)}
        try:
            async with asyncio.timeout(_PATIENCE):
                reader, writer = await asyncio.open_unix_connection(self.control)
                with contextlib.closing(writer):
                    writer.write(json.dumps(question).encode() + b"\n")
                    answer = json.loads(await reader.readline() or b"{}")
        except (OSError, TimeoutError) as error:
            raise RuntimeError(f"the node's streaming server does not answer: {error}") from error
        if not answer.get("url"):
            raise RuntimeError(f"the node's streaming server gave no URL: {answer.get('error', 'no reason given')}")
        return str(answer["url"])


@dataclass(slots=True)
class Streams:
    """Answers the streaming server: one connection for each stream a client has open."""

    shelf: Shelf
    containers: Containers
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, path: Path) -> None:
        """Listen at `path` until cancelled."""
        loop = asyncio.get_running_loop()
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - one call, before anything is served
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(64)
            listener.setblocking(False)
            while True:
                connection, _address = await loop.sock_accept(listener)
                task = asyncio.create_task(self._answer(connection))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _answer(self, connection: socket.socket) -> None:
        actions: dict[str, Callable[[dict[str, Any], list[int], socket.socket], Awaitable[dict[str, Any]]]] = {
            "exec": self._exec, "attach": self._attach, "portforward": self._port_forward,
        }  # fmt: skip
        fds: list[int] = []
        with connection:
            try:
                question, fds = await _receive(connection)
                answer = await actions[question["kind"]](question, fds, connection)
            except (CannotStart, LookupError, OSError, ValueError) as error:
                answer = {"error": str(error)}
            finally:
                for fd in fds:
                    with contextlib.suppress(OSError):
                        os.close(fd)
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(connection, json.dumps(answer).encode() + b"\n")

    async def _exec(self, question: dict[str, Any], fds: list[int], connection: socket.socket) -> dict[str, Any]:
        record = self._running(question["container"])
        if question["tty"]:
            return await self._exec_on_terminal(record, question["cmd"], connection)
        pid, ended = await self.containers.join(record, question["cmd"], tuple(fds), tty=False)
        while fds:  # the command has its own now; ours would keep the streams open after it
            os.close(fds.pop())
        return {"exitCode": await _until_gone(ended, connection, pid)}

    async def _exec_on_terminal(
        self, record: ContainerRecord, cmd: list[str], connection: socket.socket
    ) -> dict[str, Any]:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                pid, ended = await self.containers.join(record, cmd, (theirs.fileno(),), tty=True)
            _byte, fds = receive_fds(ours, 1, 1)
        socket.send_fds(connection, [b"{}\n"], fds)
        os.close(fds[0])
        return {"exitCode": await _until_gone(ended, connection, pid)}

    async def _attach(self, question: dict[str, Any], fds: list[int], connection: socket.socket) -> dict[str, Any]:
        record = self._running(question["container"])
        stdin, stdout, stderr = fds
        for name, fd in (("stdout", stdout), ("stderr", stderr)):
            os.set_blocking(fd, False)
            if name in record.pumps:
                record.pumps[name].attached.add(fd)
        relay = InputRelay(record, stdin)
        try:
            await _until_attached_ends(record, connection)
        finally:
            relay.close()
            for pump in record.pumps.values():
                pump.attached -= {stdout, stderr}
        return {"exitCode": 0}  # how the container ended is the pod's status, not the stream's

    async def _port_forward(
        self, question: dict[str, Any], fds: list[int], connection: socket.socket
    ) -> dict[str, Any]:
        sandbox = self.shelf.sandboxes.get(question["sandbox"])
        if sandbox is None or not sandbox.ready:
            raise LookupError(f"pod sandbox {question['sandbox']} is gone")
        fd = sandbox.namespaces.get(linux.CLONE_NEWNET)
        return {"network": f"/proc/{os.getpid()}/fd/{fd}" if fd is not None else ""}

    def _running(self, wanted: str) -> ContainerRecord:
        record = self.shelf.containers.get(wanted)
        if record is None or not record.running:
            raise LookupError(f"container {wanted} is not running")
        return record


class InputRelay:
    """Copies what an attached client types into the container's standard input, as long as both are there."""

    def __init__(self, record: ContainerRecord, source: int) -> None:
        self._record = record
        self._source = source
        os.set_blocking(source, False)
        self._open = record.stdin >= 0
        if self._open:
            asyncio.get_running_loop().add_reader(source, self._copy)

    def _copy(self) -> None:
        try:
            data = os.read(self._source, 4096)
        except BlockingIOError:
            return
        if not data or self._record.stdin < 0:
            self.close()
            if not data and self._record.config.stdin_once and self._record.stdin >= 0:
                os.close(self._record.stdin)
                self._record.stdin = -1
            return
        with contextlib.suppress(OSError):
            os.write(self._record.stdin, data)

    def close(self) -> None:
        """Stop copying; twice does no harm."""
        if self._open:
            asyncio.get_running_loop().remove_reader(self._source)
            self._open = False


async def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The question, one JSON line, and the descriptors that came with it; raises ValueError, TimeoutError."""
    connection.settimeout(_PATIENCE)  # the peer is our own program, which sends the line in one piece
    line, fds = receive_fds(connection, 1 << 20, 3)
    while not line.endswith(b"\n"):
        more = connection.recv(1 << 20)
        if not more:
            raise ValueError("the streaming server closed the connection in the middle of a question")
        line += more
    connection.setblocking(False)
    return json.loads(line), fds


async def _until_gone(ended: asyncio.Future[int], connection: socket.socket, pid: int) -> int:
    """The command's exit code; when the client goes first, the command is killed with all its kin."""
    client = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(connection, 1))
    waits: set[asyncio.Future[Any]] = {ended, client}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    client.cancel()
    code = await ended
    return 128 - code if code < 0 else code


async def _until_attached_ends(record: ContainerRecord, connection: socket.socket) -> None:
    """Until the container ends or the client leaves; meanwhile the client's lines resize the terminal."""
    loop = asyncio.get_running_loop()
    exited = asyncio.ensure_future(record.exited.wait())
    try:
        while not exited.done():
            heard = asyncio.ensure_future(loop.sock_recv(connection, 4096))
            await asyncio.wait({exited, heard}, return_when=asyncio.FIRST_COMPLETED)
            if not heard.done():
                heard.cancel()
                return
            data = heard.result()
            if not data:
                return
            _resize(record, data)
    finally:
        exited.cancel()


def _resize(record: ContainerRecord, lines: bytes) -> None:
    size = json.loads(lines.splitlines()[-1])
    if record.config.tty and record.stdin >= 0:
        packed = struct.pack("HHHH", int(size["height"]), int(size["width"]), 0, 0)
        with contextlib.suppress(OSError):
            fcntl.ioctl(record.stdin, termios.TIOCSWINSZ, packed)
