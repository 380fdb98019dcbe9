"""Asking for images of servers: the request returns when the record of the image exists."""

from __future__ import annotations

import uuid

import msgspec

from kilonova.cells.registry import Located
from kilonova.db.journal import cell_journal
from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.engine.operation import Operation
from kilonova.operations.acceptance import FIRST_LOOK, Acceptance, as_error
from kilonova.operations.backup import BACKUP, BackupServer
from kilonova.operations.options import OperationOptions
from kilonova.operations.server_images import describe_image, is_image_made
from kilonova.operations.snapshot import SNAPSHOT, SnapshotServer
from kilonova.operations.snapshot_volumes import SNAPSHOT_VOLUMES
from kilonova.services.image import NewImage
from kilonova.shapes.quiesce import Quiesce, quiesce_of
from kilonova.shapes.resources import is_volume_backed

IMAGE_LIMIT = 10.0
"""Seconds that the record of a new image is waited for. It is made even if that takes longer."""


class ImageAsking:
    """Asks for snapshots and backups."""

    def __init__(self, acceptance: Acceptance, clock: Clock, options: OperationOptions) -> None:
        self._acceptance = acceptance
        self._clock = clock
        self._options = options

    async def create_image(
        self, context: RequestContext, server: Located, name: str, metadata: dict[str, str]
    ) -> str:
        image = self._image(context, server, name, "snapshot", metadata)
        definition = SNAPSHOT_VOLUMES if is_volume_backed(server.instance.block_devices) else SNAPSHOT
        await self._make_image(context, server, definition, SnapshotServer(image=image, quiesce=_quiesce(server)))
        return image.id

    async def create_backup(
        self, context: RequestContext, server: Located, name: str, metadata: dict[str, str], *, backup_type: str,
        rotation: int | None,
    ) -> str:
        image = self._image(context, server, name, "backup", {**metadata, "backup_type": backup_type})
        request = BackupServer(
            image=image, quiesce=_quiesce(server), backup_type=backup_type, rotation=rotation
        )
        await self._make_image(context, server, BACKUP, request)
        return image.id

    def _image(
        self, context: RequestContext, server: Located, name: str, kind: str, metadata: dict[str, str]
    ) -> NewImage:
        return describe_image(
            context, server.instance, self._options, image_id=str(uuid.uuid4()), name=name, kind=kind,
            metadata=metadata,
        )

    async def _make_image(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct
    ) -> None:
        """Accept it (a locked server obeys, API-124), and wait until the record of the image exists or could not be
        made. Spec: SNP-01."""
        operation = (await self._acceptance.submit(context, server, definition, request, alone=True)).record.id
        assert server.cell is not None
        give_up = self._clock.monotonic() + IMAGE_LIMIT
        while self._clock.monotonic() < give_up:
            record = await server.cell.database.read(lambda conn: cell_journal.get(conn, operation))
            if record is None or is_image_made(record):
                return
            if record.failure is not None:
                raise as_error(record)
            await self._clock.sleep(FIRST_LOOK)


def _quiesce(server: Located) -> Quiesce:
    image = server.instance.image
    return quiesce_of(image.properties) if image is not None else Quiesce.NO
