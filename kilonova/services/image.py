"""The image service (OpenStack: Glance)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from kilonova.domain.context import RequestContext
from kilonova.domain.image import Image


class ImageService(Protocol):
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

    async def delete(self, image_id: str) -> None:
        """Delete; an image that is gone is no error."""
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
