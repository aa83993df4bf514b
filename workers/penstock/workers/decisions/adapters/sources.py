"""Where the weights come from: a source URI becomes the engine's model argument and the volume it needs.

The schemes are those users of KServe know: `hf://org/name[@revision]`, `pvc://claim/path`, `oci://image` (a model image
with the weights under `/models`, mounted as an image volume), and a bare `/path` inside the engine's image.
"""

from dataclasses import dataclass
from typing import Any

from penstock.workers.decisions.adapters.spec import AdapterError

MOUNT_PATH = "/mnt/models"
OCI_FOLDER = "models"
"""Folder of a model image that holds the weights, the convention of model images."""


@dataclass(frozen=True, slots=True)
class Source:
    """The engine's model argument, its revision, and the volume with its mount where weights are mounted."""

    model: str
    revision: str | None = None
    volume: dict[str, Any] | None = None
    mount: dict[str, Any] | None = None


def resolve_source(uri: str | None, model_name: str) -> Source:
    """What `uri` means to an engine that serves `model_name`; raises `AdapterError` for what nobody can load."""
    if uri is None:
        return _hugging_face(model_name, f"hf://{model_name}")
    if uri.startswith("/"):
        return Source(uri)
    scheme, separator, rest = uri.partition("://")
    resolve = {"hf": _hugging_face, "pvc": _claim, "oci": _image}.get(scheme) if separator else None
    if resolve is None:
        raise AdapterError(
            f"model source {uri!r} is not understood; use hf://org/name, pvc://claim/path, oci://image, "
            "or /path inside the engine's image"
        )
    return resolve(rest, uri)


def _hugging_face(rest: str, uri: str) -> Source:
    repository, _, revision = rest.replace(":", "@", 1).partition("@")
    parts = repository.split("/")
    if len(parts) > 2 or not all(parts):
        raise AdapterError(
            f"model source {uri!r} names no Hugging Face repository; write hf://org/name or hf://org/name@revision"
        )
    return Source(repository, revision or None)


def _claim(rest: str, uri: str) -> Source:
    claim, _, path = rest.partition("/")
    folders = [folder for folder in path.split("/") if folder]
    if not claim or ".." in folders:
        raise AdapterError(
            f"model source {uri!r} names no claim and path; write pvc://claim or pvc://claim/path/inside"
        )
    return Source(
        "/".join((MOUNT_PATH, *folders)),
        volume={"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}},
        mount={"name": "model", "mountPath": MOUNT_PATH, "readOnly": True},
    )


def _image(rest: str, uri: str) -> Source:
    if not rest or rest.startswith("/") or any(c.isspace() for c in rest):
        raise AdapterError(f"model source {uri!r} names no image; write oci://registry/repository:tag")
    return Source(
        MOUNT_PATH,
        volume={"name": "model", "image": {"reference": rest, "pullPolicy": "IfNotPresent"}},
        mount={"name": "model", "mountPath": MOUNT_PATH, "subPath": OCI_FOLDER, "readOnly": True},
    )
