"""The server's end of the spawner's channel: ask for a process, be told when one ends."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence

from penstock.box.node.channel import Exited, Request, Started, receive, send

ExitCallback = Callable[[int], None]


class CannotStart(RuntimeError):
    """A process could not be started; the message says why, as the process itself saw it."""


class Spawner:
    """Requests to the spawner. Belongs to one event loop; the channel ending ends the program."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._next = 0
        self._answers: dict[int, tuple[asyncio.Future[Started], ExitCallback]] = {}
        self._on_exit: dict[int, ExitCallback] = {}

    def start(self) -> None:
        """Begin to listen; call once the event loop runs."""
        asyncio.get_running_loop().add_reader(self._sock, self._hear)

    def _hear(self) -> None:
        try:
            message, _fds = receive(self._sock)
        except (EOFError, ConnectionError):
            os._exit(1)  # without its parent nothing here can live on
        if isinstance(message, Started):
            future, on_exit = self._answers.pop(message.request)
            if message.pid:  # now, not when the asker wakes: the news of its end may be the very next message
                self._on_exit[message.pid] = on_exit
            if not future.done():
                future.set_result(message)
        elif isinstance(message, Exited):
            callback = self._on_exit.pop(message.pid, None)
            if callback is not None:
                callback(os.waitstatus_to_exitcode(message.status))

    async def fork(self, request: Request, fds: Sequence[int], on_exit: ExitCallback) -> int:
        """Have a process forked; returns its id. `on_exit` gets its exit code, minus the signal if one ended it.

        Raises CannotStart when there is no process. Success says nothing yet about what the process does next.
        """
        self._next += 1
        number = self._next
        future: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
        self._answers[number] = (future, on_exit)
        send(self._sock, (number, request), tuple(fds))
        answer = await future
        if answer.error:
            raise CannotStart(answer.error)
        return answer.pid


async def read_all(fd: int, timeout: float, limit: int = 1 << 16) -> bytes:
    """Read the pipe `fd` (non-blocking) until its end, `limit` bytes or `timeout` seconds; closes it.

    Raises TimeoutError.
    """
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    chunks: list[bytes] = []

    def readable() -> None:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        chunks.append(data)
        if (not data or sum(map(len, chunks)) >= limit) and not ended.done():
            ended.set_result(None)

    loop.add_reader(fd, readable)
    try:
        await asyncio.wait_for(ended, timeout)
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return b"".join(chunks)[:limit]


def pipe_to_read() -> tuple[int, int]:
    """A pipe whose reading end is non-blocking (ours) and whose writing end blocks (a container's)."""
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read, False)
    return read, write
