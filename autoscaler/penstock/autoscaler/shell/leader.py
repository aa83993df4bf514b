"""Leader election over the Lease `penstock-autoscaler`: one process writes, others only measure.

The rules of the election are the operator's pure ones; only the few calls are made here.
"""

import asyncio
import logging
import random
from datetime import UTC, datetime

from penstock.autoscaler.shell.kube import Json, Kube, KubeError
from penstock.operator.decisions.election import LEASE_S, RETRY_S, LeaseSeen, may_write, step

LEASE_NAME = "penstock-autoscaler"
log = logging.getLogger("penstock.autoscaler.leader")


class Leader:
    """This process's part in the election; `holds()` is asked before every write."""

    def __init__(self, kube: Kube, namespace: str, identity: str) -> None:
        self._kube, self._namespace, self._identity = kube, namespace, identity
        self._renewed_at: float | None = None
        self._seen: LeaseSeen | None = None
        self._stored: Json = {}
        self._led = False

    def holds(self) -> bool:
        """Whether this process may write at this very moment."""
        return may_write(self._renewed_at, asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Campaign and renew until cancelled; then the lease is released for the next one."""
        try:
            while True:
                await self._once()
                self._announce()
                await asyncio.sleep(RETRY_S * random.uniform(0.8, 1.2))
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
            stored = await (self._create() if action == "create" else self._write(action == "take over"))
            self._look(stored, clock())
            self._renewed_at = began
        except KubeError as error:
            if error.code != 409:  # Another was faster.
                log.warning("leader election failed", extra={"error": str(error)})

    def _announce(self) -> None:
        if self.holds() != self._led:
            self._led = self.holds()
            log.info("leading" if self._led else "not leading: no more writes from here", extra={"as": self._identity})

    async def _read(self) -> Json | None:
        try:
            return await self._kube.get_lease(self._namespace, LEASE_NAME)
        except KubeError as error:
            if error.code == 404:
                return None
            raise

    def _look(self, stored: Json | None, now: float) -> None:
        self._stored = stored or {}
        if stored is None:
            self._seen = None
            return
        spec, version = stored.get("spec", {}), stored["metadata"]["resourceVersion"]
        if self._seen is None or self._seen.version != version:
            duration = float(spec.get("leaseDurationSeconds") or LEASE_S)
            transitions = int(spec.get("leaseTransitions") or 0)
            self._seen = LeaseSeen(spec.get("holderIdentity") or "", version, duration, transitions, now)

    async def _create(self) -> Json:
        metadata = {"name": LEASE_NAME, "namespace": self._namespace}
        return await self._kube.create_lease(self._namespace, _lease(metadata, self._spec(0, _now())))

    async def _write(self, take_over: bool) -> Json:
        old = self._stored["spec"]
        acquired = _now() if take_over else old.get("acquireTime") or _now()
        spec = self._spec(int(old.get("leaseTransitions") or 0) + take_over, acquired)
        return await self._kube.replace_lease(self._namespace, LEASE_NAME, _lease(self._stored["metadata"], spec))

    async def _release(self) -> None:
        held, self._renewed_at = self.holds(), None
        if not held or not self._stored:
            return
        spec = {**self._stored["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
        try:
            await self._kube.replace_lease(self._namespace, LEASE_NAME, _lease(self._stored["metadata"], spec))
        except KubeError as error:
            log.warning("could not release the lease; it runs out by itself", extra={"error": str(error)})

    def _spec(self, transitions: int, acquired: str) -> Json:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(LEASE_S),
            "acquireTime": acquired,
            "renewTime": _now(),
            "leaseTransitions": transitions,
        }


def _lease(metadata: Json, spec: Json) -> Json:
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
