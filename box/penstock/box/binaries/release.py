"""Programs from their projects' official releases, refused unless they match the published checksum."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
from penstock.box.binaries.pins import PROMETHEUS_PROGRAMS, Pins
from penstock.box.errors import BoxError

# No network must cost seconds, not minutes: the next source is waiting.
_TIMEOUT = httpx.Timeout(connect=4.0, read=20.0, write=10.0, pool=4.0)

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, units done, units in all)."""


class ChecksumMismatch(BoxError):
    """A download is not what its project published."""


class Unavailable(Exception):
    """This source cannot give the program here and now; another may."""


class Fetch(Protocol):
    """GET a URL; returns the whole body, raises Unavailable."""

    def __call__(self, url: str, label: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Release:
    """One file of a release. `member` is the program's path inside when the file is an archive."""

    url: str
    checksum_url: str
    algorithm: str
    member: str | None = None


def release_of(program: str, pins: Pins) -> Release | None:
    """Where `program` is published; None for our own streaming server, which is only ever built."""
    arch = pins.architecture
    if program == "cri-streaming":
        return None
    if program == "helm":
        url = f"https://get.helm.sh/helm-{pins.helm}-linux-{arch}.tar.gz"
        return Release(url, f"{url}.sha256sum", "sha256", f"linux-{arch}/helm")
    if program == "etcd":
        base = f"https://github.com/etcd-io/etcd/releases/download/{pins.etcd}"
        stem = f"etcd-{pins.etcd}-linux-{arch}"
        return Release(f"{base}/{stem}.tar.gz", f"{base}/SHA256SUMS", "sha256", f"{stem}/etcd")
    if program in PROMETHEUS_PROGRAMS:
        base = f"https://github.com/prometheus/prometheus/releases/download/{pins.prometheus}"
        stem = f"prometheus-{pins.prometheus.removeprefix('v')}.linux-{arch}"
        return Release(f"{base}/{stem}.tar.gz", f"{base}/sha256sums.txt", "sha256", f"{stem}/{program}")
    url = f"https://dl.k8s.io/release/{pins.kubernetes}/bin/linux/{arch}/{program}"
    return Release(url, f"{url}.sha512", "sha512")


def published_checksum(text: str, file_name: str) -> str | None:
    """The hex digest for `file_name` in a checksum file: a bare digest, or lines of `<digest>  <name>`."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 1 or (len(words) == 2 and words[1].lstrip("*").rsplit("/", 1)[-1] == file_name):
            return words[0].lower()
    return None


def download(program: str, release: Release, into: Path, fetch: Fetch) -> None:
    """Fetch `program`, check it and write it executable to `into`.

    Raises Unavailable (no network, no such file) and ChecksumMismatch (what came is not what was published).
    """
    file_name = release.url.rsplit("/", 1)[-1]
    expected = published_checksum(
        fetch(release.checksum_url, f"checksum of {program}").decode("ascii", "replace"), file_name
    )
    if expected is None:
        raise Unavailable(f"{release.checksum_url} names no checksum for {file_name}")
    content = fetch(release.url, program)
    actual = hashlib.new(release.algorithm, content).hexdigest()
    if actual != expected:
        raise ChecksumMismatch(
            f"{release.url} has {release.algorithm} {actual[:16]}..., its project published {expected[:16]}...: "
            "the download was altered on its way; not used"
        )
    target = into / program
    target.write_bytes(_extract(content, release.member) if release.member else content)
    target.chmod(0o755)


def _extract(archive: bytes, member: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        file = tar.extractfile(member)
        if file is None:
            raise Unavailable(f"the archive holds no {member}")
        return file.read()


def http_fetch(progress: Progress) -> Fetch:
    """A Fetch over HTTPS that reports bytes as they come."""

    def fetch(url: str, label: str) -> bytes:
        body = bytearray()
        try:
            with httpx.stream("GET", url, follow_redirects=True, timeout=_TIMEOUT) as response:
                response.raise_for_status()
                total = int(response.headers.get("content-length", 0))
                for chunk in response.iter_bytes(1 << 20):
                    body += chunk
                    progress(f"downloading {label}", len(body), total)
        except httpx.HTTPError as error:
            raise Unavailable(f"{url}: {error or type(error).__name__}") from error
        return bytes(body)

    return fetch
