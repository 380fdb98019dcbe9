"""An image service outside the simulated processes: keeps its promises, loses answers, fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random

import msgspec

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import ImageNotFound
from kilonova.domain.image import Image
from kilonova.services.image import NewImage
from simulation.outside import Outside
from simulation.process import Process, Trouble


class Shelf(Outside):
    """The service itself; it does not crash.

    `calls` are those that arrived. `first` is what servers are made of.
    """

    def __init__(self, random: Random, trouble: Trouble, first: Image) -> None:
        super().__init__("image", random, trouble)
        self.images = {first.id: first}
        self.new: dict[str, NewImage] = {}
        self.calls: list[tuple[str, str]] = []
        self._made = 0

    def client(self, process: Process) -> SimImages:
        return SimImages(self, process)

    def find(self, image_id: str) -> Image:
        if image_id not in self.images:
            raise ImageNotFound(image_id)
        return self.images[image_id]

    def make(self, new: NewImage) -> None:
        if new.id not in self.images:
            self._made += 1
            self.new[new.id] = new
            self.images[new.id] = Image(
                id=new.id, name=new.name, status="queued", owner=new.owner, properties=new.properties,
                created_at=f"{self._made:06}",
            )

    def fill(self, image_id: str, size: int) -> None:
        image = self.find(image_id)
        if image.status == "queued":
            self.images[image_id] = msgspec.structs.replace(image, status="active", size=size)

    def kept(self) -> list[Image]:
        """The images that were made of servers, oldest first."""
        return [self.images[id_] for id_ in self.new if id_ in self.images]


class SimImages:
    """A process's client of the service."""

    def __init__(self, shelf: Shelf, process: Process) -> None:
        self._shelf = shelf
        self._process = process

    async def _call(self, name: str, image_id: str, effect: Callable[[], object]) -> object:
        return await self._process.port(self._shelf.exchange(
            name, lambda: self._shelf.calls.append((name, image_id)), effect
        ))

    async def show(self, context: RequestContext | None, image_id: str) -> Image:
        found = await self._call("show", image_id, lambda: self._shelf.find(image_id))
        assert isinstance(found, Image)
        return found

    def data(self, image_id: str) -> AsyncIterator[bytes]:
        raise ImageNotFound(image_id)

    def local_path(self, image_id: str) -> Path | None:
        return None

    async def create(self, new: NewImage) -> None:
        await self._call("create", new.id, lambda: self._shelf.make(new))

    async def upload(self, image_id: str, data: AsyncIterator[bytes]) -> None:
        if self._shelf.find(image_id).status == "active":
            return
        size = sum([len(chunk) async for chunk in data])
        await self._call("upload", image_id, lambda: self._shelf.fill(image_id, size))

    async def backups(self, owner: str, instance: str, backup_type: str) -> list[Image]:
        wanted = {"image_type": "backup", "instance_uuid": instance, "backup_type": backup_type}
        found = await self._call("backups", "", lambda: [
            image for image in reversed(self._shelf.kept())
            if image.owner == owner and wanted.items() <= image.properties.items()
        ])
        assert isinstance(found, list)
        return found

    async def delete(self, image_id: str) -> None:
        await self._call("delete", image_id, lambda: self._shelf.images.pop(image_id, None))
