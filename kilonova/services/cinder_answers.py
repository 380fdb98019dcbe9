"""Answers of Cinder, as far as they are read, and what they say in the terms of `kilonova.services.volumes`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from kilonova.domain.errors import KilonovaError
from kilonova.services.volumes import AttachedServer, Attachment, Encryption, Snapshot, Volume

T = TypeVar("T")
KEY = "kilonova_key"
"""In the metadata of volumes and snapshots: under which key they were made."""


class Version(msgspec.Struct):
    id: str
    version: str = ""


class Versions(msgspec.Struct):
    versions: list[Version] = []


class AttachedServerAnswer(msgspec.Struct):
    attachment_id: str
    server_id: str | None = None
    host_name: str | None = None
    device: str | None = None


class VolumeAnswer(msgspec.Struct):
    id: str
    status: str
    size: int
    project_id: str | None = msgspec.field(name="os-vol-tenant-attr:tenant_id", default=None)
    name: str | None = None
    user_id: str | None = None
    availability_zone: str | None = None
    volume_type: str | None = None
    bootable: str = "false"
    multiattach: bool = False
    encrypted: bool = False
    migration_status: str | None = None
    metadata: dict[str, str] = {}
    description: str | None = None
    snapshot_id: str | None = None
    created_at: str | None = None
    volume_image_metadata: dict[str, Any] = {}
    attachments: list[AttachedServerAnswer] = []


class OneVolume(msgspec.Struct):
    volume: VolumeAnswer


class ManyVolumes(msgspec.Struct):
    volumes: list[VolumeAnswer]


class TypeAnswer(msgspec.Struct):
    id: str
    name: str


class ManyTypes(msgspec.Struct):
    volume_types: list[TypeAnswer]


class SnapshotAnswer(msgspec.Struct):
    id: str
    volume_id: str
    status: str
    size: int
    project_id: str | None = msgspec.field(name="os-extended-snapshot-attributes:project_id", default=None)
    name: str | None = None
    description: str | None = None
    created_at: str | None = None
    metadata: dict[str, str] = {}


class OneSnapshot(msgspec.Struct):
    snapshot: SnapshotAnswer


class ManySnapshots(msgspec.Struct):
    snapshots: list[SnapshotAnswer]


class AttachmentAnswer(msgspec.Struct):
    id: str
    volume_id: str
    status: str
    instance: str | None = None
    attach_mode: str | None = None
    connection_info: dict[str, Any] | None = None


class OneAttachment(msgspec.Struct):
    attachment: AttachmentAnswer


class ManyAttachments(msgspec.Struct):
    attachments: list[AttachmentAnswer]


class EncryptionAnswer(msgspec.Struct):
    encryption_key_id: str | None = None
    provider: str | None = None
    control_location: str | None = None
    cipher: str | None = None
    key_size: int | None = None


class Made(msgspec.Struct):
    id: str


class MadeVolume(msgspec.Struct):
    volume: Made


class MadeSnapshot(msgspec.Struct):
    snapshot: Made


class Saved(msgspec.Struct):
    save_volume_id: str


def read(answer: Any, type_: type[T]) -> T:
    """Raises KilonovaError: the answer is not what it must be."""
    try:
        return msgspec.convert(answer, type_)
    except msgspec.ValidationError as error:
        raise KilonovaError(f"The volume service answers something unexpected: {error}.") from error


def volume(found: VolumeAnswer) -> Volume:
    return Volume(
        id=found.id, name=found.name or "", status=found.status, size=found.size, project_id=found.project_id or "",
        user_id=found.user_id or "", availability_zone=found.availability_zone or "", volume_type=found.volume_type,
        bootable=found.bootable.lower() == "true", multiattach=found.multiattach, encrypted=found.encrypted,
        read_only=found.metadata.get("readonly", "").lower() == "true", migration_status=found.migration_status,
        image_metadata={name: str(value) for name, value in found.volume_image_metadata.items()},
        description=found.description or "", snapshot_id=found.snapshot_id, created_at=_seconds(found.created_at),
        metadata={name: value for name, value in found.metadata.items() if name != KEY},
        attachments=tuple(
            AttachedServer(
                attachment_id=one.attachment_id, server_id=one.server_id, host=one.host_name or "", device=one.device
            )
            for one in found.attachments
        ),
    )


def attachment(found: AttachmentAnswer) -> Attachment:
    return Attachment(
        id=found.id, volume_id=found.volume_id, instance_uuid=found.instance, status=found.status,
        mode=found.attach_mode or "rw", connection_info=found.connection_info or None,
    )


def encryption(found: EncryptionAnswer) -> Encryption | None:
    if found.encryption_key_id is None or found.provider is None:
        return None
    return Encryption(
        key_id=found.encryption_key_id, provider=found.provider, cipher=found.cipher, key_size=found.key_size,
        control_location=found.control_location or "front-end",
    )


def snapshot(found: SnapshotAnswer) -> Snapshot:
    return Snapshot(
        id=found.id, volume_id=found.volume_id, project_id=found.project_id or "", status=found.status,
        size=found.size, name=found.name or "", description=found.description or "",
        created_at=_seconds(found.created_at),
    )


def _seconds(time: str | None) -> float:
    """Since the epoch, of a time of UTC that does not say so. Raises KilonovaError."""
    try:
        return datetime.fromisoformat(time).replace(tzinfo=UTC).timestamp() if time is not None else 0.0
    except ValueError as error:
        raise KilonovaError(f"The volume service answers something unexpected: {time!r} is no time.") from error
