"""The embedded volume service as the compute service calls it, in the same process.

It asks as a service: what a user may see is decided by the context of the user alone.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Iterator
from typing import Any

import sqlalchemy as sa

from kilonova.domain import errors
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import (
    InvalidInput,
    KilonovaError,
    NotFound,
    NotSupported,
    OverQuota,
    Retryable,
    ServiceUnavailable,
    VolumeNotFound,
    VolumeSnapshotNotFound,
)
from kilonova.embedded.volume import attachments, new_volumes, records, snapshots, volume_types, volumes
from kilonova.embedded.volume.errors import AttachmentNotFound, VolumeOverQuota
from kilonova.embedded.volume.service import EmbeddedVolumes
from kilonova.embedded.volume.states import AttachStatus, SnapshotStatus, VolumeStatus
from kilonova.services.identity import SERVICE_ROLE
from kilonova.services.volumes import (
    BEING_MADE,
    AttachedServer,
    Attachment,
    Encryption,
    NewSnapshot,
    NewVolume,
    Snapshot,
    Volume,
    for_take_over,
)

COMPUTE = RequestContext(
    request_id="", user_id="compute", project_id=None, roles=("admin", SERVICE_ROLE), is_admin=True
)
"""The compute service, asking for itself."""
KEYS = uuid.UUID("6e5d1b4e-7c0a-5a83-9b0f-0f1c2a6c1d4e")
"""Namespace of the ids of what is made under a key."""
REPORTED = 90
"""Percent that the part of the hypervisor is of taking or deleting a snapshot."""

TAKEN = (errors.InvalidVolume, sa.exc.IntegrityError)
"""Errors of making what a repetition of the call makes at the same time."""

S, N = VolumeStatus, SnapshotStatus
REPORTS = {N.CREATING: (N.CREATING, N.ERROR), N.DELETING: (N.DELETING, N.ERROR_DELETING)}
"""What may be reported of a snapshot, by its status."""


class VolumeClient:
    """A `kilonova.services.volumes.VolumeService`. volumes: started."""

    def __init__(self, volumes: EmbeddedVolumes) -> None:
        self._volumes = volumes
        self._database = volumes.database
        self._clock = volumes.clock

    # --- volumes ---------------------------------------------------------------------------------

    async def volume(self, context: RequestContext | None, volume_id: str) -> Volume:
        return await self._database.read(
            lambda conn: _described(conn, volumes.visible(conn, context or COMPUTE, volume_id))
        )

    async def check_type(self, context: RequestContext, type_: str | None) -> None:
        if type_ is not None:
            await self._database.read(lambda conn: volume_types.named(conn, context, type_))

    async def volumes(self, context: RequestContext, *, limit: int, offset: int) -> list[Volume]:
        def unit(conn: sa.Connection) -> list[Volume]:
            found = volumes.of_project(conn, context.project_id or "", limit=limit, offset=offset)
            return [_described(conn, one) for one in found]

        return await self._database.read(unit)

    async def create_volume(self, context: RequestContext, new: NewVolume) -> Volume:
        id_ = _made(new.key)
        with contextlib.suppress(VolumeNotFound):
            return await self.volume(None, id_)
        wanted = new_volumes.NewVolume(
            id=id_, size=new.size, name=new.name, description=new.description, image_id=new.image_id,
            snapshot_id=new.snapshot_id, volume_type=new.volume_type, availability_zone=new.availability_zone,
            metadata=new.metadata,
        )
        try:
            with _translated():
                await self._volumes.create(context, wanted)
        except TAKEN:
            if await self._find(id_) is None:
                raise
        return await self.volume(None, id_)

    async def discard_volume(self, key: str) -> None:
        found = await self._find(_made(key))
        if found is not None and found.status in BEING_MADE:
            raise Retryable(f"Volume {found.id} is still being made.")
        if found is not None:
            await self.delete_volume(found.id)

    async def delete_volume(self, volume_id: str) -> None:
        with contextlib.suppress(VolumeNotFound), _translated():
            await self._volumes.delete(COMPUTE, volume_id)

    async def extend_completed(self, volume_id: str, *, error: bool) -> None:
        await self._volumes.extend_completion(COMPUTE, volume_id, error=error)

    async def migration_completed(self, volume_id: str, new_volume_id: str, *, error: bool) -> str:
        with _translated():
            return await self._volumes.moves.complete(COMPUTE, volume_id, new_volume_id, error=error)

    async def reimage(self, volume_id: str, image_id: str) -> None:
        try:
            with _translated():
                await self._volumes.reimage(COMPUTE, volume_id, image_id, reserved=True, join=True)
        except InvalidInput as error:
            found = await self._find(volume_id)
            if found is None or found.status is not S.DOWNLOADING:
                raise errors.InvalidVolume(error.message, hint=error.hint) from error

    async def encryption(self, volume_id: str) -> Encryption | None:
        def unit(conn: sa.Connection) -> Encryption | None:
            volume = volumes.get(conn, volume_id)
            if volume.encryption_key_id is None or volume.type_id is None:
                return None
            found = volume_types.encryption(conn, volume.type_id)
            return None if found is None else Encryption(
                key_id=volume.encryption_key_id, provider=found.provider, cipher=found.cipher,
                key_size=found.key_size, control_location=found.control_location,
            )

        return await self._database.read(unit)

    async def passphrase(self, volume_id: str) -> str:
        key_id = (await self._database.read(lambda conn: volumes.get(conn, volume_id))).encryption_key_id
        if key_id is None:
            raise NotFound(f"Volume {volume_id} is not encrypted.")
        keys = self._volumes.environment.keys
        if keys is None:
            raise NotSupported("There is no key manager.", hint="configure one")
        return keys.passphrase(key_id)

    async def _find(self, volume_id: str) -> records.Volume | None:
        return await self._database.read(lambda conn: volumes.find(conn, volume_id))

    # --- attachments -----------------------------------------------------------------------------

    async def attachment(self, attachment_id: str) -> Attachment:
        return _attachment(await self._database.read(lambda conn: attachments.get(conn, attachment_id)))

    async def attachments(self, instance_uuid: str) -> list[Attachment]:
        found = await self._database.read(lambda conn: attachments.of_instance(conn, instance_uuid))
        return [_attachment(one) for one in found]

    async def create_attachment(
        self, volume_id: str, instance_uuid: str, known: Collection[str], *,
        connector: dict[str, Any] | None = None, read_only: bool = False,
    ) -> Attachment:
        now = self._clock.now()

        def unit(conn: sa.Connection) -> Attachment:
            volumes.get(conn, volume_id, lock=True)
            held = [_attachment(one) for one in attachments.of_volume(conn, volume_id)]
            found = for_take_over(held, instance_uuid, known, connected=connector is not None)
            if found is not None:
                return found
            mode = "ro" if read_only else None
            return _attachment(attachments.reserve(conn, COMPUTE, volume_id, instance_uuid, now, mode=mode))

        made = await self._database.write(unit)
        return made if connector is None else await self.update_attachment(made.id, connector)

    async def update_attachment(self, attachment_id: str, connector: dict[str, Any]) -> Attachment:
        with _translated():
            return _attachment(await self._volumes.attachments.update(COMPUTE, attachment_id, connector))

    async def complete_attachment(self, attachment_id: str) -> None:
        await self._volumes.attachments.complete(COMPUTE, attachment_id)

    async def delete_attachment(self, attachment_id: str) -> None:
        with contextlib.suppress(AttachmentNotFound), _translated():
            await self._volumes.attachments.delete(COMPUTE, attachment_id)

    async def discard_attachments(self, volume_id: str, instance_uuid: str, known: Collection[str]) -> None:
        for one in await self.attachments(instance_uuid):
            if one.volume_id == volume_id and one.id not in known:
                await self.delete_attachment(one.id)

    async def begin_detaching(self, volume_id: str) -> None:
        try:
            await self._volumes.attachments.begin_detaching(COMPUTE, volume_id)
        except errors.InvalidVolume:
            found = await self._find(volume_id)
            if found is None or found.status is not S.DETACHING:
                raise

    async def roll_detaching(self, volume_id: str) -> None:
        with contextlib.suppress(VolumeNotFound):
            await self._volumes.attachments.roll_detaching(COMPUTE, volume_id)

    # --- snapshots -------------------------------------------------------------------------------

    async def snapshot(self, context: RequestContext | None, snapshot_id: str) -> Snapshot:
        return _snapshot(await self._database.read(
            lambda conn: snapshots.visible(conn, context or COMPUTE, snapshot_id)
        ))

    async def snapshots(self, context: RequestContext, *, limit: int, offset: int) -> list[Snapshot]:
        found = await self._database.read(
            lambda conn: snapshots.of_project(conn, context.project_id or "", limit=limit, offset=offset)
        )
        return [_snapshot(one) for one in found]

    async def create_snapshot(self, context: RequestContext, new: NewSnapshot) -> Snapshot:
        id_ = _made(new.key)
        with contextlib.suppress(VolumeSnapshotNotFound):
            return await self.snapshot(None, id_)
        try:
            with _translated():
                return _snapshot(await self._volumes.create_snapshot(
                    context, new.volume_id, name=new.name, description=new.description, force=True, snapshot_id=id_
                ))
        except TAKEN:
            with contextlib.suppress(VolumeSnapshotNotFound):
                return await self.snapshot(None, id_)
            raise

    async def discard_snapshot(self, volume_id: str, key: str) -> None:
        try:
            found = await self.snapshot(None, _made(key))
        except VolumeSnapshotNotFound:
            return
        if found.status in BEING_MADE:
            raise Retryable(f"Snapshot {found.id} is still being taken.")
        await self.delete_snapshot(found.id)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        with contextlib.suppress(VolumeSnapshotNotFound), _translated():
            await self._volumes.delete_snapshot(COMPUTE, snapshot_id)

    async def report_snapshot(self, snapshot_id: str, status: str) -> None:
        now = self._clock.now()

        def unit(conn: sa.Connection) -> None:
            before = snapshots.get(conn, snapshot_id, lock=True)
            allowed = REPORTS.get(before.status)
            if allowed is None:
                return
            if status not in allowed:
                raise InvalidInput(f"Snapshot {snapshot_id} is {before.status.value} and cannot become {status}.")
            snapshots.move(conn, snapshot_id, [before.status], SnapshotStatus(status), now, progress=REPORTED)

        with contextlib.suppress(VolumeSnapshotNotFound):
            await self._database.write(unit)


def _made(key: str) -> str:
    """The id of what is made under a key."""
    return str(uuid.uuid5(KEYS, key))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Errors of this service as compute knows them; what may be cured by itself is worth a retry. Spec: EMV-21."""
    try:
        yield
    except VolumeOverQuota as error:
        raise OverQuota(error.message, hint=error.hint) from error
    except KilonovaError as error:
        if error.status in (500, 504):
            raise ServiceUnavailable(error.message, hint=error.hint) from error
        raise


def _described(conn: sa.Connection, volume: records.Volume) -> Volume:
    return Volume(
        id=volume.id, name=volume.name or "", status=volume.status.value, size=volume.size,
        project_id=volume.project_id, user_id=volume.user_id, availability_zone=volume.availability_zone,
        volume_type=None if volume.type_id is None else volume_types.get(conn, volume.type_id).name,
        bootable=volume.bootable, multiattach=volume.multiattach, encrypted=volume.encrypted,
        read_only=bool(volume.readonly), migration_status=volume.migration_status, image_metadata=volume.image_metadata,
        description=volume.description or "", metadata=volume.metadata, snapshot_id=volume.snapshot_id,
        created_at=volume.created_at,
        attachments=tuple(
            AttachedServer(
                attachment_id=one.id, server_id=one.instance_id, device=one.mountpoint,
                host=one.host_name or str((one.connector or {}).get("host", "")),
            )
            for one in attachments.of_volume(conn, volume.id) if one.status is AttachStatus.ATTACHED
        ),
    )


def _attachment(one: records.Attachment) -> Attachment:
    return Attachment(
        id=one.id, volume_id=one.volume_id, instance_uuid=one.instance_id, status=one.status.value, mode=one.mode,
        connection_info=one.connection,
    )


def _snapshot(one: records.Snapshot) -> Snapshot:
    return Snapshot(
        id=one.id, volume_id=one.volume_id, project_id=one.project_id, status=one.status.value, size=one.size,
        name=one.name or "", description=one.description or "", created_at=one.created_at,
    )
