"""Private worlds: the box's own user, mount, network and process namespaces, entered through util-linux's `unshare`.

Where the kernel or its guards refuse, the refusal becomes one sentence that names the guard and the two ways out.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from penstock.box.errors import BoxError

_INIT = Path(__file__).with_name("init.py")

# --kill-child: when `unshare` itself is killed, the namespace's first process dies, and with it everything inside.
_BOX_FLAGS = (
    "--user",
    "--map-root-user",
    "--net",
    "--ipc",
    "--mount",
    "--pid",
    "--mount-proc",
    "--fork",
    "--kill-child",
)
_NODE_FLAGS = ("--mount", "--pid", "--mount-proc", "--fork", "--kill-child")

_OWN_CLUSTER = "use a cluster you have (for example `kind create cluster`) and `helm install penstock charts/penstock`"
_ELSEWHERE = f"Two ways out: a Linux virtual machine, or {_OWN_CLUSTER}."


def box_command(command: Sequence[str]) -> list[str]:
    """`command` as the life of a new box: when it ends, everything started inside ends."""
    return ["unshare", *_BOX_FLAGS, "--", *_init(command)]


def node_command(command: Sequence[str]) -> list[str]:
    """`command` as the life of one node inside the box: killing the returned process kills all of the node at once."""
    return ["unshare", *_NODE_FLAGS, "--", *_init(command)]


def _init(command: Sequence[str]) -> list[str]:
    return [sys.executable, "-I", "-S", str(_INIT), *command]


def check_namespaces() -> None:
    """Raise BoxError, with cause and ways out, where this user cannot have namespaces of their own."""
    if platform.system() != "Linux":
        raise BoxError(f"the box needs Linux namespaces and this machine runs {platform.system()}. {_ELSEWHERE}")
    if shutil.which("unshare") is None:
        raise BoxError("the box needs the program `unshare`: install the package util-linux")
    probe = ["unshare", *_BOX_FLAGS, "--", *_nested_probe()]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        cause = refusal(done.stderr)
        raise BoxError(f"this machine does not allow the namespaces of a box: {cause}. {ways_out(cause)}")


def ways_out(cause: str) -> str:
    """The two ways out, given the cause: sudo helps where only unprivileged users are refused."""
    if "max_user_namespaces" in cause:
        first = "allow them (`sudo sysctl -w user.max_user_namespaces=10000`)"
    elif os.geteuid() == 0:
        first = "run outside this container, or in one that may make namespaces (`docker run --privileged`)"
    else:
        first = "run the same command with sudo"
    return f"Two ways out: {first}, or {_OWN_CLUSTER}."


def _nested_probe() -> list[str]:
    # Pods that run as another user need a user namespace inside the box's own.
    return ["unshare", "--user", "--map-root-user", "--mount", "true"]


def refusal(message: str, sysctl: Path = Path("/proc/sys"), status: Path = Path("/proc/self/status")) -> str:
    """The likeliest cause why namespaces were refused, from the kernel's settings; `message` is what `unshare` said."""
    if _setting(sysctl / "user/max_user_namespaces") == "0":
        return "the setting user.max_user_namespaces is 0"
    if os.geteuid() != 0 and _setting(sysctl / "kernel/unprivileged_userns_clone") == "0":
        return "the setting kernel.unprivileged_userns_clone is 0"
    if os.geteuid() != 0 and _setting(sysctl / "kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "AppArmor forbids it (kernel.apparmor_restrict_unprivileged_userns is 1)"
    said = " ".join(message.split()) or "no reason given"
    if "Seccomp:\t2" in _setting(status):
        return f"a seccomp filter is on, as in a container ({said})"
    return said


def _setting(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
