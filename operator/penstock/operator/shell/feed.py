"""Watching, by kopf: its event handlers feed our store, and it does nothing else.

kopf runs in a thread with a loop of its own, because it cancels every task of its loop when it ends, and it takes the
process's signals when it runs in the main thread. No change handlers, timers or daemons: those write annotations and
finalizers into objects that are not ours to mark. It starts again, with back-off, whenever it ends.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from penstock.operator.shell.kube import connection
from penstock.operator.shell.quiet_kopf import ConnectionInfo, OperatorRegistry, OperatorSettings, kopf
from penstock.operator.shell.store import KINDS, Kind

log = logging.getLogger(__name__)

Sink = Callable[[Kind, str | None, Mapping[str, Any]], None]
"""Called in the main loop's thread with a kind, the event's type (None: listed) and the object."""

RESTART_BASE_S = 1.0
RESTART_CAP_S = 30.0


class Feed:
    """The watches of all kinds, from `start` to `stop`."""

    def __init__(
        self,
        sink: Sink,
        *,
        namespaces: Sequence[str],
        known: Callable[[], Awaitable[None]],
        restarted: Callable[[], None],
        random: Callable[[], float],
    ) -> None:
        self._sink = sink
        self._namespaces = tuple(namespaces)
        self._known = known
        self._restarted = restarted
        self._random = random
        self._main = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_flag: asyncio.Event | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    @property
    def dead(self) -> bool:
        """Whether the watches ended without being told to: only a new process mends that."""
        return self._thread.ident is not None and not self._thread.is_alive() and not self._stopping.is_set()

    async def stop(self, timeout_s: float = 5.0) -> None:
        """End the watches; the thread is a daemon, so a hanging one does not hold up the process."""
        self._stopping.set()
        if self._loop is not None and self._stop_flag is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop_flag.set)
        await asyncio.to_thread(self._thread.join, timeout_s)

    def _run(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            began = self._main.time()
            try:
                self._wait_until_known()
                asyncio.run(self._watch())
            except Exception as error:
                log.warning("the watches ended: %s: %s", type(error).__name__, error)
            if self._stopping.is_set():
                return
            attempt = 0 if self._main.time() - began > 60.0 else attempt + 1
            wait = min(RESTART_CAP_S, RESTART_BASE_S * 2.0**attempt) * (0.5 + 0.5 * self._random())
            log.warning("watching again in %.1f s", wait)
            self._stopping.wait(wait)
            self._main.call_soon_threadsafe(self._restarted)

    def _wait_until_known(self) -> None:
        """kopf looks once which kinds exist: it may start only when all of them do (CRDs can go and come back)."""
        future = asyncio.run_coroutine_threadsafe(self._list(), self._main)
        while not self._stopping.is_set():
            try:
                future.result(timeout=0.5)
                return
            except TimeoutError:
                continue
        future.cancel()

    async def _list(self) -> None:
        await self._known()

    async def _watch(self) -> None:
        self._loop, self._stop_flag = asyncio.get_running_loop(), asyncio.Event()
        if self._stopping.is_set():
            return
        registry, settings = OperatorRegistry(), _settings()
        kopf.on.login(registry=registry, id="login")(_login)
        for kind in KINDS:
            self._register(registry, settings, kind)
        await kopf.operator(
            registry=registry,
            settings=settings,
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=self._stop_flag,
        )

    def _register(self, registry: OperatorRegistry, settings: OperatorSettings, kind: Kind) -> None:
        group, _, version = kind.api_version.rpartition("/")
        if kind.selector:
            settings.watching.label_selectors[_selects(kind)] = kind.selector

        async def seen(event: Any, **_: Any) -> None:
            try:
                self._main.call_soon_threadsafe(self._sink, kind, event["type"], event["object"])
            except RuntimeError:
                pass  # the main loop has ended; so will this one

        name = f"see-{kind.plural}"
        kopf.on.event(group=group, version=version, plural=kind.plural, registry=registry, id=name)(seen)


def _selects(kind: Kind) -> Callable[[Any], bool]:
    def check(resource: Any) -> bool:
        return bool(resource.plural == kind.plural and kind.api_version.rpartition("/")[0] == resource.group)

    return check


def _login(**_: Any) -> ConnectionInfo:
    return connection()


def _settings() -> OperatorSettings:
    """kopf with everything off that writes, or that needs rights beyond reading our kinds."""
    settings = OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True  # no watching of CRDs and namespaces; the store's first list waits for the CRDs
    settings.process.ultimate_exiting_timeout = None  # a thread must not kill the process
    settings.queueing.idle_timeout = 0.5  # an object's task ends soon after its events: a task per live pod is memory
    settings.queueing.exit_timeout = 0.5
    settings.networking.error_backoffs = (0.2, 0.5, 1.0, 2.0)
    settings.watching.reconnect_backoff = 0.5
    settings.watching.connect_timeout = 10.0
    return settings
