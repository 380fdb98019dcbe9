"""What the volume service keeps, as plain data. Sizes are GiB, times are seconds since the epoch."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Generic, TypeVar

import msgspec

from kilonova.embedded.volume.states import TARGET, AttachStatus, BackupStatus, SnapshotStatus, VolumeStatus

GIB = 1 << 30

MULTIATTACH_SPEC = "multiattach"
IS_TRUE = "<is> True"


StatusT = TypeVar("StatusT", bound=StrEnum)


class Owned(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to a project."""

    id: str
    project_id: str


class Guarded(Owned, Generic[StatusT], frozen=True, kw_only=True):
    """What is done to it depends on its status."""

    status: StatusT


class VolumeType(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    description: str | None = None
    is_public: bool = True
    extra_specs: dict[str, str] = {}
    created_at: float = 0.0
    updated_at: float | None = None

    @property
    def multiattach(self) -> bool:
        """Spec: EMV-09."""
        return self.extra_specs.get(MULTIATTACH_SPEC) == IS_TRUE


class Encryption(msgspec.Struct, frozen=True, kw_only=True):
    """How the volumes of a type are encrypted.

    Args:
        key_size: bits. control_location: front-end (the hypervisor decrypts) or back-end.
    """

    id: str
    type_id: str
    provider: str
    cipher: str | None = None
    key_size: int | None = None
    control_location: str = "front-end"
    created_at: float = 0.0
    updated_at: float | None = None


class Volume(Guarded[VolumeStatus], frozen=True, kw_only=True):
    """One volume.

    Args:
        host: its pool, as `host@backend#pool`, None while it has none.
        previous_status: what it was before the operation that works on it.
        migration_status: None if it was never migrated, or see `kilonova.embedded.volume.states`.
        name_id: under which its pool has its data.
        readonly: None if nobody has said.
        encryption_key_id: None if it is not encrypted.
        image_metadata: of the image that it was made from, {} if from none.
    """

    user_id: str
    name: str | None = None
    description: str | None = None
    size: int
    previous_status: VolumeStatus | None = None
    attach_status: AttachStatus = AttachStatus.DETACHED
    migration_status: str | None = None
    host: str | None = None
    name_id: str
    type_id: str | None = None
    availability_zone: str
    bootable: bool = False
    multiattach: bool = False
    readonly: bool | None = None
    encryption_key_id: str | None = None
    snapshot_id: str | None = None
    source_volid: str | None = None
    metadata: dict[str, str] = {}
    image_metadata: dict[str, str] = {}
    created_at: float = 0.0
    updated_at: float | None = None

    @property
    def encrypted(self) -> bool:
        return self.encryption_key_id is not None

    @property
    def migration_target_of(self) -> str | None:
        """The volume that this one is to replace: it is hidden, and counts against no quota."""
        status = self.migration_status
        return status.removeprefix(TARGET) if status is not None and status.startswith(TARGET) else None


class Snapshot(Guarded[SnapshotStatus], frozen=True, kw_only=True):
    """progress: percent."""

    volume_id: str
    user_id: str
    name: str | None = None
    description: str | None = None
    size: int
    progress: int = 0
    metadata: dict[str, str] = {}
    created_at: float = 0.0
    updated_at: float | None = None


class Attachment(Owned, frozen=True, kw_only=True):
    """One attachment.

    Args:
        instance_id: the server; None for one of a host, or of a server that is not known yet.
        mode: rw or ro.
        connector: who connects; None while it is only reserved. An export exists exactly while there is one.
        connection: what the connector needs: `driver_volume_type` beside its data.
        mountpoint: the device's name in the server.
    """

    volume_id: str
    instance_id: str | None = None
    host_name: str | None = None
    status: AttachStatus = AttachStatus.RESERVED
    mode: str = "rw"
    mountpoint: str | None = None
    connector: dict[str, Any] | None = None
    connection: dict[str, Any] | None = None
    attached_at: float | None = None
    created_at: float = 0.0
    updated_at: float | None = None


class Backup(Guarded[BackupStatus], frozen=True, kw_only=True):
    """A copy of a volume's data, outside its pool.

    Args:
        data_at: when the data was as the backup has it.
        snapshot_id: the snapshot that was copied, None for the volume itself.
        bootable, volume_metadata, image_metadata: as the volume had them.
    """

    volume_id: str
    snapshot_id: str | None = None
    user_id: str
    name: str | None = None
    description: str | None = None
    container: str
    size: int
    fail_reason: str | None = None
    bootable: bool = False
    volume_metadata: dict[str, str] = {}
    image_metadata: dict[str, str] = {}
    data_at: float = 0.0
    created_at: float = 0.0
    updated_at: float | None = None


class Transfer(Owned, frozen=True, kw_only=True):
    """An offer of a volume to another project. Only a hash of its key is kept."""

    volume_id: str
    name: str | None = None
    salt: str
    auth_hash: str
    no_snapshots: bool = False
    created_at: float = 0.0


class Message(Owned, frozen=True, kw_only=True):
    """What a user is told of something that went wrong in the background.

    Args:
        resource_type: VOLUME, VOLUME_SNAPSHOT or VOLUME_BACKUP.
        event_id: stable, for programs. guaranteed_until: it may go after that.
    """

    request_id: str
    resource_type: str
    resource_uuid: str
    event_id: str
    user_message: str
    created_at: float
    guaranteed_until: float


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the service as operators see it. host: `host@backend` for a pool's."""

    id: str
    binary: str
    host: str
    disabled: bool = False
    disabled_reason: str | None = None
    updated_at: float = 0.0
