"""Which folders of this machine a container sees, and what else its file tree holds.

A container needs the system's programs and libraries and the Python environment of the box; it sees those read-only
under the paths they have here, and nothing else of the host: no home folders, no host /etc beyond certificates and
the loader's tables.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

# Programs and libraries; /nix is where that distribution keeps them.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix")
# What programs of the system read in /etc and cannot do without. Certificates, loader, links to chosen programs.
_ETC = (
    "/etc/alternatives", "/etc/ca-certificates", "/etc/ca-certificates.conf", "/etc/ld.so.cache", "/etc/ld.so.conf",
    "/etc/ld.so.conf.d", "/etc/localtime", "/etc/mime.types", "/etc/pki", "/etc/protocols", "/etc/services", "/etc/ssl",
)  # fmt: skip


def system_links() -> tuple[tuple[str, str], ...]:
    """(path, target) of the top-level links (/bin -> usr/bin), targets relative so that they hold in any root."""
    links = [(path, Path(path).readlink()) for path in _SYSTEM if Path(path).is_symlink()]
    return tuple((path, str(target).lstrip("/")) for path, target in links)


def system_folders() -> tuple[str, ...]:
    """The system's real folders and files, for read-only binds."""
    real = [path for path in _SYSTEM if Path(path).is_dir() and not Path(path).is_symlink()]
    return (*real, *(path for path in _ETC if Path(path).exists()))


def python_folders(venv: Path) -> tuple[str, ...]:
    """The folders that the Python environment `venv` needs: itself, its interpreter's home, its editable sources.

    An environment that is a plain installation (no pyvenv.cfg) is its own home.
    """
    found = [venv, venv.resolve()]
    settings = venv / "pyvenv.cfg"
    if settings.exists():
        pairs = (line.partition("=") for line in settings.read_text().splitlines())
        home = {key.strip(): value.strip() for key, _equals, value in pairs}.get("home")
        if home:
            found += [Path(home).parent, Path(home).resolve().parent]
    for interpreter in (venv / "bin").glob("python3*"):
        found += [step.parent.parent for step in _link_steps(interpreter)]
    if Path(sys.prefix).resolve() == venv.resolve():
        found += [Path(sys.base_prefix), Path(sys.base_prefix).resolve()]
    for listing in venv.glob("lib*/python3*/site-packages/*.pth"):
        lines = listing.read_text().splitlines()
        found += [Path(line) for line in lines if line.startswith("/") and Path(line).is_dir()]
    return outermost(str(path) for path in found if not _is_system(path))


def _link_steps(path: Path) -> list[Path]:
    """`path` and every path its chain of links passes through."""
    steps = [path]
    while steps[-1].is_symlink() and len(steps) < 40:
        steps.append(Path(os.path.normpath(steps[-1].parent / steps[-1].readlink())))
    return steps


def _is_system(path: Path) -> bool:
    return path == Path("/") or any(path.is_relative_to(folder) for folder in _SYSTEM)


def outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """The given folders less those inside another of them, in order of path."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(Path(path).is_relative_to(outer) for outer in kept):
            kept.append(path)
    return tuple(kept)
