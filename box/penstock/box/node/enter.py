"""A node's own world: a mount namespace with private system folders, and a pid namespace that ends as one.

The kubelet insists on fixed places in /var, and as root of the machine it would also turn kernel settings. So each
node hides those places behind its own before anything starts. It forks twice, and each of the three processes imports
only what it needs: the outer one waits for the node's whole life, and the spawner must not know gRPC's threads.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.box.node import linux

if TYPE_CHECKING:
    from penstock.box.node.spec import NodeSpec

# The kubelet writes below these whatever it is told; the host's must not change.
_PRIVATE = ("/var/lib", "/var/log")
_READONLY = ("/proc/sys/kernel", "/proc/sys/vm", "/proc/sys/fs")


def run(spec_file: Path) -> int:
    """Enter the node's namespaces and run it there until it ends or we are told to; returns an exit code."""
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWPID)
    linux.make_private()
    first = os.fork()
    if first == 0:
        _guarded(lambda: _first_process(spec_file))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: os.kill(first, signal.SIGKILL))
    _pid, status = os.waitpid(first, 0)
    code = os.waitstatus_to_exitcode(status)
    return 0 if code == -signal.SIGKILL else code


def _first_process(spec_file: Path) -> int:
    """Process 1 of the node: arranges its world, forks the server, and becomes the spawner."""
    linux.die_with_parent(signal.SIGKILL)
    from penstock.box.node import spawner
    from penstock.box.node.spec import SpecError, load

    try:
        spec = load(spec_file)
    except SpecError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    _arrange(spec)
    ours, theirs = socket.socketpair()
    server = os.fork()
    if server == 0:
        ours.close()
        _guarded(lambda: _server(spec, theirs))
    theirs.close()
    return spawner.serve(ours, server)


def _arrange(spec: NodeSpec) -> None:
    """Make the node's folders, and hide the host's behind them."""
    for folder in (spec.state_dir, spec.log_dir, spec.log_dir / "pods", spec.state_dir / "kubelet"):
        folder.mkdir(parents=True, exist_ok=True)
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    for path in _READONLY:
        linux.bind(path, path, readonly=True)
    for path in _PRIVATE:
        make_private_folder(Path(path), spec.state_dir / "stash")
    root = Path("/var/lib/kubelet")
    root.mkdir(exist_ok=True)
    linux.bind(str(spec.state_dir / "kubelet"), str(root))


def _server(spec: NodeSpec, channel: socket.socket) -> int:
    linux.die_with_parent(signal.SIGKILL)
    from penstock.box.node import server

    return server.main(spec, channel)


def make_private_folder(folder: Path, stash: Path) -> None:
    """Put a writable folder over `folder` in which everything it held appears again."""
    stash.mkdir(exist_ok=True)
    linux.bind(str(folder), str(stash))
    held = sorted(path.name for path in stash.iterdir())
    links = {name: (stash / name).readlink() for name in held if (stash / name).is_symlink()}
    linux.mount("tmpfs", str(folder), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    for name in held:
        if name in links:
            (folder / name).symlink_to(links[name])
            continue
        target = folder / name
        target.mkdir() if (stash / name).is_dir() else target.touch()
        linux.bind(str(stash / name), str(target))
    linux.unmount(str(stash))


def _guarded(work: Callable[[], int]) -> None:
    """End this fork with the code of `work`, never returning into the parent's program."""
    code = 1
    try:
        code = work()
    except BaseException as error:
        traceback.print_exception(error)
    finally:
        sys.stderr.flush()
        os._exit(code)
