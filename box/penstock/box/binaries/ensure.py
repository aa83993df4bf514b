"""Get the programs: found, else downloaded, else built; once, however many ask at the same time."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from penstock.box.binaries.build import build
from penstock.box.binaries.find import Programs, by_module, cache_folder, find_module, missing
from penstock.box.binaries.manifest import Entry, read_manifest, reported_version, write_manifest
from penstock.box.binaries.pins import ALL_PROGRAMS, Pins, read_pins
from penstock.box.binaries.release import Fetch, Progress, Unavailable, download, http_fetch, release_of
from penstock.box.errors import BoxError
from penstock.box.paths import cache_root, share_root


def _silent(what: str, done: int, total: int) -> None:
    """The progress of a caller who does not care."""


def ensure_programs(
    needed: frozenset[str] = ALL_PROGRAMS,
    progress: Progress = _silent,
    env: Mapping[str, str] = os.environ,
    fetch: Fetch | None = None,
) -> Programs:
    """The programs at their pinned versions, whatever it takes. Raises BoxError when every source failed."""
    share = share_root()
    pins = read_pins(share)
    fetch = fetch or http_fetch(progress)
    folders: dict[str, Path] = {}
    for module, names in by_module(needed).items():
        folder = find_module(module, names, pins, share, env)
        if folder is None:
            folder = _obtain(module, names, pins, share, env, progress, fetch)
        folders.update(dict.fromkeys(names, folder))
    return Programs(folders)


def _obtain(
    module: str,
    names: frozenset[str],
    pins: Pins,
    share: Path,
    env: Mapping[str, str],
    progress: Progress,
    fetch: Fetch,
) -> Path:
    folder = cache_folder(module, pins, env)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(cache_root(env), progress):
        absent = missing(folder, names, pins, share)
        if not absent:
            return folder
        # On the same file system as the cache, so that a program appears there whole or not at all.
        with _scratch(cache_root(env) / "build") as work:
            fresh = work / "programs"
            fresh.mkdir()
            origins = _download_all(absent, pins, fresh, progress, fetch)
            rest = sorted(absent - origins.keys())
            if rest:
                build(module, rest, pins, share, work, fresh, progress)
                origins |= dict.fromkeys(rest, "go build")
            _publish(fresh, folder, pins, origins)
    return folder


def _download_all(names: frozenset[str], pins: Pins, into: Path, progress: Progress, fetch: Fetch) -> dict[str, str]:
    origins: dict[str, str] = {}
    for name in sorted(names):
        release = release_of(name, pins)
        if release is None:
            continue
        try:
            download(name, release, into, fetch)
        except Unavailable as reason:
            progress(f"no official release within reach ({reason}); building instead", 0, 0)
            break
        origins[name] = release.url
    return origins


def _publish(fresh: Path, folder: Path, pins: Pins, origins: Mapping[str, str]) -> None:
    entries = read_manifest(folder)
    for name, origin in origins.items():
        version = pins.version_of(name)
        said = version if name == "cri-streaming" else reported_version(fresh / name)
        if said != version:
            raise BoxError(f"{name} from {origin} says that it is {said}, pinned is {version}; not used")
        entries[name] = Entry(version, origin, (fresh / name).stat().st_size)
        (fresh / name).replace(folder / name)
    write_manifest(folder, entries)


@contextmanager
def _lock(root: Path, progress: Progress) -> Iterator[None]:
    with (root / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another command that is getting the programs", 0, 0)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
