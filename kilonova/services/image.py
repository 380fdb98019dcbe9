"""The image service (OpenStack: Glance)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from kilonova.domain.context import RequestContext
from kilonova.domain.image import Image


class NewImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image that is to be made, under an id that is known beforehand.

    Args:
        owner: project. member: another project that may use it, "" for none.
        min_disk: GiB. min_ram: MiB.
    """

    id: str
    name: str
    owner: str
    member: str = ""
    disk_format: str = "qcow2"
    container_format: str = "bare"
    min_disk: int = 0
    min_ram: int = 0
    properties: dict[str, str] = {}


class ImageSource(Protocol):
    """What a host needs of it to make disks."""

    async def show(self, context: RequestContext | None, image_id: str) -> Image:
        """Describe an image. Without a context the service itself asks and sees every image.

        Raises:
            ImageNotFound: it does not exist or is hidden from the caller.
        """
        ...

    def data(self, image_id: str) -> AsyncIterator[bytes]:
        """The bytes of an active image, in chunks.

        Raises:
            ImageNotFound, ServiceUnavailable.
        """
        ...

    def local_path(self, image_id: str) -> Path | None:
        """Where the data lies on this machine, if it does: copied (or reflinked) instead of streamed."""
        ...


class ImageService(ImageSource, Protocol):
    async def create(self, new: NewImage) -> None:
        """Make the record of an image without data; one of that id that exists is left as it is.

        Raises:
            InvalidInput: a property has the name of an attribute. OverQuota: the project has too many images.
        """
        ...

    async def upload(self, image_id: str, data: AsyncIterator[bytes]) -> None:
        """Give a queued image its data, in chunks; it is active then. An active image is left as it is.

        Raises:
            ImageNotFound: it was deleted. InvalidInput: the data is not what the image is declared to be.
            OverQuota: no room for it. Retryable: other data is being uploaded.
        """
        ...

    async def backups(self, owner: str, instance: str, backup_type: str) -> list[Image]:
        """The backups of that type that a project has of a server, newest first, whatever their status."""
        ...

    async def delete(self, image_id: str) -> None:
        """Delete; an image that is gone is no error. Raises Forbidden if it is protected."""
        ...


class ImageCatalogue(ImageService, Protocol):
    """The image service with what the Compute API passes on to it in the name of a user."""

    async def page(
        self, context: RequestContext, filters: Sequence[tuple[str, str]], *, limit: int, marker: str | None
    ) -> list[Image]:
        """Images that the caller may list, newest first, after the marker.

        Args:
            filters: as the image service's own list takes them. limit: 1 or more.

        Raises:
            InvalidInput: a filter makes no sense, or there is no such marker.
        """
        ...

    async def set_properties(
        self, context: RequestContext, image_id: str, properties: Mapping[str, str]
    ) -> Image:
        """Replace all properties.

        Raises:
            ImageNotFound. Forbidden: the image is not the caller's, or a name is reserved. InvalidInput.
        """
        ...

    async def remove(self, context: RequestContext, image_id: str) -> None:
        """Delete an image of the caller. Raises ImageNotFound; Forbidden: not the caller's, or protected."""
        ...
