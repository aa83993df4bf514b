"""Carrying out what `desired` wants, write by write, and bringing the key back when that fails.

Before every write the lease is asked for; the answer to every write goes into the store, so the next reconcile knows
what this one did even before the watch tells.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.operator.decisions.desired import REFUSED_RETRY_S, desired
from penstock.operator.decisions.naming import digest
from penstock.operator.decisions.observed import Observed
from penstock.operator.decisions.writes import Apply, Delete, Desired, Scale, Write
from penstock.operator.shell.kube import ApiError, Kube, Unreachable
from penstock.operator.shell.metrics import Metrics
from penstock.operator.shell.queue import Key, WorkQueue
from penstock.operator.shell.recorder import Recorder
from penstock.operator.shell.store import KINDS, Store

DRAIN_FRESH_S = 300.0
"""How long the drain script and Services count as in place after they were written: they are not watched (that would
take the right to read every ConfigMap and Service)."""
REFUSING = frozenset({400, 403, 413, 422})
"""Answers that say something about the object, not about the moment."""
ATTEMPTS = 3
"""Looks at a deployment within one reconcile: a refused pod is told in status at once."""

log = logging.getLogger(__name__)
_KINDS = {kind.kind: kind for kind in KINDS}


class NotLeading(Exception):
    """The lease was lost between two writes."""


class _PodRefused(Exception):
    """The dry run of a rendered pod failed."""


@dataclass(slots=True)
class _Memory:
    """What is known about a deployment beside its objects; losing it costs a few writes, nothing else."""

    drain_at: float | None = None
    refusals: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Revision to when and why the API server refused its pod."""
    services: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Service to when it was applied, and the digest of what was."""


class Reconciler:
    """Reconciles keys from the queue with a number of tasks."""

    def __init__(
        self,
        *,
        kube: Kube,
        store: Store,
        queue: WorkQueue,
        recorder: Recorder,
        metrics: Metrics,
        holds: Callable[[], bool],
        endpoint: str = "",
        sidecar_image: str = "",
        more_policies: frozenset[str] = frozenset(),
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._kube = kube
        self._store = store
        self._queue = queue
        self._recorder = recorder
        self._metrics = metrics
        self._holds = holds
        self._endpoint = endpoint
        self._sidecar_image = sidecar_image
        self._more_policies = more_policies
        self._wall = wall
        self._memory: dict[Key, _Memory] = {}

    async def run(self, elected: asyncio.Event) -> None:
        """Take keys and reconcile them, while elected, until cancelled."""
        while True:
            await elected.wait()
            key = await self._queue.take()
            if not self._holds():
                self._queue.done(key, 1.0)
                continue
            await self._one(key)
            self._metrics.depth.set(len(self._queue))

    async def _one(self, key: Key) -> None:
        began, result = time.perf_counter(), "error"
        try:
            self._queue.done(key, await self.reconcile(key))
            result = "done"
        except NotLeading:
            self._queue.done(key, 1.0)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._fail(key, error)
        finally:
            self._metrics.reconcile.labels(result).observe(time.perf_counter() - began)

    def _fail(self, key: Key, error: Exception) -> None:
        least = error.retry_after_s or 0.0 if isinstance(error, ApiError) else 0.0
        wait = self._queue.failed(key, least)
        known = isinstance(error, ApiError | Unreachable)
        self._metrics.errors.labels(type(error).__name__).inc()
        log.warning("%s/%s: %s; again in %.1f s", *key, error, wait, exc_info=None if known else error)

    async def reconcile(self, key: Key) -> float | None:
        """One reconcile of a deployment; gives the seconds after which time alone calls for another.

        Raises `ApiError` or `Unreachable` where a write failed, `NotLeading` where the lease is lost.
        """
        for _ in range(ATTEMPTS):
            seen = self._look(key)
            if seen is None:
                self._memory.pop(key, None)
                self._queue.forget(key)
                return None
            try:
                return await self._carry_out(key, seen, desired(seen))
            except _PodRefused:
                continue
        return REFUSED_RETRY_S

    def _look(self, key: Key) -> Observed | None:
        now, memory = self._wall(), self._memory.setdefault(key, _Memory())
        memory.refusals = {r: said for r, said in memory.refusals.items() if now - said[0] < REFUSED_RETRY_S}
        fresh = memory.drain_at is not None and now - memory.drain_at < DRAIN_FRESH_S
        refusals = {revision: said for revision, (_, said) in memory.refusals.items()}
        memory.services = {name: put for name, put in memory.services.items() if now - put[0] < DRAIN_FRESH_S}
        return self._store.observe(
            key,
            now=now,
            refusals=refusals,
            drain=fresh,
            endpoint=self._endpoint,
            sidecar_image=self._sidecar_image,
            more_policies=self._more_policies,
            services={name: what for name, (_, what) in memory.services.items()},
        )

    async def _carry_out(self, key: Key, seen: Observed, wanted: Desired) -> float | None:
        for write in wanted.writes:
            try:
                await self._write(key, write)
            except ApiError as error:
                if error.code in REFUSING:
                    await self._tell(key, seen, write, error)
                raise
        for event in wanted.events:
            self._recorder.post(event)
        return wanted.requeue_after

    async def _tell(self, key: Key, seen: Observed, write: Write, error: ApiError) -> None:
        """Say in status what the API server refuses; a refused pod is first remembered, so that it is not retried."""
        if isinstance(write, Apply) and write.probe:
            self._memory[key].refusals[write.probe] = (self._wall(), error.message)
            raise _PodRefused from error
        if isinstance(write, Apply) and write.subresource == "status":
            return
        said = desired(seen, failure=f"the API server refuses {write.ref}: {error.message}")
        for status in said.writes:
            if isinstance(status, Apply) and status.subresource == "status":
                await self._write(key, status)
        for event in said.events:
            self._recorder.post(event)

    async def _write(self, key: Key, write: Write) -> None:
        if not self._holds():
            raise NotLeading
        verb, code = type(write).__name__.lower(), "0"
        try:
            await self._send(key, write)
            code = "200"
        except ApiError as error:
            code = str(error.code)
            raise
        finally:
            self._metrics.writes.labels(write.ref.kind, verb, code).inc()

    async def _send(self, key: Key, write: Write) -> None:
        match write:
            case Scale(ref, replicas):
                await self._kube.scale(ref, replicas)
            case Delete(ref, uid):
                await self._kube.delete(ref, uid)
            case Apply():
                stored = await self._kube.apply(write)
                kind = _KINDS.get(write.ref.kind)
                if kind is not None and not write.dry_run:
                    self._store.put(kind, stored)
                if write.ref.kind == "ConfigMap":
                    self._memory[key].drain_at = self._wall()
                elif write.ref.kind == "Service":
                    self._memory[key].services[write.ref.name] = (self._wall(), digest(write.body))
