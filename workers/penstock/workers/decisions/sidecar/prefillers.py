"""Whom a request may have its prompt computed by: what its header names, held against who is known.

The header comes from a client. Taken at its word it would make this process send prompts (and the client's API key)
to any address it can reach, so an address is only ever compared with those of the prefill workers of our own
deployment and KV-compatibility hash; nothing is resolved or dialled because a header says so.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass

HEADER = b"x-prefiller-host-port"
"""The header of the Gateway API Inference Extension's and llm-d's prefill/decode convention."""
MOST_NAMED = 8
"""Addresses one header may name."""
_MOST_BYTES = 512

Address = tuple[str, int]
"""Host (an IP address in canonical form, or a name) and port."""


class BadHeader(ValueError):
    """The header cannot be read; the message is a sentence for the client."""


@dataclass(frozen=True, slots=True)
class Named:
    """The addresses a header names, told apart."""

    known: tuple[Address, ...]
    """Prefill workers, in the header's order."""
    unknown: tuple[Address, ...]
    """What nobody knows; never contacted."""


def read_header(value: bytes) -> tuple[Address, ...]:
    """The addresses in `host:port[,host:port...]`, repetitions left out; raises `BadHeader`."""
    if len(value) > _MOST_BYTES:
        raise BadHeader(f"x-prefiller-host-port has {len(value)} bytes; at most {_MOST_BYTES} are taken")
    found = tuple(dict.fromkeys(parse_address(part) for part in value.decode("latin-1").split(",") if part.strip()))
    if len(found) > MOST_NAMED:
        raise BadHeader(f"x-prefiller-host-port names {len(found)} addresses; at most {MOST_NAMED} are taken")
    return found


def parse_address(text: str) -> Address:
    """`10.0.0.1:8000` or `[fd00::1]:8000` as an address; raises `BadHeader`."""
    host, _, port = text.strip().rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise BadHeader(f"x-prefiller-host-port names {text.strip()[:80]!r}; write host:port, IPv6 hosts in brackets")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return canonical(host), int(port)


def canonical(host: str) -> str:
    """An IP address in its one usual form; names in lower case."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower()


def tell_apart(named: tuple[Address, ...], known: Collection[Address]) -> Named:
    """Split what a header names into who is known and who is not."""
    return Named(tuple(a for a in named if a in known), tuple(a for a in named if a not in known))
