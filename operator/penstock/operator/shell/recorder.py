"""Events for `kubectl describe`: bounded, deduplicated, and never in the way of a reconcile."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from penstock.operator.decisions.writes import Event
from penstock.operator.shell.kube import ApiError, Kube, Unreachable
from penstock.operator.shell.metrics import Metrics

WAITING = 1000
"""Events that may wait to be posted; more are dropped and counted."""
REMEMBERED = 4096
QUIET_S = 600.0
"""An equal event within this time is not posted again."""
NOTE_LIMIT = 1024
"""The API's own limit of an event's note."""

log = logging.getLogger(__name__)


class Recorder:
    """Posts events in the background. `run` does the posting."""

    def __init__(self, kube: Kube, metrics: Metrics, *, instance: str, clock: Callable[[], float]) -> None:
        self._kube = kube
        self._metrics = metrics
        self._instance = instance
        self._clock = clock
        self._queue: asyncio.Queue[Event] = asyncio.Queue(WAITING)
        self._posted: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def post(self, event: Event) -> None:
        """Post soon, unless an equal one was posted lately."""
        now = self._clock()
        last = self._posted.get(event.dedupe)
        if last is not None and now - last < QUIET_S:
            return
        self._posted[event.dedupe] = now
        self._posted.move_to_end(event.dedupe)
        if len(self._posted) > REMEMBERED:
            self._posted.popitem(last=False)
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._metrics.events_dropped.inc()

    async def run(self) -> None:
        """Post until cancelled. A lost event is counted, not retried: status says the same."""
        while True:
            event = await self._queue.get()
            try:
                await self._kube.create(self._body(event))
            except (ApiError, Unreachable) as error:
                self._metrics.events_dropped.inc()
                log.debug("event %s not posted: %s", event.reason, error)

    def _body(self, event: Event) -> dict[str, Any]:
        now = datetime.now(UTC)
        tag = hashlib.sha256("\0".join((*event.dedupe, now.isoformat())).encode()).hexdigest()[:16]
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{event.regarding.name}.{tag}", "namespace": event.regarding.namespace},
            "eventTime": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "type": event.type,
            "reason": event.reason,
            "action": event.action,
            "note": event.message[:NOTE_LIMIT],
            "regarding": {
                "apiVersion": event.regarding.api_version,
                "kind": event.regarding.kind,
                "namespace": event.regarding.namespace,
                "name": event.regarding.name,
                "uid": event.uid,
            },
            "reportingController": "penstock-operator",
            "reportingInstance": self._instance[:128],
        }
