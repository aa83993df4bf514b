"""Messages with file descriptors between the node's server and its spawner.

Both are forks of one program joined by a private socket pair, so a message is a pickled dataclass behind an
eight-byte length; descriptors travel with the length (SCM_RIGHTS), so they can belong to no other message.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
from dataclasses import dataclass

_LENGTH = struct.Struct("!Q")
_MAX_FDS = 8


@dataclass(frozen=True, slots=True)
class Volume:
    """A host path that appears in a container."""

    source: str
    target: str
    readonly: bool


@dataclass(frozen=True, slots=True)
class RootPlan:
    """What a container's file tree is made of. All paths but `scratch` are absolute inside the container."""

    scratch: str
    """A folder on the host over which the root is built; each container mounts its own there, unseen by others."""
    dirs: tuple[tuple[str, int], ...]
    links: tuple[tuple[str, str], ...]
    """(path, target), made before the binds."""
    files: tuple[tuple[str, str, int], ...]
    binds: tuple[str, ...]
    """Host folders and files that appear read-only under the path they have on the host."""
    volumes: tuple[Volume, ...]
    readonly: bool


@dataclass(frozen=True, slots=True)
class StartContainer:
    """Start a container's first process. Descriptors: stdin, stdout, stderr, error (tty: console, error)."""

    root: RootPlan
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    uid: int
    gid: int
    capabilities: frozenset[int]
    tty: bool
    namespaces: tuple[tuple[str, int], ...]
    """(path of a namespace file, its CLONE_NEW* flag) of the pod's namespaces to join."""
    pid_namespace: str | None
    """The pod's shared process namespace; None gives the container one of its own."""


@dataclass(frozen=True, slots=True)
class Exec:
    """Run a command inside a running container. Descriptors as for StartContainer."""

    target: int
    """Process id of the container's first process, in the node's pid namespace."""
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    capabilities: frozenset[int]
    tty: bool


@dataclass(frozen=True, slots=True)
class OpenSandbox:
    """Make a pod's namespaces. Descriptors: report (carries the process id or the error), hold.

    The process that made them keeps them alive until `hold` is closed; with `shared_pids` it stays for the
    life of the pod, as the first process of the namespace the containers share.
    """

    hostname: str
    network: PodNetwork | None
    """None leaves the pod in the node's network (hostNetwork)."""
    sysctls: tuple[tuple[str, str], ...]
    shared_pids: bool
    own_ipc: bool


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """A pod's one interface."""

    address: str
    prefix: int
    gateway: str
    mac: str
    bridge: str
    host_link: str
    """Name of the end that stays at the bridge, at most 15 characters."""


@dataclass(frozen=True, slots=True)
class RunProgram:
    """Run a program of the node itself (the kubelet, the streaming server). Descriptors: output, error."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    fake_chown: bool


Request = StartContainer | Exec | OpenSandbox | RunProgram


@dataclass(frozen=True, slots=True)
class Started:
    """Answer to a request: the process id in the node's pid namespace, or why there is none."""

    request: int
    pid: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Exited:
    """A process that a request started has ended; `status` as waitpid gives it."""

    pid: int
    status: int


def send(sock: socket.socket, message: object, fds: tuple[int, ...] = ()) -> None:
    """Send one message and copies of `fds`; blocks until it is handed to the kernel."""
    body = pickle.dumps(message)
    head = _LENGTH.pack(len(body))
    if fds:
        socket.send_fds(sock, [head], list(fds))
    else:
        sock.sendall(head)
    sock.sendall(body)


def receive(sock: socket.socket) -> tuple[object, list[int]]:
    """Receive one message and the descriptors that came with it; raises EOFError when the other end is gone."""
    head, fds = receive_fds(sock, _LENGTH.size, _MAX_FDS)
    while 0 < len(head) < _LENGTH.size:
        head += _some(sock, _LENGTH.size - len(head))
    if not head:
        raise EOFError("the other end of the spawner's channel is gone")
    body = bytearray()
    (size,) = _LENGTH.unpack(head)
    while len(body) < size:
        body += _some(sock, size - len(body))
    return pickle.loads(bytes(body)), fds  # noqa: S301 - from our own fork, over a private socket pair


def receive_fds(sock: socket.socket, size: int, limit: int) -> tuple[bytes, list[int]]:
    """Receive bytes and descriptors that no program executed from here will inherit.

    `socket.recv_fds` of Python 3.11 takes flags and ignores them, so it cannot ask the kernel for that.
    """
    data, fds, _flags, _address = socket.recv_fds(sock, size, limit)
    for fd in fds:
        os.set_inheritable(fd, False)
    return data, fds


def _some(sock: socket.socket, limit: int) -> bytes:
    data = sock.recv(limit)
    if not data:
        raise EOFError("the other end of the spawner's channel closed in the middle of a message")
    return data
