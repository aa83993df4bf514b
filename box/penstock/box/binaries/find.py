"""Programs that are on this machine already: in `KUBEBUILDER_ASSETS` or our cache, at exactly the pinned versions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.box.binaries.manifest import Entry, matches, read_manifest, reported_version, write_manifest
from penstock.box.binaries.pins import ALL_PROGRAMS, PROGRAMS, Pins, read_pins
from penstock.box.errors import BoxError
from penstock.box.paths import cache_root, share_root

STREAMING = "cri-streaming"


@dataclass(frozen=True, slots=True)
class Programs:
    """Where each program lies."""

    folders: Mapping[str, Path]

    def path(self, name: str) -> Path:
        """The file of one program; raises BoxError when it was not asked for."""
        if name not in self.folders:
            raise BoxError(f"program {name} was not asked for; have {', '.join(sorted(self.folders))}")
        return self.folders[name] / name

    def folder_of(self, names: frozenset[str]) -> Path:
        """The one folder that holds all of `names`."""
        folders = {self.path(name).parent for name in names}
        if len(folders) != 1:
            raise BoxError(f"programs {', '.join(sorted(names))} lie in {len(folders)} folders, not in one")
        return folders.pop()


def cache_folder(module: str, pins: Pins, env: Mapping[str, str] = os.environ) -> Path:
    """The cache folder of a module's programs (`kube`, `helm` or `prometheus`) at the pinned version."""
    name, version = {
        "kube": ("kubernetes", pins.kubernetes),
        "helm": ("helm", pins.helm),
        "prometheus": ("prometheus", pins.prometheus),
    }[module]
    return cache_root(env) / name / f"{version}-linux-{pins.architecture}"


def by_module(needed: frozenset[str]) -> dict[str, frozenset[str]]:
    """`needed` split by the Go module that holds each program; raises BoxError for an unknown name."""
    if unknown := needed - PROGRAMS.keys():
        raise BoxError(f"no such program: {', '.join(sorted(unknown))}; there are {', '.join(sorted(PROGRAMS))}")
    modules = {PROGRAMS[name].module for name in needed}
    return {module: frozenset(n for n in needed if PROGRAMS[n].module == module) for module in sorted(modules)}


def find_programs(needed: frozenset[str] = ALL_PROGRAMS, env: Mapping[str, str] = os.environ) -> Programs | None:
    """The programs when all of them are here already, else None. Touches no network and builds nothing."""
    share = share_root()
    pins = read_pins(share)
    folders: dict[str, Path] = {}
    for module, names in by_module(needed).items():
        folder = find_module(module, names, pins, share, env)
        if folder is None:
            return None
        folders.update(dict.fromkeys(names, folder))
    return Programs(folders)


def find_module(
    module: str, names: frozenset[str], pins: Pins, share: Path, env: Mapping[str, str] = os.environ
) -> Path | None:
    """The folder that holds all of `names`, a module's programs, at their pinned versions; None when there is none."""
    assets = env.get("KUBEBUILDER_ASSETS")
    if assets and all(reported_version(Path(assets) / name) == pins.version_of(name) for name in names):
        return Path(assets)
    folder = cache_folder(module, pins, env)
    return None if missing(folder, names, pins, share) else folder


def missing(folder: Path, names: frozenset[str], pins: Pins, share: Path) -> frozenset[str]:
    """Those of `names` that the cache `folder` lacks at the pinned version.

    A program that someone put there by hand is taken over, once, when it says that it has that version.
    """
    entries = read_manifest(folder)
    absent = {name for name in names if not matches(folder, name, pins.version_of(name), entries)}
    adopted = {name for name in absent if _is_pinned(folder / name, pins, share)}
    if adopted:
        for name in adopted:
            entries[name] = Entry(pins.version_of(name), "found in the cache", (folder / name).stat().st_size)
        write_manifest(folder, entries)
    return frozenset(absent - adopted)


def _is_pinned(path: Path, pins: Pins, share: Path) -> bool:
    if not (path.is_file() and os.access(path, os.X_OK)):
        return False
    if path.name != STREAMING:
        return reported_version(path) == pins.version_of(path.name)
    # Our own program has no version: it is current when it is younger than its source.
    sources = list((share / "hack" / "kube" / "streaming").glob("*.go"))
    return bool(sources) and path.stat().st_mtime > max(source.stat().st_mtime for source in sources)
