"""Idle connections to workers, kept for the next request."""

from collections.abc import Callable

from penstock.core.fleet import Worker
from penstock.router.shell.upstream import UpstreamConnection

MAX_IDLE_PER_WORKER = 256


class Pool:
    """Idle connections to workers, by worker name; the newest is used first so that old ones fall idle."""

    def __init__(self, clock: Callable[[], float], idle_timeout: float) -> None:
        """`clock` in seconds; connections idle longer than `idle_timeout` are closed by `sweep`."""
        self._clock = clock
        self._idle_timeout = idle_timeout
        self._idle: dict[str, list[UpstreamConnection]] = {}

    def take(self, worker: Worker) -> UpstreamConnection | None:
        """An idle connection to a worker, `None` when there is none."""
        idle = self._idle.get(worker.name)
        while idle:
            connection = idle.pop()
            if connection.usable and _same_address(connection.worker, worker):
                return connection
            connection.abort()
        return None

    def give(self, connection: UpstreamConnection) -> None:
        """Keep a connection for the next request, or close it."""
        idle = self._idle.get(connection.worker.name)
        if idle is None:
            idle = self._idle[connection.worker.name] = []
        if connection.usable and len(idle) < MAX_IDLE_PER_WORKER:
            connection.idle_since = self._clock()
            idle.append(connection)
        else:
            connection.abort()

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection is gone; it may have been idle here."""
        idle = self._idle.get(connection.worker.name)
        if idle and connection in idle:
            idle.remove(connection)

    def drop(self, name: str) -> None:
        """Close the idle connections of a worker that is gone."""
        for connection in self._idle.pop(name, []):
            connection.abort()

    def sweep(self, now: float) -> None:
        """Close what was idle too long: before the worker does, so that few requests meet a stale one."""
        for name, idle in list(self._idle.items()):
            fresh = [c for c in idle if now - c.idle_since < self._idle_timeout]
            if len(fresh) < len(idle):
                self._idle[name] = fresh
                for connection in idle:
                    if now - connection.idle_since >= self._idle_timeout:
                        connection.abort()

    def close(self) -> None:
        """Close every idle connection."""
        for name in list(self._idle):
            self.drop(name)

    @property
    def idle(self) -> int:
        """Idle connections, over all workers."""
        return sum(map(len, self._idle.values()))


def _same_address(one: Worker, other: Worker) -> bool:
    """Whether a connection to the one serves the other: what is known of a worker may change while it runs."""
    return one is other or (one.host == other.host and one.port == other.port)
