"""Leader election over the Lease `penstock-operator`: one process writes, the others stay warm.

kopf's peering is not used: two peers of equal priority freeze each other and nobody works.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from penstock.operator.decisions.election import LEASE_S, RETRY_S, LeaseSeen, may_write, step
from penstock.operator.decisions.writes import Ref
from penstock.operator.shell.kube import ApiError, Kube, Unreachable

LEASE_NAME = "penstock-operator"
log = logging.getLogger(__name__)


class Leader:
    """This process's part in the election. `holds()` is asked before every single write."""

    def __init__(
        self,
        kube: Kube,
        *,
        namespace: str,
        identity: str,
        random: Callable[[], float],
        won: Callable[[], None] = lambda: None,
    ) -> None:
        self._kube = kube
        self._ref = Ref("coordination.k8s.io/v1", "Lease", namespace, LEASE_NAME)
        self._identity = identity
        self._random = random
        self._won = won
        self._renewed_at: float | None = None
        self._seen: LeaseSeen | None = None
        self._stored: dict[str, Any] = {}
        self.elected = asyncio.Event()
        """Set while this process leads."""

    def holds(self) -> bool:
        """Whether this process may write at this very moment."""
        return may_write(self._renewed_at, asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Campaign and renew until cancelled; on cancellation the lease is released for the next one at once."""
        try:
            while True:
                await self._once()
                self._announce()
                # Jitter keeps contenders that start together from colliding for ever.
                await asyncio.sleep(RETRY_S * (0.8 + 0.4 * self._random()))
        finally:
            await self._release()

    async def _once(self) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            self._look(await self._read(), clock())
            action = step(self._identity, self._seen, clock())
            if action == "wait":
                self._renewed_at = None
                return
            self._stored = await (self._create() if action == "create" else self._write(action == "take over"))
            self._look(self._stored, clock())
            self._renewed_at = began
        except ApiError as error:
            # 409: another was faster. Everything else (403 above all) is said aloud, and tried again.
            if error.code != 409:
                log.warning("leader election failed: %s", error)
        except Unreachable as error:
            log.warning("leader election: the API server does not answer: %s", error)

    def _announce(self) -> None:
        if self.holds() and not self.elected.is_set():
            log.info("leading as %s", self._identity)
            self.elected.set()
            self._won()
        elif not self.holds() and self.elected.is_set():
            log.warning("lost the lease %s: no more writes from here", self._ref)
            self.elected.clear()

    async def _read(self) -> dict[str, Any] | None:
        try:
            return await self._kube.get(self._ref)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def _look(self, stored: dict[str, Any] | None, now: float) -> None:
        if stored is None:
            self._seen, self._stored = None, {}
            return
        self._stored = stored
        spec, version = stored.get("spec", {}), stored["metadata"]["resourceVersion"]
        if self._seen is not None and self._seen.version == version:
            return
        holder = spec.get("holderIdentity") or ""
        duration = float(spec.get("leaseDurationSeconds") or LEASE_S)
        self._seen = LeaseSeen(holder, version, duration, int(spec.get("leaseTransitions") or 0), now)

    async def _create(self) -> dict[str, Any]:
        metadata = {"name": self._ref.name, "namespace": self._ref.namespace}
        return await self._kube.create(self._body(metadata, self._spec(transitions=0, acquired=_now())))

    async def _write(self, take_over: bool) -> dict[str, Any]:
        old = self._stored["spec"]
        transitions = int(old.get("leaseTransitions") or 0) + take_over
        acquired = _now() if take_over else old.get("acquireTime") or _now()
        return await self._kube.replace(self._body(self._stored["metadata"], self._spec(transitions, acquired)))

    async def _release(self) -> None:
        held, self._renewed_at = self.holds(), None
        self.elected.clear()
        if not held or not self._stored:
            return
        spec = {**self._stored["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
        try:
            await self._kube.replace(self._body(self._stored["metadata"], spec))
            log.info("released the lease")
        except (ApiError, Unreachable) as error:
            log.warning("could not release the lease; it runs out in %g s: %s", LEASE_S, error)

    def _spec(self, transitions: int, acquired: str) -> dict[str, Any]:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(LEASE_S),
            "acquireTime": acquired,
            "renewTime": _now(),
            "leaseTransitions": transitions,
        }

    def _body(self, metadata: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
        return {"apiVersion": self._ref.api_version, "kind": self._ref.kind, "metadata": metadata, "spec": spec}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
