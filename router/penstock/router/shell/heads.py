"""Heads in passing: a request's as the worker gets it, an answer's as the client gets it.

What concerns one connection only is dropped on the way, and an answer's body is framed as its client understands.
"""

from msgspec import Struct
from penstock.core.fleet import Worker
from penstock.router.shell.forms import NOT_RETURNED, named_by_connection
from penstock.router.shell.inbound import Inbound
from penstock.router.shell.upstream import UpstreamConnection


def request_head(inbound: Inbound, worker: Worker, forwarded_for: bytes, length: int, target: bytes = b"") -> bytes:
    """Head of a request as the worker gets it, over a body of `length` bytes; `target` where not the client's."""
    fields = inbound.fields
    if inbound.connection:
        dropped = named_by_connection(inbound.connection)
        fields = [field for field in fields if field[0] not in dropped]
    head = b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\nx-forwarded-for: %b\r\n" % (
        target or inbound.target,
        worker.address.encode(),
        length,
        inbound.request_id,
        forwarded_for,
    )
    for _, name, value in fields:
        head += name + b": " + value + b"\r\n"
    return head + b"\r\n"


class AnswerHead(Struct, frozen=True):
    """An answer's head as the client gets it, and what it says of the body."""

    head: bytes
    chunked: bool
    event_stream: bool
    close: bool
    """Whether the connection ends with this answer."""


def answer_head(connection: UpstreamConnection, inbound: Inbound, *, close: bool) -> AnswerHead:
    """Write the head of the connection's answer, and set `recoded` where its body must be framed anew."""
    dropped = NOT_RETURNED
    if connection.named:
        dropped = dropped | named_by_connection(connection.named)
    event_stream = False
    lines = [connection.status_line]
    for lower, name, value in connection.fields:
        if lower not in dropped:
            lines.append(name + b": " + value)
        if lower == b"content-type":
            event_stream = value.startswith(b"text/event-stream")
    lines.append(b"x-request-id: " + inbound.request_id)
    chunked = connection.chunked
    framed = chunked or connection.sized
    bodiless = connection.status in (204, 304)
    if inbound.http_1_0:
        connection.recoded = chunked or not framed
        chunked = False
        close = True
    elif chunked or not (framed or bodiless):
        connection.recoded = not chunked
        chunked = True
        lines.append(b"transfer-encoding: chunked")
    else:
        connection.recoded = False
    if close:
        lines.append(b"connection: close")
    return AnswerHead(b"\r\n".join(lines) + b"\r\n\r\n", chunked, event_stream, close)
