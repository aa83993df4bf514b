"""What goes over the wire: request envelope in, errors and heads out. Bytes and structs, no sockets.

A request body is decoded once, into the few fields a decision needs; everything else passes through as the
bytes that came. The one exception: clients may never inject KV-transfer parameters, so where they occur the
body is encoded again without them (each other value byte for byte as it was).
"""

import math
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from penstock.core import wire
from penstock.core.wire import WireError

_ABSENT = msgspec.Raw()
DEFAULT_MAX_TOKENS = 256
"""Output tokens reserved for a request that names no maximum."""
MOST_TOKENS = 2**24
"""A larger maximum is as good as none to any engine; beyond it, sums over requests would leave what numpy counts in."""
BYTES_PER_TOKEN = 4
"""Rough size of a token in a request body; only compared with other estimates made the same way."""


class Envelope(msgspec.Struct):
    """The fields of a completion or chat request that the router looks at."""

    model: str
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    priority: int | None = None
    kv_transfer_params: msgspec.Raw = _ABSENT
    vllm_xargs: msgspec.Raw = _ABSENT

    def output_tokens(self) -> int:
        """The most tokens it may generate, over all its choices; never more than `MOST_TOKENS`."""
        each, choices = self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS, self.n or 1
        if choices == 1 and 1 <= each <= MOST_TOKENS:
            return each
        return min(max(1, each) * max(1, choices), MOST_TOKENS)


_decoder = msgspec.json.Decoder(Envelope)


@dataclass(frozen=True, slots=True)
class Fault:
    """An answer we give ourselves, in OpenAI's error form.

    `close` says that the connection cannot be used further (the message on it was not understood or not
    read whole).
    """

    status: int
    message: str
    code: str
    type: str = "invalid_request_error"
    param: str | None = None
    close: bool = False
    retry_after: float | None = None
    allow: str | None = None

    def body(self) -> bytes:
        """The error object as JSON."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})


def read_envelope(body: bytes) -> Envelope | Fault:
    """Decode a request body, or say what is wrong with it."""
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as bad:
        return _invalid(str(bad))
    except msgspec.DecodeError as bad:
        return Fault(400, f"The request body is not valid JSON: {bad}.", "invalid_json")
    except (UnicodeDecodeError, RecursionError):
        return Fault(400, "The request body is not valid JSON: bad UTF-8 or nested too deep.", "invalid_json")


def _invalid(problem: str) -> Fault:
    if "missing required field `model`" in problem:
        return Fault(400, "You must provide a model parameter.", "missing_model", param="model")
    param = problem.partition("`$.")[2].partition("`")[0] or None
    return Fault(400, f"Invalid request: {problem}.", "invalid_type", param=param)


def strip_transfer_params(body: bytes, envelope: Envelope) -> bytes | Fault:
    """`core.wire`'s, spared the search through a body whose envelope shows that there is nothing to find.

    A fault where fields that the envelope passes over cannot be read.
    """
    if envelope.kv_transfer_params is _ABSENT and envelope.vllm_xargs is _ABSENT:
        return body
    try:
        return wire.strip_transfer_params(body)
    except WireError:
        return Fault(400, "The request body is not valid JSON: bad UTF-8.", "invalid_json")


def reason_phrase(status: int) -> str:
    """`404` -> `Not Found`; a status nobody registered gets a dash."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "-"


def head(status: int, fields: list[bytes], *, length: int, keep_alive: bool) -> bytes:
    """Head of a response of our own: `fields` are whole lines without their line ends."""
    lines = [f"HTTP/1.1 {status} {reason_phrase(status)}".encode(), *fields, b"content-length: %d" % length]
    if not keep_alive:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def fault_response(fault: Fault, request_id: bytes, *, keep_alive: bool) -> bytes:
    """A whole response for a fault."""
    body = fault.body()
    fields = [b"content-type: application/json"]
    if request_id:
        fields.append(b"x-request-id: " + request_id)
    if fault.retry_after is not None:
        fields.append(b"retry-after: %d" % max(1, math.ceil(fault.retry_after)))
    if fault.allow is not None:
        fields.append(b"allow: " + fault.allow.encode())
    return head(fault.status, fields, length=len(body), keep_alive=keep_alive) + body


def error_event(fault: Fault) -> bytes:
    """A server-sent event that carries an error, for streams that break after their first byte."""
    return b"data: " + fault.body() + b"\n\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; empty data would end it, so callers never pass any."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that concern one connection only (RFC 9110 §7.6.1) and are never passed on."""

NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect", b"x-request-id", b"x-forwarded-for"}
"""Request fields that are dropped or written anew towards the worker."""

NOT_RETURNED = HOP_BY_HOP | {b"x-request-id"}
"""Response fields that are dropped or written anew towards the client."""


def named_by_connection(value: bytes) -> frozenset[bytes]:
    """Field names a Connection header declares hop-by-hop besides the usual ones."""
    return frozenset(name.strip().lower() for name in value.split(b",")) - {b"close", b"keep-alive", b""}
