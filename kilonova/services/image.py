"""The image service (OpenStack: Glance)."""

from __future__ import annotations

from collections.abc import AsyncIterator
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
