"""What users say of a new volume, and what follows from that for its record."""

from __future__ import annotations

import uuid

import msgspec
import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InvalidInput
from kilonova.embedded.volume import backups, default_types, snapshots, volume_types, volumes
from kilonova.embedded.volume.records import Volume
from kilonova.embedded.volume.states import VolumeStatus

ZONE = "nova"
"""The availability zone of all volumes."""


class NewVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that a user asks for. At most one of the sources is given.

    Args:
        size: GiB, None for that of the source. volume_type: name or id, None for the default or the source's.
        hosts: pools that may have it, () for any.
        id: for a call that may be repeated: the volume's, None for any.
    """

    size: int | None = None
    name: str | None = None
    description: str | None = None
    volume_type: str | None = None
    availability_zone: str | None = None
    metadata: dict[str, str] = {}
    snapshot_id: str | None = None
    source_volid: str | None = None
    image_id: str | None = None
    backup_id: str | None = None
    hosts: tuple[str, ...] = ()
    id: str | None = None


def describe(conn: sa.Connection, caller: RequestContext, new: NewVolume, now: float, default_type: str) -> Volume:
    """The record of a new volume, as far as it follows from its source and its type.

    Args:
        default_type: name of the type where nothing tells one.

    Raises:
        VolumeNotFound, VolumeSnapshotNotFound, VolumeTypeNotFound, BackupNotFound. InvalidInput: the size, or a copy
        that would not be encrypted as its source is.
    """
    id_, source, size = new.id or str(uuid.uuid4()), None, new.size
    if new.snapshot_id is not None:
        snapshot = snapshots.visible(conn, caller, new.snapshot_id)
        source, size = volumes.get(conn, snapshot.volume_id), size or snapshot.size
    elif new.source_volid is not None:
        source = volumes.visible(conn, caller, new.source_volid)
        size = size or source.size
    backup = backups.visible(conn, caller, new.backup_id) if new.backup_id is not None else None
    if backup is not None:
        size = size or backup.size
    if size is None or size < 1:
        raise InvalidInput("The size of a volume must be 1 GiB or more.")
    if new.volume_type is not None:
        type_ = volume_types.named(conn, caller, new.volume_type)
    elif source is not None and source.type_id is not None:
        type_ = volume_types.get(conn, source.type_id)
    else:
        type_ = default_types.effective(conn, caller.project_id, default_type)
    encryption = volume_types.encryption(conn, type_.id)
    key = str(uuid.uuid4()) if encryption is not None else None
    if source is not None:
        if source.encrypted != (encryption is not None):
            raise InvalidInput(f"A copy of volume {source.id} is encrypted as that one is; {type_.name} is not.")
        key = source.encryption_key_id
    like = source or backup
    return Volume(
        id=id_, name_id=id_, project_id=caller.project_id or "", user_id=caller.user_id, name=new.name,
        description=new.description, size=size, status=VolumeStatus.CREATING, type_id=type_.id,
        availability_zone=new.availability_zone or ZONE, multiattach=type_.multiattach, encryption_key_id=key,
        snapshot_id=new.snapshot_id, source_volid=new.source_volid,
        metadata=(backup.volume_metadata if backup is not None else {}) | new.metadata,
        bootable=like.bootable if like is not None else False,
        image_metadata=like.image_metadata if like is not None else {}, created_at=now, updated_at=now,
    )
