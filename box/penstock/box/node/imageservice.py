"""The kubelet's ImageService over the table of images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from penstock.box.node import images
from penstock.box.node.images import BoxImage
from penstock.box.node.rpc import not_found
from penstock.box.node.wire import cri_pb2 as cri


@dataclass(frozen=True, slots=True)
class ImageService:
    """CRI ImageService: every image of the table is always present, no other ever is."""

    images: dict[str, BoxImage]
    store: str
    """A folder whose file system the kubelet may watch for space."""

    async def list_images(self, request: Any) -> Any:
        """All images, or the one asked for."""
        wanted = request.filter.image.image
        found = [images.find(self.images, wanted)] if wanted else list(self.images.values())
        return cri.ListImagesResponse(images=[_image(image) for image in found if image is not None])

    async def image_status(self, request: Any) -> Any:
        """The image a reference names, with any tag; empty where there is none."""
        image = images.find(self.images, request.image.image)
        return cri.ImageStatusResponse(image=_image(image) if image else None)

    async def pull_image(self, request: Any) -> Any:
        """At once, or never."""
        image = images.find(self.images, request.image.image)
        if image is None:
            raise not_found(images.unknown_image(self.images, request.image.image))
        return cri.PullImageResponse(image_ref=image.id)

    async def remove_image(self, request: Any) -> Any:
        """The table is not the kubelet's to change."""
        return cri.RemoveImageResponse()

    async def image_fs_info(self, request: Any) -> Any:
        """Where images would lie; they take no space of their own."""
        usage = cri.FilesystemUsage(
            timestamp=time.time_ns(), fs_id=cri.FilesystemIdentifier(mountpoint=self.store),
            used_bytes=cri.UInt64Value(value=0), inodes_used=cri.UInt64Value(value=0),
        )  # fmt: skip
        return cri.ImageFsInfoResponse(image_filesystems=[usage], container_filesystems=[usage])


def _image(image: BoxImage) -> Any:
    return cri.Image(
        id=image.id, repo_tags=[f"{image.repository}:latest"], size=1, uid=cri.Int64Value(value=image.user),
        spec=cri.ImageSpec(image=image.id), pinned=True,
    )  # fmt: skip
