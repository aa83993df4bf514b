"""From the kubelet's wish for a container to what the spawner must do: pure, so that it can be read and tested.

Errors are `ValueError`s whose sentence reaches the pod's status.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.box.node.channel import RootPlan, Volume
from penstock.box.node.images import TOOLS_FOLDER, BoxImage

# Numbers of <linux/capability.h>; the names are Kubernetes', without CAP_.
CAPABILITIES = {
    name: number
    for number, name in enumerate(
        [
            "CHOWN",
            "DAC_OVERRIDE",
            "DAC_READ_SEARCH",
            "FOWNER",
            "FSETID",
            "KILL",
            "SETGID",
            "SETUID",
            "SETPCAP",
            "LINUX_IMMUTABLE",
            "NET_BIND_SERVICE",
            "NET_BROADCAST",
            "NET_ADMIN",
            "NET_RAW",
            "IPC_LOCK",
            "IPC_OWNER",
            "SYS_MODULE",
            "SYS_RAWIO",
            "SYS_CHROOT",
            "SYS_PTRACE",
            "SYS_PACCT",
            "SYS_ADMIN",
            "SYS_BOOT",
            "SYS_NICE",
            "SYS_RESOURCE",
            "SYS_TIME",
            "SYS_TTY_CONFIG",
            "MKNOD",
            "LEASE",
            "AUDIT_WRITE",
            "AUDIT_CONTROL",
            "SETFCAP",
            "MAC_OVERRIDE",
            "MAC_ADMIN",
            "SYSLOG",
            "WAKE_ALARM",
            "BLOCK_SUSPEND",
            "AUDIT_READ",
            "PERFMON",
            "BPF",
            "CHECKPOINT_RESTORE",
        ]
    )
}
# What the common runtimes leave a container's root.
_DEFAULT_CAPABILITIES = frozenset(
    CAPABILITIES[name]
    for name in [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    ]
)


@dataclass(frozen=True, slots=True)
class HostView:
    """What of this machine every container of the node sees (`rootfs` finds it out once)."""

    scratch: str
    links: tuple[tuple[str, str], ...]
    folders: tuple[str, ...]
    tools: tuple[tuple[str, str], ...]
    """(name, text) of small programs of our own, for images where the machine has none."""


@dataclass(frozen=True, slots=True)
class Process:
    """The first process of a container."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    uid: int
    gid: int
    capabilities: frozenset[int]


def process(config: Any, image: BoxImage, hostname: str) -> Process:
    """The process of a CRI ContainerConfig: image defaults, overridden as Kubernetes does it.

    A command replaces the image's whole command; arguments alone are given to it.
    """
    argv = (*(config.command or image.command), *config.args)
    if not argv:
        raise ValueError(
            f"container {config.metadata.name} has no command and image {image.repository} has none either"
        )
    env = {**dict(image.env), "HOSTNAME": hostname, **{pair.key: pair.value for pair in config.envs}}
    security = config.linux.security_context
    uid = _user(security, image, config.metadata.name)
    gid = security.run_as_group.value if security.HasField("run_as_group") else 0
    kept = capabilities(security)
    return Process(argv, tuple(env.items()), config.working_dir or image.cwd, uid, gid, kept)


def _user(security: Any, image: BoxImage, container: str) -> int:
    if security.HasField("run_as_user"):
        return int(security.run_as_user.value)
    if security.run_as_username:
        raise ValueError(
            f"container {container} runs as user {security.run_as_username!r}: the box knows no names, give runAsUser"
        )
    return image.user


def capabilities(security: Any) -> frozenset[int]:
    """The capabilities a container's root keeps; names may carry CAP_ or be ALL."""
    if security.privileged:
        return frozenset(CAPABILITIES.values())
    dropped, added = security.capabilities.drop_capabilities, security.capabilities.add_capabilities
    return (_DEFAULT_CAPABILITIES - _numbers(dropped)) | _numbers(added)


def _numbers(names: Iterable[str]) -> frozenset[int]:
    known = [name.upper().removeprefix("CAP_") for name in names]
    if "ALL" in known:
        return frozenset(CAPABILITIES.values())
    unknown = [name for name in known if name not in CAPABILITIES]
    if unknown:
        raise ValueError(f"unknown capability {unknown[0]}: see capabilities(7)")
    return frozenset(CAPABILITIES[name] for name in known)


def root(
    host: HostView, process_: Process, mounts: Sequence[Any], etc: Mapping[str, str], *, readonly: bool
) -> RootPlan:
    """The file tree of a container. `etc` holds the files the runtime itself writes there, by name."""
    volumes = sorted((Volume(m.host_path, m.container_path, m.readonly) for m in mounts), key=lambda v: v.target)
    accounts = {"passwd": _passwd(process_), "group": _group(process_.gid), "nsswitch.conf": _NSSWITCH}
    files = [(f"/etc/{name}", text, 0o644) for name, text in {**accounts, **etc}.items()]
    files += [(f"{TOOLS_FOLDER}/{name}", text, 0o755) for name, text in host.tools]
    return RootPlan(
        scratch=host.scratch, dirs=_DIRS, links=(*host.links, *_LINKS),
        files=tuple(files), binds=host.folders, volumes=tuple(volumes), readonly=readonly,
    )  # fmt: skip


_DIRS = (
    ("/etc", 0o755), ("/proc", 0o555), ("/sys", 0o555), ("/dev", 0o755), ("/tmp", 0o1777), ("/run", 0o755),  # noqa: S108
    ("/var/tmp", 0o1777), ("/var/log", 0o755), ("/root", 0o700), ("/home", 0o755), ("/mnt", 0o755),  # noqa: S108
)  # fmt: skip
# Relative, for they are made while the root still hangs below the host's.
_LINKS = (("/var/run", "../run"), ("/etc/mtab", "../proc/self/mounts"))
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"


def _passwd(process_: Process) -> str:
    lines = ["root:x:0:0:root:/root:/bin/sh"]
    if process_.uid:
        lines.append(f"user:x:{process_.uid}:{process_.gid}:user:{dict(process_.env).get('HOME', '/')}:/bin/sh")
    return "\n".join(lines) + "\n"


def _group(gid: int) -> str:
    return "root:x:0:\n" + (f"user:x:{gid}:\n" if gid else "")


def resolv_conf(servers: Sequence[str], searches: Sequence[str], options: Sequence[str]) -> str:
    """/etc/resolv.conf of a pod."""
    lines = [f"nameserver {server}" for server in servers]
    lines += [f"search {' '.join(searches)}"] if searches else []
    lines += [f"options {' '.join(options)}"] if options else []
    return "\n".join(lines) + "\n"
