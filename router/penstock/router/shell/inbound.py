"""One request as it arrives: what is noted of its head while it is parsed."""

from collections.abc import Callable, Mapping, Sequence

from penstock.router.shell.forms import NOT_FORWARDED, Fault

_NEVER = float("inf")


class Inbound:
    """One request as it arrives."""

    __slots__ = (
        "body",
        "body_until",
        "buffered",
        "connection",
        "expect",
        "fault",
        "field_count",
        "fields",
        "forwarded_for",
        "head_bytes",
        "hosts",
        "http_1_0",
        "keep_alive",
        "length",
        "method",
        "path",
        "request_id",
        "size",
        "target",
        "whole",
    )

    def __init__(self) -> None:
        """Nothing has arrived yet."""
        self.target = b""
        self.path = b""
        """Target without its query."""
        self.method = b""
        self.fields: list[tuple[bytes, bytes, bytes]] = []
        """Header fields a worker may get: name in lower case, name as sent, value."""
        self.field_count = 0
        """Header fields of all kinds."""
        self.head_bytes = 0
        self.hosts = 0
        self.http_1_0 = False
        self.keep_alive = False
        self.connection = b""
        self.expect = b""
        self.forwarded_for = b""
        self.request_id = b""
        self.length = 0
        self.body: list[bytes] = []
        self.body_until = _NEVER
        """Loop time by which the whole body must be here, however steadily it drips."""
        self.size = 0
        self.buffered = 0
        """Bytes counted in the gateway's buffer budget for this request."""
        self.whole = False
        """Whether its last byte has come."""
        self.fault: Fault | None = None

    def read_fields(self, fields: Sequence[tuple[bytes, bytes]]) -> None:
        """Take the header fields (name as sent, value): note what means something here, keep what may be passed on."""
        kept = self.fields
        size = 0
        for name, value in fields:
            size += len(name) + len(value)
            lower = name.lower()
            if lower in NOTED:
                NOTED[lower](self, value)
            if lower not in NOT_FORWARDED:
                kept.append((lower, name, value))
        self.field_count = len(fields)
        self.head_bytes = size + 4 * len(fields)


def _set_host(inbound: Inbound, value: bytes) -> None:
    inbound.hosts += 1


def _set_connection(inbound: Inbound, value: bytes) -> None:
    inbound.connection = inbound.connection + b"," + value if inbound.connection else value


def _set_expect(inbound: Inbound, value: bytes) -> None:
    inbound.expect = value


def _set_length(inbound: Inbound, value: bytes) -> None:
    inbound.length = int(value)


def _set_chunked(inbound: Inbound, value: bytes) -> None:
    inbound.length = max(inbound.length, 1)  # unknown, but there is a body


def _set_request_id(inbound: Inbound, value: bytes) -> None:
    inbound.request_id = value


def _set_forwarded(inbound: Inbound, value: bytes) -> None:
    inbound.forwarded_for = inbound.forwarded_for + b", " + value if inbound.forwarded_for else value


NOTED: Mapping[bytes, Callable[[Inbound, bytes], None]] = {
    b"host": _set_host,
    b"connection": _set_connection,
    b"expect": _set_expect,
    b"content-length": _set_length,
    b"transfer-encoding": _set_chunked,
    b"x-request-id": _set_request_id,
    b"x-forwarded-for": _set_forwarded,
}
"""What to do with the header fields that mean something here, by name in lower case."""
