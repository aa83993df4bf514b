"""The cache's memory: beside the programs, a file that says which version each one is and how it was got."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

MANIFEST = "manifest.json"

_VERSION_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "helm": ("version", "--template", "{{.Version}}"),
    "kubectl": ("version", "--client"),
}
_VERSION = re.compile(r"v?(\d+\.\d+\.\d+[-+.\w]*)")


@dataclass(frozen=True, slots=True)
class Entry:
    """One program of a cache folder. `origin` is a URL, `go build` or the folder it was found in."""

    version: str
    origin: str
    size: int


def read_manifest(folder: Path) -> dict[str, Entry]:
    """Entries by program name; a missing or damaged manifest knows nothing."""
    try:
        raw = json.loads((folder / MANIFEST).read_text())
        return {name: Entry(str(e["version"]), str(e["origin"]), int(e["size"])) for name, e in raw.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_manifest(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Replace the manifest in one step."""
    partial = folder / f".{MANIFEST}.{os.getpid()}"
    partial.write_text(json.dumps({name: asdict(entry) for name, entry in sorted(entries.items())}, indent=2) + "\n")
    partial.replace(folder / MANIFEST)


def matches(folder: Path, program: str, version: str, entries: Mapping[str, Entry]) -> bool:
    """True when the manifest vouches for `program` at `version` and the file is the one it speaks of."""
    entry = entries.get(program)
    path = folder / program
    return (
        entry is not None
        and entry.version == version
        and path.is_file()
        and os.access(path, os.X_OK)
        and path.stat().st_size == entry.size
    )


def reported_version(path: Path) -> str | None:
    """The version a program says it has (with its leading `v`), None when it cannot be run or says none."""
    arguments = _VERSION_ARGUMENTS.get(path.name, ("--version",))
    try:
        done = subprocess.run([str(path), *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(done.stdout)
    return f"v{match[1]}" if done.returncode == 0 and match else None
