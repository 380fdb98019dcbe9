"""Block device mappings: the disks of a server that were asked for, and the volumes that it has."""

from __future__ import annotations

import string
from collections.abc import Collection
from enum import StrEnum

import msgspec

from kilonova.domain.errors import InvalidBlockDevice, TooManyDisks

ROOT = "/dev/vda"
"""The name of the disk that a server boots from in requests of the first form of block device mappings."""
LETTERS = string.ascii_lowercase
"""With which the names of disks end."""


class AttachState(StrEnum):
    """How far a volume is attached to its server; a local disk is ATTACHED from the beginning."""

    RESERVED = "reserved"
    """Kept for the server, and on no host: the server is being built, or has no host."""
    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"


class BlockDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One block device mapping. It is known by its own uuid, never by its volume.

    Args:
        source_type: volume, image, snapshot or blank. destination_type: local or volume.
        boot_index: its place in the order of booting, None for none; 0 is the root disk.
        volume_id: None until there is a volume. Spec: BDM-31.
        volume_size: GiB, that of a swap disk MiB; None for that of the source or the flavor.
        volume_type: name or id, for a volume that is made of the mapping.
        device_name: for example `/dev/vdb`; None while it has none.
        attachment_id: the volume service's.
        connection_info: JSON, as the volume service gives it; may hold secrets.
        encryption_format, encryption_secret_uuid: how an encrypted disk is, and the key manager's id of its key.
    """

    uuid: str
    source_type: str
    destination_type: str
    boot_index: int | None = None
    image_id: str | None = None
    volume_id: str | None = None
    snapshot_id: str | None = None
    volume_size: int | None = None
    volume_type: str | None = None
    guest_format: str | None = None
    device_name: str | None = None
    device_type: str | None = None
    disk_bus: str | None = None
    delete_on_termination: bool = False
    tag: str | None = None
    attachment_id: str | None = None
    connection_info: str | None = None
    encrypted: bool = False
    encryption_format: str | None = None
    encryption_secret_uuid: str | None = None
    state: AttachState = AttachState.ATTACHED

    @property
    def is_volume(self) -> bool:
        """Whether it is, or is to be, a volume."""
        return self.destination_type == "volume"


def check_place(source_type: str, destination_type: str | None) -> None:
    """Whether a disk can come from there and lie there. Where it is to lie is never guessed.

    Raises:
        InvalidBlockDevice. Spec: BDM-29, BDM-30.
    """
    if destination_type is None:
        raise InvalidBlockDevice("destination_type is missing; it is local or volume.")
    if destination_type == "local" and source_type not in ("blank", "image"):
        raise InvalidBlockDevice(f"source type {source_type} needs destination_type volume.")


def device_path(name: str) -> str:
    """The name of a device with its directory: `vdb` and `/dev/vdb` are the same device."""
    return name if name.startswith("/dev/") else f"/dev/{name}"


def next_device_name(prefix: str, taken: Collection[str]) -> str:
    """The first free name of a kind, without its directory: vda, vdb, ..., vdz.

    Args:
        prefix: of the kind, for example `vd`. taken: names without their directory.

    Raises:
        TooManyDisks: none is free. Spec: BDM-14.
    """
    names = (prefix + letter for letter in LETTERS)
    found = next((name for name in names if name not in taken), None)
    if found is None:
        raise TooManyDisks(f"A guest has at most {len(LETTERS)} disks whose names begin with {prefix}.")
    return found
