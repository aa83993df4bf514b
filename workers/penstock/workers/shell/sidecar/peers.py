"""The prefill workers of our deployment, by name service: a headless Service has exactly their pods' addresses.

Asking the cluster's DNS needs no token and no permission, sees a new worker within seconds, and lets go of one that is
leaving as soon as it is no longer ready. An answer that does not come is no answer: what was known is held for a while.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Collection, Iterable

from penstock.workers.decisions.sidecar.prefillers import Address, canonical

log = logging.getLogger("penstock.workers.sidecar")

FRESH_S = 5.0
"""How long an answer counts as new; the cluster's DNS remembers as long."""
SOON_S = 1.0
"""How often an address nobody knows makes us ask again."""
HELD_S = 60.0
"""How long the last answer is held while no new one comes."""
PATIENCE_S = 3.0
"""How long one question may take."""


class Peers:
    """Who the prefill workers are."""

    def __init__(self, service: Address | None, fixed: Iterable[Address] = ()) -> None:
        """`service`: host name and port of the headless Service; `fixed`: workers known for good."""
        self._service = service
        self._fixed = frozenset(fixed)
        self._found: frozenset[Address] = frozenset()
        self._asked = self._answered = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def known(self, named: Collection[Address]) -> frozenset[Address]:
        """Addresses of the prefill workers; asks anew where the last answer is old, or lacks one of `named`."""
        now = asyncio.get_running_loop().time()
        missing = not self._fixed.union(self._found).issuperset(named)
        if self._service is not None and now - self._asked >= (SOON_S if missing else FRESH_S):
            self._asked = now
            self._asking = asyncio.create_task(self._ask(*self._service))
        if missing and self._asking is not None:
            await asyncio.wait([self._asking])
        return self._fixed | self._found

    async def _ask(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE_S):
                answers = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self._found = frozenset((canonical(str(answer[4][0])), port) for answer in answers)
        except socket.gaierror as error:
            if error.errno not in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
                self._hold(str(error))
                return
            self._found = frozenset()  # nobody is there, and that is an answer
        except (OSError, TimeoutError) as error:
            self._hold(str(error) or "no answer in time")
            return
        self._answered = loop.time()

    def _hold(self, why: str) -> None:
        age = asyncio.get_running_loop().time() - self._answered
        log.warning("the prefill workers' Service cannot be looked up (%s); the last answer is %.0f s old", why, age)
        if age > HELD_S:
            self._found = frozenset()

    def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
