"""What the runtime remembers of sandboxes and containers. It lives and dies with the node's processes, so does this."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.box.node.channel import RootPlan
from penstock.box.node.images import BoxImage
from penstock.box.node.logs import LogFile, Pump
from penstock.box.node.plan import Process


def new_id() -> str:
    """A name for a sandbox or container: 64 hex digits, as the common runtimes give."""
    return secrets.token_hex(32)


@dataclass(slots=True)
class Sandbox:
    """A pod's namespaces."""

    id: str
    config: Any
    created_at: int
    address: str | None = None
    """Held until the sandbox is stopped; None with the node's network."""
    namespaces: dict[int, int] = field(default_factory=dict)
    """CLONE_NEW* flag -> descriptor that keeps the namespace alive, empty once stopped."""
    holder: int | None = None
    """Process 1 of the pod's shared pid namespace, where it has one."""
    ready: bool = True

    @property
    def hostname(self) -> str:
        """The name its containers see: the kubelet gives none to a pod in the node's network."""
        return str(self.config.hostname) or os.uname().nodename


@dataclass(slots=True)
class ContainerRecord:
    """A container from its creation to its removal."""

    id: str
    sandbox: Sandbox
    config: Any
    image: BoxImage
    process: Process
    root: RootPlan
    created_at: int
    log_path: Path | None
    """None where the kubelet wants no log."""
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    message: str = ""
    pid: int = 0
    """First process, in the node's pid namespace; 0 before it starts."""
    pidfd: int = -1
    mount_namespace: int = 0
    """Inode of the mount namespace: every process in it belongs to this container."""
    log: LogFile | None = None
    pumps: dict[str, Pump] = field(default_factory=dict)
    """By stream: stdout and stderr, or stdout alone on a terminal."""
    stdin: int = -1
    """Our end of the container's standard input: a pipe, or its terminal."""
    launched: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the start has succeeded or failed: until then its end, however quick, is not yet told."""
    exited: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> bool:
        """Whether its first process has started and its end is not yet recorded."""
        return self.pid != 0 and not self.exited.is_set()

    def signal(self, number: int) -> None:
        """Signal the first process; one that is gone is not an error."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Let go of every descriptor."""
        for pump in self.pumps.values():
            pump.close()
        if self.log is not None:
            self.log.close()
        for fd in {self.pidfd, self.stdin} - {-1}:
            os.close(fd)
        self.pidfd = self.stdin = -1


class Shelf:
    """All sandboxes and containers, found by id."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, Sandbox] = {}
        self.containers: dict[str, ContainerRecord] = {}

    def containers_of(self, sandbox: Sandbox) -> list[ContainerRecord]:
        """The containers of a sandbox, oldest first."""
        return [record for record in self.containers.values() if record.sandbox is sandbox]


def has_labels(labels: Any, wanted: Any) -> bool:
    """Whether `labels` holds every pair of `wanted`."""
    return all(labels.get(key) == value for key, value in wanted.items())
