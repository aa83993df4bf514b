"""The system calls of namespaces and mounts that Python 3.11 has no function for.

Every function raises `OSError` with the call's errno. Nothing here decides anything.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 1

# Call numbers; mount_setattr has the same one everywhere, pivot_root and the chown family do not.
_NR_MOUNT_SETATTR = 442
_NR_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NR_CHOWN_FAMILY = {"x86_64": (92, 93, 94, 260), "aarch64": (54, 55)}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags` (CLONE_NEW*) for new ones."""
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def setns(fd: int, kind: int) -> None:
    """Join the namespace that `fd` refers to; `kind` is its CLONE_NEW* flag."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), f"setns({kind:#x})")


def mount(source: str, target: str, fstype: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """mount(2)."""
    result = _libc.mount(
        source.encode(), target.encode(), fstype.encode() if fstype else None, ctypes.c_ulong(flags),
        data.encode() if data else None,
    )  # fmt: skip
    _check(result, f"mount {source} on {target}")


def bind(source: str, target: str, *, readonly: bool = False) -> None:
    """Bind `source` with everything mounted below it on `target`."""
    mount(source, target, flags=MS_BIND | MS_REC)
    if readonly:
        make_readonly(target)


def make_private() -> None:
    """Stop mounts made here from appearing in the namespace we came from, and the other way round."""
    mount("none", "/", flags=MS_REC | MS_PRIVATE)


def make_readonly(target: str) -> None:
    """Make the mount at `target`, and those below it, read-only.

    Kernels before 5.12 cannot do it recursively: there only the upper mount becomes read-only.
    """
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_NR_MOUNT_SETATTR), ctypes.c_int(_AT_FDCWD), target.encode(), ctypes.c_uint(_AT_RECURSIVE),
        attributes, ctypes.c_size_t(len(attributes)),
    )  # fmt: skip
    if result == -1 and ctypes.get_errno() == errno.ENOSYS:
        kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
        mount("none", target, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | kept)
        return
    _check(result, f"make {target} read-only")


def unmount(target: str) -> None:
    """Detach the mount at `target` and all below it."""
    _check(_libc.umount2(target.encode(), ctypes.c_int(MNT_DETACH)), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """Make `new_root` the root of this mount namespace and hang the old one at `put_old` (below it)."""
    number = _NR_PIVOT_ROOT[platform.machine()]
    result = _libc.syscall(ctypes.c_long(number), new_root.encode(), put_old.encode())
    _check(result, f"pivot_root {new_root}")


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send us `signal_number` when the thread that forked us ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal_number), 0, 0, 0), "prctl(PDEATHSIG)")


def no_new_privileges() -> None:
    """Let no later exec gain privileges (setuid files included)."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0), "prctl(NO_NEW_PRIVS)")


def keep_capabilities(kept: frozenset[int]) -> None:
    """Drop every capability outside `kept` from the bounding set: root loses it at the next exec."""
    for number in range(64):
        if number in kept:
            continue
        if _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0) == -1:
            if ctypes.get_errno() == errno.EINVAL:  # above the kernel's last capability
                return
            _check(-1, f"drop capability {number}")


def accept_chown() -> None:
    """Make chown and its kin succeed without doing anything, for us and all we start.

    In the box every file belongs to the one user there is, and a container that runs as another user sees
    that user as itself (a nested user namespace). So a change of owner has nothing to change; but the kernel
    refuses it with EINVAL, on which the kubelet fails a volume and tar a copy.
    """
    machine = platform.machine()
    calls = _NR_CHOWN_FAMILY[machine]
    load, jump_equal, give = 0x20, 0x15, 0x06
    allow, errno_zero = 0x7FFF0000, 0x00050000
    program = [(load, 0, 0, 4), (jump_equal, 0, len(calls) + 1, _AUDIT_ARCH[machine]), (load, 0, 0, 0)]
    program += [(jump_equal, len(calls) - index, 0, number) for index, number in enumerate(calls)]
    program += [(give, 0, 0, allow), (give, 0, 0, errno_zero)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    _check(_libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), head, 0, 0), "prctl(SECCOMP)")
