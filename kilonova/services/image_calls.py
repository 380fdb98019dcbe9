"""The image service of another process of the control plane, called over the bus: records of images, not their data."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from kilonova.bus.protocol import Bus
from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import NotSupported
from kilonova.domain.image import Image
from kilonova.services.image import ImageService, NewImage
from kilonova.services.remote import RemoteService, ServiceCalls, signatures

NAME = "image"
SIGNATURES = signatures(ImageService, ("show", "create", "backups", "delete"))


class ImageCalls(ServiceCalls):
    """Answers for an image service."""

    def __init__(self, service: ImageService, bus: Bus) -> None:
        super().__init__(NAME, service, SIGNATURES, bus)


class RemoteImages:
    """An `ImageService` that another process has."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._service = RemoteService(NAME, SIGNATURES, bus, clock)

    async def show(self, context: RequestContext | None, image_id: str) -> Image:
        found: Image = await self._service.call("show", context, image_id)
        return found

    def data(self, image_id: str) -> AsyncIterator[bytes]:
        raise NotSupported(f"The data of image {image_id} does not travel over the bus.")

    def local_path(self, image_id: str) -> Path | None:
        return None

    async def create(self, new: NewImage) -> None:
        await self._service.call("create", new)

    async def upload(self, image_id: str, data: AsyncIterator[bytes]) -> None:
        raise NotSupported(f"The data of image {image_id} does not travel over the bus.")

    async def backups(self, owner: str, instance: str, backup_type: str) -> list[Image]:
        found: list[Image] = await self._service.call("backups", owner, instance, backup_type)
        return found

    async def delete(self, image_id: str) -> None:
        await self._service.call("delete", image_id)
