"""What is kept of a stream while it runs, so that another worker can carry on where its worker is lost."""

from penstock.router.decisions.replay import ABORTED, Transcript, wants_usage, whole_chunks, why_not

MAX_PARTIAL = 1024 * 1024


class Aborted(Exception):
    """The worker says that it is about to end: nothing after this is the model's."""


class Keepsake:
    """A stream's request, what the client has of the answer, and a chunk of it that is not whole yet."""

    __slots__ = ("_partial", "_torn", "body", "reason", "tokens", "transcript")

    def __init__(self, body: bytes) -> None:
        """`body`: the request, as a worker without legs would get it."""
        self.body = body
        self.transcript = Transcript()
        self.tokens: list[int] | None = None
        """Tokens of what was said, while a continuation is being asked for."""
        self.reason = ""
        """Why the last break could not be mended."""
        self._partial = b""
        self._torn = False

    def take(self, data: bytes, *, whole: bool) -> bytes:
        """The part of the bytes that came that the client may have: whole chunks only. Raises `Aborted`.

        `whole`: the data ends where a chunk ends. A chunk that breaks off would leave the client waiting for bytes that
        only the lost worker knew.
        """
        if self._torn:
            return data
        if self._partial or not whole:
            data = self._partial + data
            length = whole_chunks(data)
            data, self._partial = data[:length], data[length:]
            if len(self._partial) > MAX_PARTIAL:
                self.transcript.odd = "a chunk of the answer is too large to be kept"
                self._torn = True
                return data + self._partial
        if ABORTED in data:
            raise Aborted
        if data:
            self.transcript.add(data)
        return data

    def mendable(self) -> bool:
        """Whether the rest can be asked for after a break; `reason` says why not."""
        self._partial = b""
        self.tokens = None
        self.transcript.fold()
        self.reason = why_not(self.body, self.transcript)
        return not self.reason

    @property
    def between_events(self) -> bool:
        """Whether an event of our own may follow what the client has. Call after `mendable`."""
        return not (self._torn or self.transcript.in_event)

    def complete(self) -> bool:
        """Whether nothing but the end of the stream is missing. Call after `mendable`."""
        seen = self.transcript
        return self.between_events and (seen.done or (seen.finished and (seen.usage or not wants_usage(self.body))))
