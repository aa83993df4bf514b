"""The first process of a node: forks everything that runs there and buries it.

Starting a container means forking a process and rearranging its namespaces. The server cannot fork (gRPC's
threads do not survive it) and starting an interpreter per container would cost 100 ms, so this single-threaded
process, forked before gRPC is loaded, does it on request in a few. As process 1 of the node's pid namespace it is
everyone's parent: it reaps, reports each end to the server, and when it ends the kernel ends the whole node.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
from collections.abc import Callable

from penstock.box.node import linux, sandbox
from penstock.box.node.channel import (
    Exec,
    Exited,
    OpenSandbox,
    Request,
    RunProgram,
    StartContainer,
    Started,
    receive,
    send,
)
from penstock.box.node.launch import enter_container, launch_container, run_program


def serve(sock: socket.socket, server_pid: int) -> int:
    """Answer the server's requests until it ends; returns its exit code."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    gc.collect()
    gc.freeze()  # the collector would otherwise touch, and so copy, every page a child shares with us
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(wake_read, select.POLLIN)
    while True:
        ready = {fd for fd, _event in poll.poll()}
        # A request before the ends: the answer that names a process must precede the news of its end.
        if sock.fileno() in ready:
            try:
                _answer(sock, own_pids)
            except (EOFError, ConnectionError):  # the server has ended, or is about to
                return os.waitstatus_to_exitcode(os.waitpid(server_pid, 0)[1])
        if wake_read in ready:
            os.read(wake_read, 4096)
            status = _bury(sock, server_pid)
            if status is not None:
                return os.waitstatus_to_exitcode(status)


def _answer(sock: socket.socket, own_pids: int) -> None:
    message, fds = receive(sock)
    assert isinstance(message, tuple)
    number, request = message
    try:
        answer = Started(number, _fork_for(request, fds, own_pids))
    except OSError as error:
        answer = Started(number, 0, str(error))
    finally:
        for fd in fds:
            os.close(fd)
    send(sock, answer)


def _bury(sock: socket.socket, server_pid: int) -> int | None:
    """Reap every ended process and tell the server; returns the server's own status once it has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == 0:
            return None
        if pid == server_pid:
            return status
        send(sock, Exited(pid, status))


def _fork_for(request: Request, fds: list[int], own_pids: int) -> int:
    match request:
        case StartContainer():
            shared = request.pid_namespace
            return _fork(
                lambda: launch_container(request, fds), fds[-1], own_pids, pids=shared, new_pids=shared is None
            )
        case Exec():
            pids = f"/proc/{request.target}/ns/pid"
            return _fork(lambda: enter_container(request, fds), fds[-1], own_pids, pids=pids)
        case OpenSandbox():
            return _fork(lambda: sandbox.hold(request, *fds), fds[0], own_pids, new_pids=request.shared_pids)
        case RunProgram():
            return _fork(lambda: run_program(request, fds[0]), fds[-1], own_pids)


def _fork(
    run: Callable[[], None], error: int, own_pids: int, *, pids: str | None = None, new_pids: bool = False
) -> int:
    """Fork a child that calls `run`, in the pid namespace at `pids`, a new one, or ours.

    A process cannot change its own pid namespace, only that of its next children: so we turn, fork, turn back.
    """
    if new_pids:
        linux.unshare(linux.CLONE_NEWPID)
    elif pids is not None:
        fd = os.open(pids, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not os.path.sameopenfile(fd, own_pids):
                linux.setns(fd, linux.CLONE_NEWPID)
        finally:
            os.close(fd)
    try:
        child = os.fork()
        if child == 0:
            _child(run, error)
    finally:
        linux.setns(own_pids, linux.CLONE_NEWPID)
    return child


def _child(run: Callable[[], None], error: int) -> None:
    """Run and never return; a failure goes to the descriptor `error`, whose silent end means success."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        linux.die_with_parent(signal.SIGKILL)
        run()
    except BaseException as failure:
        os.write(error, (str(failure) or repr(failure)).encode())
    finally:
        os._exit(127)
