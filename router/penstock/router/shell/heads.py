"""Heads in passing: a request's as the worker gets it, an answer's as the client gets it.

What concerns one connection only is dropped on the way, and an answer's body is framed as its client understands.
"""

from typing import NamedTuple

from penstock.core.fleet import Worker
from penstock.router.shell.forms import NOT_FORWARDED, NOT_RETURNED, named_by_connection
from penstock.router.shell.inbound import Inbound
from penstock.router.shell.upstream import UpstreamConnection, returned_fields


def request_head(inbound: Inbound, worker: Worker, forwarded_for: bytes, length: int, target: bytes = b"") -> bytes:
    """Head of a request as the worker gets it, over a body of `length` bytes; `target` where not the client's."""
    dropped = NOT_FORWARDED
    if inbound.connection:
        dropped = dropped | named_by_connection(inbound.connection)
    lines = [
        b"POST %b HTTP/1.1\r\nhost: %b:%d\r\ncontent-length: %d\r\nx-request-id: %b\r\nx-forwarded-for: %b"
        % (target or inbound.target, worker.host.encode(), worker.port, length, inbound.request_id, forwarded_for)
    ]
    lines += [b"%b: %b" % (name, value) for lower, name, value in inbound.fields if lower not in dropped]
    return b"\r\n".join(lines) + b"\r\n\r\n"


class AnswerHead(NamedTuple):
    """An answer's head as the client gets it, and what it says of the body."""

    head: bytes
    chunked: bool
    event_stream: bool
    close: bool
    """Whether the connection ends with this answer."""


def answer_head(connection: UpstreamConnection, inbound: Inbound, *, close: bool) -> AnswerHead:
    """Write the head of the connection's answer, and set `recoded` where its body must be framed anew."""
    dropped = NOT_RETURNED
    framed = chunked = event_stream = False
    for name, value in connection.fields:
        lower = name.lower()
        if lower == b"content-length":
            framed = True
        elif lower == b"transfer-encoding":
            framed = chunked = True
        elif lower == b"content-type":
            event_stream = value.startswith(b"text/event-stream")
        elif lower == b"connection":
            dropped = dropped | named_by_connection(value)
    fields = returned_fields(connection.fields, dropped)
    fields.append(b"x-request-id: " + inbound.request_id)
    bodiless = connection.status in (204, 304)
    if inbound.http_1_0:
        connection.recoded = chunked or not framed
        chunked = False
        close = True
    elif chunked or not (framed or bodiless):
        connection.recoded = not chunked
        chunked = True
        fields.append(b"transfer-encoding: chunked")
    else:
        connection.recoded = False
    if close:
        fields.append(b"connection: close")
    head = b"\r\n".join((connection.status_line, *fields)) + b"\r\n\r\n"
    return AnswerHead(head, chunked, event_stream, close)
