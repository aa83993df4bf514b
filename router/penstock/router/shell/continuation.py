"""How a broken stream goes on: what another worker is asked, one question after the other, for its rest.

How many tokens the client has only the engine knows: the first question is that, the second is for what is missing.
"""

from typing import Protocol as Interface

from penstock.core.fleet import Failure
from penstock.router.decisions.replay import ask_for_rest, read_tokens, token_question
from penstock.router.shell.keepsake import Keepsake
from penstock.router.shell.leg_call import Answer
from penstock.router.shell.resumption import Resumption
from penstock.router.shell.upstream import ResponseSink, UpstreamConnection


class Owner(Interface):
    """Whose stream it is: the exchange."""

    def put(self, connection: UpstreamConnection, sink: ResponseSink, body: bytes, target: bytes = b"") -> None:
        """Send a request to the connection's worker (`target` where not the client's); the answer goes to `sink`."""
        ...

    def asked_tokens(self, connection: UpstreamConnection) -> None:
        """The tokens are known: ask the same worker for the rest, over this connection if it can be used."""
        ...

    def continued(self, connection: UpstreamConnection) -> bool:
        """Another worker answered; whether its response is the one to go on with."""
        ...

    def pass_events(self, data: bytes) -> None:
        """Give rewritten events to the client."""
        ...

    def rest_ended(self) -> None:
        """The continuation is whole, and ended as a stream ends."""
        ...

    def broke(self, failure: Failure) -> None:
        """This worker did not give the rest either."""
        ...


class Continuation:
    """One worker asked for the rest of one stream."""

    __slots__ = ("_kept", "_owner")

    def __init__(self, kept: Keepsake, owner: Owner) -> None:
        """`kept`: what there is of the stream; it learns the tokens."""
        self._kept = kept
        self._owner = owner

    def ask(self, connection: UpstreamConnection) -> bool:
        """Ask what is to be asked next; True when that is the rest itself."""
        kept, owner = self._kept, self._owner
        text = kept.transcript.text
        if kept.tokens is None and text:
            owner.put(connection, Answer(self._counted, owner.broke), token_question(kept.body, text), b"/tokenize")
            return False
        rest = ask_for_rest(kept.body, kept.transcript, kept.tokens or [])
        taker = Resumption(rest, kept.transcript, owner.continued, owner.pass_events, self._ended, owner.broke)
        owner.put(connection, taker, rest.body)
        return True

    def _counted(self, connection: UpstreamConnection, status: int, answer: bytes) -> None:
        """The tokens of what was said are known, if the worker could tell."""
        self._kept.tokens = read_tokens(answer) if status == 200 else None
        if self._kept.tokens is None:
            connection.pool.give(connection)
            self._owner.broke(Failure.BAD_RESPONSE)
        else:
            self._owner.asked_tokens(connection)

    def _ended(self) -> None:
        """The continuation is whole, if it ended as a stream ends."""
        if self._kept.transcript.done:
            self._owner.rest_ended()
        else:
            self._owner.broke(Failure.RESET)
