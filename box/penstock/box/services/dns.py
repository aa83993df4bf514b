"""The cluster's DNS server, UDP and TCP: answers the cluster's names, refuses all others (the box has no outside)."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable

from dnslib import CNAME, PTR, QTYPE, RCODE, RR, SOA, SRV, A, DNSError, DNSHeader, DNSRecord
from penstock.box.services.zone import Records, Zone, pod_address

_LOG = logging.getLogger(__name__)
TTL_SECONDS = 5
_UDP_BYTES = 512
_UDP_BYTES_MOST = 1232
_TCP_IDLE_SECONDS = 10.0
_MAX_TCP_CLIENTS = 256
_MAX_ALIASES = 8


def answer(query: bytes, zone: Zone, domain: str, *, udp: bool) -> bytes | None:
    """The reply to one DNS message; None for what is not a question (never answer an answer)."""
    try:
        request = DNSRecord.parse(query)
    except (DNSError, ValueError, IndexError, struct.error):
        return _format_error(query)
    if request.header.qr or len(request.questions) != 1:
        return None if request.header.qr else _format_error(query)
    reply = request.reply(ra=0, aa=1)
    _fill(reply, str(request.q.qname).rstrip(".").lower(), request.q.qtype, zone, domain)
    packed: bytes = reply.pack()
    if udp and len(packed) > _udp_limit(request):
        packed = reply.truncate().pack()
    return packed


def _fill(reply: DNSRecord, name: str, kind: int, zone: Zone, domain: str) -> None:
    asked = str(reply.q.qname)
    for _ in range(_MAX_ALIASES):
        records = _find(name, zone, domain)
        if records is None:
            break
        if records.alias is None:
            _add_records(reply, asked, kind, records)
            if not reply.rr:
                reply.add_auth(_authority(domain))
            return
        reply.add_answer(RR(asked, QTYPE.CNAME, rdata=CNAME(records.alias), ttl=TTL_SECONDS))
        asked, name = f"{records.alias}.", records.alias.lower()
    if reply.rr:
        return  # An alias that leads outside: its reader must ask elsewhere.
    if not _ours(name, domain):
        reply.header.aa = 0
        reply.header.rcode = RCODE.REFUSED
        return
    reply.header.rcode = RCODE.NXDOMAIN
    reply.add_auth(_authority(domain))


def _find(name: str, zone: Zone, domain: str) -> Records | None:
    found = zone.get(name)
    if found is None and (address := pod_address(name, domain)):
        return Records(addresses=[address])
    return found


def _ours(name: str, domain: str) -> bool:
    return name == domain or name.endswith((f".{domain}", ".in-addr.arpa", ".ip6.arpa"))


def _add_records(reply: DNSRecord, asked: str, kind: int, records: Records) -> None:
    everything = kind == QTYPE.ANY
    if everything or kind == QTYPE.A:
        for address in records.addresses:
            reply.add_answer(RR(asked, QTYPE.A, rdata=A(address), ttl=TTL_SECONDS))
    if everything or kind == QTYPE.SRV:
        for srv in records.services:
            reply.add_answer(RR(asked, QTYPE.SRV, rdata=SRV(0, 100, srv.port, srv.target), ttl=TTL_SECONDS))
    if everything or kind == QTYPE.PTR:
        for pointer in records.pointers:
            reply.add_answer(RR(asked, QTYPE.PTR, rdata=PTR(pointer), ttl=TTL_SECONDS))


def _authority(domain: str) -> RR:
    times = (1, 7200, 1800, 86400, TTL_SECONDS)
    return RR(domain, QTYPE.SOA, rdata=SOA(f"ns.dns.{domain}", f"hostmaster.{domain}", times), ttl=TTL_SECONDS)


def _udp_limit(request: DNSRecord) -> int:
    sizes = [int(extra.rclass) for extra in request.ar if extra.rtype == QTYPE.OPT]
    return max(_UDP_BYTES, min(sizes[0], _UDP_BYTES_MOST)) if sizes else _UDP_BYTES


def _format_error(query: bytes) -> bytes | None:
    if len(query) < 12 or query[2] & 0x80:
        return None
    header = DNSHeader(id=int.from_bytes(query[:2], "big"), qr=1, rcode=RCODE.FORMERR)
    packed: bytes = DNSRecord(header).pack()
    return packed


Resolve = Callable[[bytes, bool], bytes | None]
"""(message, came over UDP) -> reply."""


class DnsUdp(asyncio.DatagramProtocol):
    """Answers datagrams."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's transport is no subclass of asyncio's

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = self._resolve(data, True)
        if reply is not None and self._transport is not None:
            self._transport.sendto(reply, addr)


class DnsTcp:
    """Answers messages that come with a length before them."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._clients = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until its client is silent for too long."""
        self._clients += 1
        try:
            while self._clients <= _MAX_TCP_CLIENTS:
                async with asyncio.timeout(_TCP_IDLE_SECONDS):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    reply = self._resolve(await reader.readexactly(size), False)
                    if reply is None:
                        return
                    writer.write(len(reply).to_bytes(2, "big") + reply)
                    await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            return  # Silence or a hang-up is how a client says that it is done.
        finally:
            self._clients -= 1
            writer.close()


async def serve_dns(addresses: tuple[str, ...], resolve: Resolve, port: int = 53) -> None:
    """Listen on `addresses`, UDP and TCP; returns when listening, serves until the loop ends."""
    loop = asyncio.get_running_loop()
    tcp = DnsTcp(resolve)
    for address in addresses:
        await loop.create_datagram_endpoint(lambda: DnsUdp(resolve), local_addr=(address, port))
        await asyncio.start_server(tcp.serve, address, port)
        _LOG.info("DNS on %s:%d", address, port)
