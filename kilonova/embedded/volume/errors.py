"""Errors of the volume service, with the statuses that its clients know. Spec: EMV-05, EMV-06, EMV-10."""

from __future__ import annotations

from kilonova.domain import errors
from kilonova.domain.errors import InvalidInput, KilonovaError, NotFound, VolumeAttachmentNotFound


class AttachmentNotFound(VolumeAttachmentNotFound):
    """There is no such attachment, or not for this caller."""


class VolumeTypeNotFound(NotFound):
    def __init__(self, type_: str) -> None:
        super().__init__(f"Volume type {type_} could not be found.")


class BackupNotFound(NotFound):
    def __init__(self, backup: str) -> None:
        super().__init__(f"Backup {backup} could not be found.")


class TransferNotFound(NotFound):
    def __init__(self, transfer: str) -> None:
        super().__init__(f"Transfer {transfer} could not be found.")


class MessageNotFound(NotFound):
    def __init__(self, message: str) -> None:
        super().__init__(f"Message {message} could not be found.")


class InvalidVolume(errors.InvalidVolume):
    """A volume is in a state that does not allow this."""

    def __init__(self, volume: str, why: str) -> None:
        super().__init__(f"Invalid volume: Volume {volume} {why}.")


class InvalidSnapshot(InvalidInput):
    """A snapshot is in a state that does not allow this."""

    def __init__(self, snapshot: str, why: str) -> None:
        super().__init__(f"Invalid snapshot: Snapshot {snapshot} {why}.")


class InvalidBackup(InvalidInput):
    """A backup is in a state that does not allow this."""

    def __init__(self, backup: str, why: str) -> None:
        super().__init__(f"Invalid backup: Backup {backup} {why}.")


class VolumeOverQuota(KilonovaError):
    """A quota of the project would be exceeded."""

    status = 413

    def __init__(self, resource: str, asked: int, used: int, limit: int) -> None:
        super().__init__(
            f"Quota exceeded for {resource}: {asked} requested, {used} of {limit} in use.",
            hint="delete what is not needed, or ask for a higher quota",
        )
