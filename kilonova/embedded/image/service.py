"""The embedded image service: what the compute service calls directly, and the HTTP application.

Spec: EMI-01 to EMI-16, EMG-01 to EMG-33.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import msgspec
import sqlalchemy as sa
from starlette.types import ASGIApp, Receive, Scope, Send

from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import ImageNotFound, InvalidInput, OverQuota, Retryable
from kilonova.domain.image import Image
from kilonova.embedded.http import EmbeddedService
from kilonova.embedded.image import attributes, listing, patch, queries
from kilonova.embedded.image.api import data, images, info, members
from kilonova.embedded.image.api.streams import file_chunks
from kilonova.embedded.image.core import Core
from kilonova.embedded.image.errors import TooLarge
from kilonova.embedded.image.import_rules import ImportRules
from kilonova.embedded.image.quotas import Quotas, Resource
from kilonova.embedded.image.records import WITH_DATA, ImageRecord, Limits, Status, Visibility
from kilonova.services.identity import IdentityService
from kilonova.services.image import NewImage

IMAGE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class EmbeddedImage:
    """The image service of one machine. Implements `kilonova.services.image.ImageCatalogue`.

    Await `recover` before the first use and `close` after the last.

    Args:
        database: where its tables live. directory: where image data lives, private to this process.
        identity: validates the tokens of requests. identity_url: shown to those who have none.
        limits: sizes and counts. import_rules: where web-download may fetch from.
        unified_limits: the limits of service glance in the identity service hold, too.
    """

    def __init__(self, database: Database, directory: Path, clock: Clock, identity: IdentityService,
                 identity_url: str, *, limits: Limits | None = None,
                 import_rules: ImportRules | None = None, unified_limits: bool = False) -> None:
        self._core = Core(database, directory, clock, limits or Limits(), import_rules or ImportRules(),
                          Quotas(identity if unified_limits else None))
        self._identity = identity
        self._identity_url = identity_url

    async def recover(self) -> None:
        """Prepare tables and directories and settle what a crash left behind. Spec: EMG-03."""
        await self._core.recover()

    async def close(self) -> None:
        """Interrupt transfers. Uploads fail; imports go on after the next `recover`."""
        await self._core.close()

    def application(self) -> ASGIApp:
        """The HTTP interface, to be mounted under any prefix."""
        service = EmbeddedService(
            "image",
            [*info.routes(self._core), *images.routes(self._core), *data.routes(self._core),
             *members.routes(self._core)],
            identity=self._identity,
            error_body=_error_body,
            public=r"GET /((versions|v2)/?)?$",
            identity_url=self._identity_url,
            streams=r"PUT /v2/images/[^/]+/(file|stage)$",
        )

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            # The catalogue's URL ends with the prefix, and clients ask for exactly that.
            if scope["type"] == "http" and scope["path"] == scope.get("root_path", ""):
                scope = {**scope, "path": scope["path"] + "/"}
            await service(scope, receive, send)

        return application

    async def show(self, context: RequestContext | None, image_id: str) -> Image:
        """Describe an image. Raises ImageNotFound."""
        if context is None:
            record = await self._core.database.read(lambda conn: queries.get(conn, image_id))
        else:
            record = await self._core.database.read(lambda conn: queries.visible(conn, context, image_id))
        return record.for_compute()

    async def data(self, image_id: str) -> AsyncIterator[bytes]:
        """The bytes of an active image. Raises ImageNotFound."""
        record = await self._core.database.read(lambda conn: queries.get(conn, image_id))
        if record.status is not Status.ACTIVE:
            raise ImageNotFound(image_id)
        async for chunk in file_chunks(self._core.files, image_id, 0, record.size or 0):
            yield chunk

    def local_path(self, image_id: str) -> Path | None:
        """The file with the data of an image, or None when it has none."""
        if not IMAGE_ID.fullmatch(image_id):
            return None  # an id from outside must not lead out of the directory
        path = self._core.files.data(image_id)
        return path if path.is_file() else None

    async def create(self, new: NewImage) -> None:
        """Make the record of an image without data. Raises InvalidInput, OverQuota. Spec: EMG-24."""
        for name in new.properties:
            attributes.refuse_fixed(name, InvalidInput)
            if name == "id" or name in attributes.EDITABLE:
                raise InvalidInput(f"Attribute '{name}' of an image is no property.")
        now = self._core.clock.now()
        record = ImageRecord(
            id=new.id, name=new.name, owner=new.owner, disk_format=new.disk_format,
            container_format=new.container_format, min_disk=new.min_disk, min_ram=new.min_ram,
            visibility=Visibility.SHARED if new.member else Visibility.PRIVATE, created_at=now, updated_at=now,
            properties=new.properties,
        )

        quota = await self._core.quotas.of(new.owner)

        def unit(conn: sa.Connection) -> None:
            if not queries.load(conn, [new.id]):
                attributes.check_counts(record, self._core.limits)
                queries.insert(conn, record, self._core.limits)
                quota.check(conn, Resource.COUNT_TOTAL)
                if new.member:
                    queries.share(conn, new.id, new.member, now)

        try:
            await self._core.database.write(unit)
        except TooLarge as error:
            raise OverQuota(error.message, hint=error.hint) from error

    async def upload(self, image_id: str, data: AsyncIterator[bytes]) -> None:
        """Receive the data of a queued image. Raises ImageNotFound, InvalidInput, OverQuota, Retryable."""
        record = await self._core.database.read(lambda conn: queries.get(conn, image_id))
        if record.status in WITH_DATA:
            return
        if record.status is not Status.QUEUED:
            raise Retryable(f"Image {image_id} is {record.status.value}.")
        try:
            await self._core.uploads.upload(record, data, None)
        except TooLarge as error:
            raise OverQuota(error.message, hint=error.hint) from error

    async def backups(self, owner: str, instance: str, backup_type: str) -> list[Image]:
        """The backups of that type that a project has of a server, newest first. Spec: SNP-26."""
        wanted = {"image_type": "backup", "instance_uuid": instance, "backup_type": backup_type}
        found = await self._core.database.read(lambda conn: queries.with_properties(conn, owner, wanted))
        return [record.for_compute() for record in found]

    async def delete(self, image_id: str) -> None:
        """Delete; an image that is gone is no error. Raises Forbidden if it is protected."""
        await self._core.delete(image_id)

    async def page(
        self, context: RequestContext, filters: Sequence[tuple[str, str]], *, limit: int, marker: str | None
    ) -> list[Image]:
        """Images that the caller may list, newest first. Raises InvalidInput."""
        asked = [*filters, ("limit", str(limit)), *([("marker", marker)] if marker is not None else [])]
        wanted = listing.parse(asked, context)
        found, _ = await self._core.database.read(lambda conn: listing.page(conn, wanted, context))
        return [record.for_compute() for record in found]

    async def set_properties(
        self, context: RequestContext, image_id: str, properties: Mapping[str, str]
    ) -> Image:
        """Replace all properties. Raises ImageNotFound; Forbidden; InvalidInput; TooLarge: there are too many."""
        for name in properties:
            if name in attributes.EDITABLE:
                raise InvalidInput(f"'{name}' is an attribute of images, no property.")

        def unit(conn: sa.Connection) -> ImageRecord:
            before = queries.changeable(conn, context, image_id)
            gone = [patch.Change("remove", (name,)) for name in before.properties if name not in properties]
            new = [patch.Change("add", (name,), value) for name, value in properties.items()]
            changed = patch.apply(before, [*gone, *new])
            attributes.check_counts(changed, self._core.limits)
            changed = msgspec.structs.replace(changed, updated_at=self._core.clock.now())
            queries.replace(conn, changed)
            return changed

        return (await self._core.database.write(unit)).for_compute()

    async def remove(self, context: RequestContext, image_id: str) -> None:
        """Delete an image of the caller. Raises ImageNotFound; Forbidden."""
        await self._core.database.read(lambda conn: queries.changeable(conn, context, image_id))
        await self._core.delete(image_id)


def _error_body(status: int, title: str, message: str) -> dict[str, object]:
    """Spec: EMI-06."""
    return {"message": message, "code": status, "title": title}
