"""One whole answer from a worker, kept instead of passed on: what a prefill leg or a side question gets."""

from collections.abc import Callable

from penstock.core.fleet import Failure
from penstock.router.shell.upstream import UpstreamConnection

MAX_ANSWER = 8 * 1024 * 1024
"""Bytes; a first leg's answer names each block of the prompt, some hundred kilobytes at the most."""


class Answer:
    """Collects a response; tells its owner once, when it is whole or when it will never be."""

    __slots__ = ("_broke", "_connection", "_done", "_parts", "_size", "status")

    def __init__(
        self, done: Callable[[UpstreamConnection, int, bytes], None], broke: Callable[[Failure], None]
    ) -> None:
        """`done` gets the connection (free again), the status and the body."""
        self._done = done
        self._broke = broke
        self._parts: list[bytes] = []
        self._size = 0
        self._connection: UpstreamConnection | None = None
        self.status = 0

    def answered(self, connection: UpstreamConnection, more: bool) -> bool:
        """The head is known; the body is wanted without its framing."""
        self._connection = connection
        self.status = connection.status
        connection.recoded = True
        return True

    def body(self, data: bytes) -> None:
        """Keep a piece."""
        self._size += len(data)
        if self._size <= MAX_ANSWER:
            self._parts.append(data)

    def ended(self) -> None:
        """The answer is whole."""
        connection = self._connection
        assert connection is not None
        connection.recoded = False
        if self._size > MAX_ANSWER:
            connection.abort()
            self._broke(Failure.BAD_RESPONSE)
        else:
            self._done(connection, self.status, b"".join(self._parts))

    def broke(self, failure: Failure) -> None:
        """It will never be whole."""
        if self._connection is not None:
            self._connection.recoded = False
        self._broke(failure)
