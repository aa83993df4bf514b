# ruff: noqa: PTH101, PTH102, PTH103, PTH106, PTH110, PTH115, PTH116, PTH120, PTH211, S606
# (Between fork and exec we call the kernel by its own names.)
"""What a forked child does to become a container's process: builds its root, changes user, executes.

The order matters. The file tree is built with the powers of the box's root; only then does a container that runs
as another user enter a nested user namespace in which the one user there is bears that number: setuid cannot do
it, because the box itself knows a single user. Nothing may be imported after the root has changed.
"""

from __future__ import annotations

import array  # noqa: F401 - socket.send_fds imports it on first use, when our file tree is gone
import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import termios
from collections.abc import Sequence

from penstock.box.node import linux
from penstock.box.node.channel import Exec, RootPlan, RunProgram, StartContainer, Volume

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = (
    ("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "/proc/self/fd/0"), ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"), ("/dev/ptmx", "pts/ptmx"),
)  # fmt: skip
# As root of the machine a container could still write here, whatever its namespaces.
_PROC_READONLY = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs")
_OLD_ROOT = "/.host"
# <asm-generic/ioctls.h>; Python has names for these from 3.13 on.
_TIOCGPTN = 0x80045430
_TIOCSPTLCK = 0x40045431


def launch_container(plan: StartContainer, fds: Sequence[int]) -> None:
    """Become the container of `plan`; returns only by raising."""
    os.setsid()
    os.umask(0o022)
    for path, kind in plan.namespaces:
        _join(path, kind)
    linux.unshare(linux.CLONE_NEWNS)
    # The kubelet shares the mounts of its folder: without this, ours (and their ends!) would appear in it.
    linux.make_private()
    _build_root(plan.root)
    with contextlib.suppress(FileExistsError):
        os.makedirs(plan.cwd)
    os.chdir(plan.cwd)
    _become(plan.argv, dict(plan.env), plan.capabilities, fds, tty=plan.tty, user=(plan.uid, plan.gid))


def enter_container(plan: Exec, fds: Sequence[int]) -> None:
    """Become a command inside the container of process `plan.target`; returns only by raising."""
    os.setsid()
    kinds = {
        "net": linux.CLONE_NEWNET, "ipc": linux.CLONE_NEWIPC, "uts": linux.CLONE_NEWUTS, "mnt": linux.CLONE_NEWNS,
        "user": linux.CLONE_NEWUSER,
    }  # fmt: skip
    ours = {name: os.readlink(f"/proc/self/ns/{name}") for name in kinds}
    theirs = {name: os.readlink(f"/proc/{plan.target}/ns/{name}") for name in kinds}
    # All are opened before any is entered: /proc changes with the mount namespace, our powers with the user's.
    opened = {
        name: os.open(f"/proc/{plan.target}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        for name in kinds
        if ours[name] != theirs[name]
    }
    for name, fd in opened.items():
        linux.setns(fd, kinds[name])
    os.umask(0o022)
    os.chdir(plan.cwd)
    _become(plan.argv, dict(plan.env), plan.capabilities, fds, tty=plan.tty, user=None)


def run_program(plan: RunProgram, output: int) -> None:
    """Become a program of the node itself, with its output in `output`; returns only by raising."""
    os.setsid()
    _set_streams(os.open("/dev/null", os.O_RDONLY), output, output)
    if plan.fake_chown:
        linux.accept_chown()
    os.execvpe(plan.argv[0], plan.argv, dict(plan.env))


def _join(path: str, kind: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    linux.setns(fd, kind)
    os.close(fd)


# ---- the file tree ----


def _build_root(plan: RootPlan) -> None:
    volumes = (*plan.volumes, *_covered(plan))
    sources = [_open_source(volume) for volume in volumes]
    root = plan.scratch
    linux.mount("tmpfs", root, "tmpfs", linux.MS_NOSUID, "mode=755")
    for path, mode in plan.dirs:
        os.makedirs(root + path, 0o755, exist_ok=True)
        os.chmod(root + path, mode)
    for path, target in plan.links:
        os.symlink(target, root + path)
    for path in plan.binds:
        _make_target(root + path, os.stat(path).st_mode)
        linux.bind(path, root + path, readonly=True)
    for path, text, mode in plan.files:
        _write_file(root + path, text, mode)
    _mount_kernel_trees(root)
    _pivot(root)
    for path in _PROC_READONLY:
        if os.path.exists(path):
            linux.bind(path, path, readonly=True)
    for volume, source in zip(volumes, sources, strict=True):
        _mount_volume(volume, source)
    linux.unmount(_OLD_ROOT)
    os.rmdir(_OLD_ROOT)
    if plan.readonly:
        linux.mount("none", "/", flags=linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY)


def _covered(plan: RootPlan) -> list[Volume]:
    """The host's folders below a writable volume: a Python environment in /tmp, where most pods mount an emptyDir.

    They are mounted once more, over the volume. One below a read-only volume stays covered: nothing can be made there.
    """
    covers = tuple(volume.target.rstrip("/") + "/" for volume in plan.volumes if not volume.readonly)
    return [Volume(path, path, readonly=True) for path in plan.binds if path.startswith(covers)]


def _write_file(path: str, text: str, mode: int) -> None:
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.write(fd, text.encode())
    os.close(fd)


def _mount_kernel_trees(root: str) -> None:
    """/proc of the container's own pid namespace, /sys as it is, and a /dev that is nobody else's."""
    linux.mount("proc", f"{root}/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    linux.bind("/sys", f"{root}/sys", readonly=True)
    linux.mount("tmpfs", f"{root}/dev", "tmpfs", linux.MS_NOSUID | linux.MS_NOEXEC, "mode=755,size=1m")
    for name in _DEVICES:
        _make_target(f"{root}/dev/{name}", stat.S_IFREG)
        linux.bind(f"/dev/{name}", f"{root}/dev/{name}")
    for path, target in _DEVICE_LINKS:
        os.symlink(target, root + path)
    for name, fstype, data in (("shm", "tmpfs", "mode=1777"), ("pts", "devpts", "newinstance,ptmxmode=0666,mode=0620")):
        os.mkdir(f"{root}/dev/{name}", 0o755)
        linux.mount(fstype, f"{root}/dev/{name}", fstype, linux.MS_NOSUID | linux.MS_NOEXEC, data)


def _pivot(root: str) -> None:
    """Change to the new root; the old one stays at `_OLD_ROOT` until the volumes are mounted."""
    os.mkdir(root + _OLD_ROOT, 0o700)
    linux.pivot_root(root, root + _OLD_ROOT)
    os.chdir("/")


def _open_source(volume: Volume) -> int:
    """Hold the volume's source before the root changes, so that links in its path mean what they mean on the host."""
    try:
        return os.open(volume.source, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, f"volume source {volume.source}: {error.strerror}") from error


def _mount_volume(volume: Volume, source: int) -> None:
    try:
        _make_target(volume.target, os.stat(source).st_mode)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        message = f"cannot mount at {volume.target}: the box shows the host's folder there read-only; mount elsewhere"
        raise OSError(error.errno, message) from error
    linux.bind(f"/proc/self/fd/{source}", volume.target, readonly=volume.readonly)
    os.close(source)


def _make_target(path: str, mode: int) -> None:
    """Make sure something of the right kind exists at `path` to mount over."""
    if os.path.exists(path):
        return
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    if stat.S_ISDIR(mode):
        os.mkdir(path, 0o755)
    else:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))


# ---- the process ----


def _become(
    argv: Sequence[str], env: dict[str, str], capabilities: frozenset[int], fds: Sequence[int], *,
    tty: bool, user: tuple[int, int] | None,
) -> None:  # fmt: skip
    """Take the terminal or streams, drop powers, change user (None: already changed) and execute."""
    if tty:
        _open_terminal(fds[0])
    else:
        _set_streams(*fds[:3])
    linux.keep_capabilities(capabilities)
    linux.no_new_privileges()
    if user is not None and user != (0, 0):
        _change_user(*user)
    if os.geteuid() == 0:
        linux.accept_chown()
    try:
        os.execvpe(argv[0], list(argv), env)
    except (FileNotFoundError, NotADirectoryError):
        reason = "no such file or directory" if "/" in argv[0] else "executable file not found in $PATH"
        raise OSError(f'exec: "{argv[0]}": {reason}') from None
    except OSError as error:
        raise OSError(f'exec: "{argv[0]}": {error.strerror}') from None


def _change_user(uid: int, gid: int) -> None:
    """Enter a user namespace in which the box's one user is `uid` and its one group `gid`."""
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"), ("uid_map", f"{uid} {outer_uid} 1"), ("gid_map", f"{gid} {outer_gid} 1"),
    ):  # fmt: skip
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(fd, text.encode())
        os.close(fd)


def _set_streams(stdin: int, stdout: int, stderr: int) -> None:
    for target, fd in enumerate((stdin, stdout, stderr)):
        os.dup2(fd, target, inheritable=True)


def _open_terminal(console: int) -> None:
    """Open a terminal of the container's own, make it ours, and send its controlling end over the socket `console`."""
    lead = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    number = struct.unpack("i", fcntl.ioctl(lead, _TIOCGPTN, struct.pack("i", 0)))[0]
    fcntl.ioctl(lead, _TIOCSPTLCK, struct.pack("i", 0))
    follow = os.open(f"/dev/pts/{number}", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(follow, termios.TIOCSCTTY, 0)
    with socket.socket(fileno=os.dup(console)) as channel:
        socket.send_fds(channel, [b"t"], [lead])
    _set_streams(follow, follow, follow)
