"""The statuses of volumes, snapshots, attachments and backups, and which may follow which. Spec: EMV-01, EMV-05."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class VolumeStatus(StrEnum):
    CREATING = "creating"
    DOWNLOADING = "downloading"
    """An image is being written to it."""
    AVAILABLE = "available"
    RESERVED = "reserved"
    """An attachment without a connector waits for one."""
    ATTACHING = "attaching"
    IN_USE = "in-use"
    DETACHING = "detaching"
    EXTENDING = "extending"
    RETYPING = "retyping"
    MAINTENANCE = "maintenance"
    """It migrates and was locked for that time."""
    UPLOADING = "uploading"
    BACKING_UP = "backing-up"
    RESTORING_BACKUP = "restoring-backup"
    REVERTING = "reverting"
    AWAITING_TRANSFER = "awaiting-transfer"
    DELETING = "deleting"
    ERROR = "error"
    ERROR_DELETING = "error_deleting"
    ERROR_EXTENDING = "error_extending"
    ERROR_RESTORING = "error_restoring"
    ERROR_BACKING_UP = "error_backing-up"
    ERROR_MANAGING = "error_managing"


class AttachStatus(StrEnum):
    """Of a volume as a whole, and of each attachment."""

    DETACHED = "detached"
    RESERVED = "reserved"
    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"
    ERROR_ATTACHING = "error_attaching"
    ERROR_DETACHING = "error_detaching"
    DELETED = "deleted"


class SnapshotStatus(StrEnum):
    CREATING = "creating"
    AVAILABLE = "available"
    BACKING_UP = "backing-up"
    RESTORING = "restoring"
    """Its volume is being reverted to it."""
    DELETING = "deleting"
    ERROR = "error"
    ERROR_DELETING = "error_deleting"


class BackupStatus(StrEnum):
    CREATING = "creating"
    AVAILABLE = "available"
    RESTORING = "restoring"
    DELETING = "deleting"
    ERROR = "error"
    ERROR_DELETING = "error_deleting"


STARTING = "starting"
MIGRATING = "migrating"
COMPLETING = "completing"
SUCCESS = "success"
FAILED = "error"
"""Migration statuses, beside none and `target:<volume>`."""

TARGET = "target:"

IDLE_MIGRATIONS = frozenset({None, SUCCESS, FAILED})
"""Migration statuses of a volume that does not migrate."""

DELETABLE = frozenset({
    VolumeStatus.AVAILABLE, VolumeStatus.ERROR, VolumeStatus.ERROR_RESTORING, VolumeStatus.ERROR_EXTENDING,
    VolumeStatus.ERROR_MANAGING, VolumeStatus.ERROR_DELETING, VolumeStatus.ERROR_BACKING_UP,
})

_STRENGTH = (AttachStatus.ATTACHED, AttachStatus.ATTACHING, AttachStatus.RESERVED)
_HELD = (AttachStatus.DETACHING, AttachStatus.ERROR_DETACHING)
"""Of an attachment that may still have its export."""
_SHOWS = {
    AttachStatus.ATTACHED: VolumeStatus.IN_USE, AttachStatus.ATTACHING: VolumeStatus.ATTACHING,
    AttachStatus.RESERVED: VolumeStatus.RESERVED, AttachStatus.DETACHED: VolumeStatus.AVAILABLE,
}


def strongest(statuses: Iterable[AttachStatus]) -> AttachStatus:
    """What a volume is, as a whole, that has these attachments. Spec: EMV-01."""
    held = {AttachStatus.ATTACHED if one in _HELD else one for one in statuses}
    return next((one for one in _STRENGTH if one in held), AttachStatus.DETACHED)


def shown(attached: AttachStatus) -> VolumeStatus:
    """The status of a volume that is attached so and is not worked on otherwise."""
    return _SHOWS[attached]
