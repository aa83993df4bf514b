"""Where a box keeps its things, so that taking it down can remove every one of them.

Two folders only: the cache (programs, kept across boxes) and one state folder per box (removed by `penstock down`).
Both follow the XDG base directory convention and can be moved with `PENSTOCK_CACHE` and `PENSTOCK_STATE`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.box.errors import BoxError

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


def cache_root(env: Mapping[str, str] = os.environ) -> Path:
    """Folder of everything that outlives a box: the programs and how they were got."""
    if chosen := env.get("PENSTOCK_CACHE"):
        return Path(chosen)
    return _xdg(env, "XDG_CACHE_HOME", ".cache") / "penstock"


def state_root(env: Mapping[str, str] = os.environ) -> Path:
    """Folder that holds one folder per box."""
    if chosen := env.get("PENSTOCK_STATE"):
        return Path(chosen)
    return _xdg(env, "XDG_STATE_HOME", ".local/state") / "penstock"


def _xdg(env: Mapping[str, str], variable: str, fallback: str) -> Path:
    home = Path(env.get("HOME") or Path.home())
    return Path(env[variable]) if env.get(variable) else home / fallback


@dataclass(frozen=True, slots=True)
class BoxPaths:
    """The files of one box. Nothing of a box lies outside `root`."""

    root: Path

    @classmethod
    def of(cls, name: str, env: Mapping[str, str] = os.environ) -> BoxPaths:
        """Paths of the box called `name`; raises BoxError when it cannot be a folder's name."""
        if not _NAME.fullmatch(name):
            raise BoxError(
                f"box name {name!r} is not usable: write 1 to 32 lower-case letters, digits and dashes, "
                "starting and ending with a letter or digit"
            )
        return cls(state_root(env).absolute() / name)

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.root / "pki"

    @property
    def logs(self) -> Path:
        """One log file per component."""
        return self.root / "logs"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig, for the host."""
        return self.root / "kubeconfig"

    @property
    def settings(self) -> Path:
        """The supervisor's orders (JSON)."""
        return self.root / "box.json"

    @property
    def pid_file(self) -> Path:
        """The first process of the box, with its start time (JSON)."""
        return self.root / "pid.json"

    @property
    def control_socket(self) -> Path:
        """The supervisor's control channel."""
        return self.root / "control.sock"

    @property
    def stages(self) -> Path:
        """Seconds that each stage of the last `penstock up` took (JSON)."""
        return self.root / "stages.json"

    @property
    def lock(self) -> Path:
        """Held while a command changes the box; beside the folder, because `down` removes the folder."""
        return self.root.parent / f".{self.root.name}.lock"


def share_root() -> Path:
    """Folder that holds `charts/`, `examples/` and `hack/`: inside the wheel, or the clone's root."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "share", *here.parents):
        if (candidate / "hack" / "kube" / "go.mod").is_file():
            return candidate
    raise BoxError("the files hack/kube and charts/penstock are neither in this installation nor in a clone: reinstall")
