"""Lists of everything: once before the first reconcile, then now and then, and at once after an outage.

A watch that was broken does not tell what was deleted meanwhile; a list does. The first list also waits for what is
not there yet: an API server that starts, CRDs that are installed a moment later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from penstock.operator.shell.kube import ApiError, Kube, Unreachable
from penstock.operator.shell.metrics import Metrics
from penstock.operator.shell.queue import WorkQueue
from penstock.operator.shell.store import KINDS, Kind, Store

SWEEP_S = 60.0
RESYNC_SWEEPS = 10
"""Every so many sweeps each deployment is looked at, whether or not anything seems to have changed."""
RETRY_BASE_S = 0.5
RETRY_CAP_S = 15.0

log = logging.getLogger(__name__)


class Sweeper:
    """Keeps the store true to what the API server has."""

    def __init__(
        self,
        *,
        kube: Kube,
        store: Store,
        queue: WorkQueue,
        metrics: Metrics,
        namespaces: Sequence[str],
        random: Callable[[], float],
    ) -> None:
        self._kube = kube
        self._store = store
        self._queue = queue
        self._metrics = metrics
        self._namespaces: Sequence[str | None] = tuple(namespaces) or (None,)
        self._random = random
        self._soon = asyncio.Event()
        self.synced = asyncio.Event()
        """Set once everything was listed for the first time."""

    def soon(self) -> None:
        """Sweep now: something may have been missed."""
        self._soon.set()

    async def first(self) -> None:
        """List everything, trying until it works."""
        await self.sweep()
        self.synced.set()
        self.resync()

    async def run(self) -> None:
        """Sweep again and again until cancelled."""
        count = 0
        while True:
            try:
                async with asyncio.timeout(SWEEP_S * (0.8 + 0.4 * self._random())):
                    await self._soon.wait()
            except TimeoutError:
                pass
            self._soon.clear()
            await self.sweep()
            count += 1
            if count % RESYNC_SWEEPS == 0:
                self.resync()

    def resync(self) -> None:
        """Look at every deployment, spread over some seconds."""
        for key in self._store.deployments():
            self._queue.add(key, 5.0 * self._random())

    async def sweep(self) -> None:
        """List every kind, trying until it works."""
        attempt = 0
        while True:
            try:
                for kind in KINDS:
                    await self._list(kind)
                return
            except (ApiError, Unreachable) as error:
                wait = min(RETRY_CAP_S, RETRY_BASE_S * 2.0**attempt) * (0.5 + 0.5 * self._random())
                log.warning("cannot list the cluster: %s; again in %.1f s", _explained(error), wait)
                attempt = min(attempt + 1, 10)
                await asyncio.sleep(wait)

    async def _list(self, kind: Kind) -> None:
        for namespace in self._namespaces if kind.namespaced else (None,):
            found = await self._kube.list(kind.api_version, kind.kind, namespace, selector=kind.selector)
            version = int(found["metadata"]["resourceVersion"])
            ghosts = self._store.replace(kind, namespace, version, found.get("items") or ())
            if ghosts:
                self._metrics.stale.labels(kind.kind).inc(ghosts)
                log.info("%d %s had gone unnoticed", ghosts, kind.plural)


def _explained(error: ApiError | Unreachable) -> str:
    if isinstance(error, ApiError) and error.code == 404:
        return f"{error} (are the CRDs of Penstock installed?)"
    return str(error)
