"""Images by table: which environment of this machine an image name stands for.

The box has no containers, so there is nothing to pull: `penstock/*` is the Python environment the box itself runs
from, with the commands the borders document gives each role, and `penstock/toolbox` a shell with curl. Any tag will do.
An image that is not in the table cannot be pulled, and the pod says ErrImagePull as it would anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

# The roles' images run as this user (their Dockerfiles say the same), so `runAsNonRoot` alone is enough.
ROLE_USER = 65532
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS_FOLDER = "/opt/penstock/bin"


@dataclass(frozen=True, slots=True)
class BoxImage:
    """What an image brings: the defaults a pod may override."""

    repository: str
    command: tuple[str, ...]
    user: int
    env: tuple[tuple[str, str], ...]
    cwd: str = "/"

    @property
    def id(self) -> str:
        """The image's content id, in the form the kubelet expects."""
        return "sha256:" + hashlib.sha256(self.repository.encode()).hexdigest()


def table(venv: str, extra: Mapping[str, tuple[str, ...]] | None = None) -> dict[str, BoxImage]:
    """The box's images by repository. `extra` maps further repositories to their default commands."""
    path = f"{venv}/bin:{SYSTEM_PATH}:{TOOLS_FOLDER}"
    role_env = (("PATH", path), ("HOME", "/tmp"), ("PYTHONUNBUFFERED", "1"), ("PYTHONDONTWRITEBYTECODE", "1"))  # noqa: S108
    modules = {
        "penstock/operator": "penstock.operator",
        "penstock/router": "penstock.router",
        "penstock/autoscaler": "penstock.autoscaler",
        "penstock/simulated-engine": "penstock.workers.simulated",
        "penstock/sidecar": "penstock.workers.sidecar",
    }
    images = [BoxImage(name, ("python", "-m", module), ROLE_USER, role_env) for name, module in modules.items()]
    images.append(BoxImage("penstock/toolbox", ("/bin/sh",), 0, (("PATH", path), ("HOME", "/root"))))
    images += [BoxImage(name, command, 0, role_env) for name, command in (extra or {}).items()]
    return {image.repository: image for image in images}


def repository(reference: str) -> str:
    """The repository of an image reference, without registry host, tag and digest.

    >>> repository("ghcr.io/penstock/router:1.2@sha256:0f")
    'penstock/router'
    """
    name = reference.partition("@")[0]
    head, slash, tail = name.rpartition("/")
    name = head + slash + tail.partition(":")[0]
    first, slash, rest = name.partition("/")
    return rest if slash and ("." in first or ":" in first or first == "localhost") else name


def find(images: Mapping[str, BoxImage], reference: str) -> BoxImage | None:
    """The image a reference (or an image id) names; None where the box has none."""
    if reference.startswith("sha256:"):
        return next((image for image in images.values() if image.id == reference), None)
    return images.get(repository(reference))


def unknown_image(images: Mapping[str, BoxImage], reference: str) -> str:
    """The sentence for a pull that cannot succeed."""
    return (
        f'image "{reference}" is not in the box: it runs processes of this machine, not containers, and has only '
        f"{', '.join(sorted(images))} (any tag)"
    )
