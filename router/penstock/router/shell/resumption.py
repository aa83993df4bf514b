"""The rest of a broken stream, taken from another worker and rewritten for the client that has its beginning."""

from collections.abc import Callable

from penstock.core.fleet import Failure
from penstock.router.decisions.replay import Rest, Transcript, WorkerError, carry_on
from penstock.router.shell.upstream import UpstreamConnection

_MAX_EVENT = 4 * 1024 * 1024


class Resumption:
    """Takes a continuation's response; gives whole, rewritten events to its owner."""

    __slots__ = ("_announce", "_broke", "_connection", "_ended", "_rest", "_tail", "_transcript", "_write")

    def __init__(
        self,
        rest: Rest,
        transcript: Transcript,
        announce: Callable[[UpstreamConnection], bool],
        write: Callable[[bytes], None],
        ended: Callable[[], None],
        broke: Callable[[Failure], None],
    ) -> None:
        """`announce` says whether the response is wanted, `write` gets events for the client."""
        self._rest = rest
        self._transcript = transcript
        self._announce = announce
        self._write = write
        self._ended = ended
        self._broke = broke
        self._tail = b""
        self._connection: UpstreamConnection | None = None

    def answered(self, connection: UpstreamConnection, more: bool) -> bool:
        """The head is known; the body is wanted without its framing."""
        self._connection = connection
        connection.recoded = True
        return self._announce(connection)

    def body(self, data: bytes) -> None:
        """Rewrite what has become whole."""
        *events, self._tail = (self._tail + data).split(b"\n\n")
        try:
            written = b"".join([carry_on(event, self._rest, self._transcript) for event in events])
        except (WorkerError, KeyError, TypeError, AttributeError):
            self._fail()
            return
        if written:
            self._write(written)
        if len(self._tail) > _MAX_EVENT:
            self._fail()

    def ended(self) -> None:
        """The continuation is whole."""
        assert self._connection is not None
        self._connection.recoded = False
        self._ended()

    def broke(self, failure: Failure) -> None:
        """It broke as well."""
        if self._connection is not None:
            self._connection.recoded = False
        self._broke(failure)

    def _fail(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.recoded = False
            connection.abort()
        self._broke(Failure.BAD_RESPONSE)
