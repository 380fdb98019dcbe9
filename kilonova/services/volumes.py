"""The volume service (OpenStack: Cinder), as the compute service needs it.

Every call may be repeated: steps of operations are, after a crash, and so is a call whose answer was lost. What is
made carries the mark of who wanted it:

- A volume or a snapshot is made under a `key`; a second call with the same key returns what the first one made, and
  `discard_volume` and `discard_snapshot` find it by the key, also if no answer ever told its id.
- An attachment is found by its server and volume. A server may have several attachments of one volume (one for each
  host while it moves, a second one that keeps the volume while the first goes), so the caller says which of them it
  knows: `known`, the ids that its records name. At most one operation works on a server at a time, so an attachment of
  the server that nobody knows is one that an attempt of this operation made, or one that was left behind before:
  `create_attachment` takes it over, and `discard_attachments` deletes all of that kind. An undo calls the latter, since
  it may not know what its step has made.

A request that the network delivers after its repetition was answered can still make an attachment that no record names.
It is reserved and gives no host access, and goes with the next `discard_attachments` of the server and volume, which is
why every operation that takes a volume from a server ends with that call.

Spec: VOL-08, VOL-20, VOL-23, BDM-09, LMC-43, RBD-39.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol

import msgspec

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InvalidVolume

UNUSED = ("reserved", "attaching")
"""Statuses of attachments that no server uses yet."""
BEING_MADE = ("creating", "downloading")
"""Statuses of volumes and snapshots that are not there yet."""


class AttachedServer(msgspec.Struct, frozen=True, kw_only=True):
    """A server (None: a host) that uses a volume. host: "" if it is not told."""

    attachment_id: str
    server_id: str | None = None
    host: str = ""
    device: str | None = None


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as the service describes it.

    Args:
        status: `available`, `reserved`, `in-use` ... size: GiB.
        volume_type: its name. read_only: servers get it so.
        migration_status: None if it does not migrate and never did.
        image_metadata: of the image that it was made from. created_at: seconds since the epoch.
        attachments: the servers that use it; what is only reserved is not among them.
    """

    id: str
    name: str = ""
    status: str
    size: int
    project_id: str
    user_id: str = ""
    availability_zone: str = ""
    volume_type: str | None = None
    bootable: bool = False
    multiattach: bool = False
    encrypted: bool = False
    read_only: bool = False
    migration_status: str | None = None
    image_metadata: dict[str, str] = {}
    description: str = ""
    metadata: dict[str, str] = {}
    snapshot_id: str | None = None
    created_at: float = 0.0
    attachments: tuple[AttachedServer, ...] = ()


class NewVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that is to be made: blank, or from one source.

    Args:
        key: makes the call repeatable. size: GiB, None for that of the snapshot.
        volume_type, availability_zone: None for the service's choice.
    """

    key: str
    size: int | None = None
    name: str = ""
    description: str = ""
    image_id: str | None = None
    snapshot_id: str | None = None
    volume_type: str | None = None
    availability_zone: str | None = None
    metadata: dict[str, str] = {}


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """size: GiB, of the volume when it was taken. created_at: seconds since the epoch."""

    id: str
    volume_id: str
    project_id: str
    status: str
    size: int
    name: str = ""
    description: str = ""
    created_at: float = 0.0


class NewSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that is to be taken, also of a volume in use. key: makes the call repeatable."""

    key: str
    volume_id: str
    name: str = ""
    description: str = ""


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """What ties a volume to a server from its reservation on.

    Args:
        status: `reserved`, `attaching`, `attached` ... mode: `rw` or `ro`.
        connection_info: what a host needs, as the service tells it: `driver_volume_type` beside its data. It may hold
            secrets. None while no connector was given.
    """

    id: str
    volume_id: str
    instance_uuid: str | None = None
    status: str = ""
    mode: str = "rw"
    connection_info: dict[str, Any] | None = None


class Encryption(msgspec.Struct, frozen=True, kw_only=True):
    """How a volume is encrypted.

    Args:
        control_location: `front-end`, where the hypervisor decrypts, or `back-end`. key_size: bits.
    """

    key_id: str
    provider: str
    control_location: str
    cipher: str | None = None
    key_size: int | None = None


class VolumeService(Protocol):
    """The calls the compute service makes. All may be repeated.

    A context is that of the user for whom it is asked: what it may not see is not found. Where there is none, or it is
    None, the service itself asks, and sees everything.

    Raises:
        ServiceUnavailable: no answer, or the service cannot now: worth a retry. Forbidden: it refuses the account of
            the compute service. KilonovaError: anything else that is wrong with it. All of these from every call.
    """

    async def volume(self, context: RequestContext | None, volume_id: str) -> Volume:
        """Raises VolumeNotFound."""
        ...

    async def check_type(self, context: RequestContext, type_: str | None) -> None:
        """Whether there is a type of volumes, by its name or id; None asks only whether there is a service.

        Raises:
            NotFound. Spec: API-567.
        """
        ...

    async def volumes(self, context: RequestContext, *, limit: int, offset: int) -> list[Volume]:
        """Those of the project of the context, newest first. limit: how many at most. offset: how many are left out."""
        ...

    async def create_volume(self, context: RequestContext, new: NewVolume) -> Volume:
        """Have a volume made, for the project of the context; it is there when it is `available`. Not multiattach,
        unless its type is.

        Raises:
            InvalidInput: size, source or type make no sense. NotFound: there is no such source or type. OverQuota.
        Spec: BDM-09, VOL-07, VOL-10.
        """
        ...

    async def discard_volume(self, key: str) -> None:
        """Delete the volume that `create_volume` made for this key. No error if there is none.

        Raises:
            InvalidVolume: it is used. Retryable: it is still being made.
        """
        ...

    async def delete_volume(self, volume_id: str) -> None:
        """Delete. No error if it is gone, or going. Raises InvalidVolume: it is used, or has snapshots."""
        ...

    async def extend_completed(self, volume_id: str, *, error: bool) -> None:
        """Tell that the guest has seen the new size of a volume, or failed to. Nobody may wait for it any more.

        Raises:
            VolumeNotFound. NotSupported: the service never waits for it.
        Spec: EMV-29.
        """
        ...

    async def migration_completed(self, volume_id: str, new_volume_id: str, *, error: bool) -> str:
        """Tell that a server has switched from a volume to another, or could not. Returns the id that its records
        are to have from now on.

        Raises:
            VolumeNotFound. InvalidVolume: it does not migrate to that one.
        Spec: SWP-19, SWP-24.
        """
        ...

    async def reimage(self, volume_id: str, image_id: str) -> None:
        """Begin to replace the data of a volume, which is reserved, by an image. Its end is told by the event
        `volume-reimaged`.

        Raises:
            NotFound: the volume or the image. InvalidVolume: it is connected, or the image does not fit.
            NotSupported: the service is too old.
        Spec: EMV-38, EMV-39.
        """
        ...

    async def encryption(self, volume_id: str) -> Encryption | None:
        """How a volume is encrypted, None if it is not. Raises VolumeNotFound. Spec: EMV-45."""
        ...

    async def passphrase(self, volume_id: str) -> str:
        """What a volume is opened with.

        Raises:
            VolumeNotFound. NotFound: it is not encrypted. NotSupported: there is no key manager.
        """
        ...

    # --- attachments -----------------------------------------------------------------------------

    async def attachment(self, attachment_id: str) -> Attachment:
        """Read an attachment, which changes nothing. Raises VolumeAttachmentNotFound. Spec: VOL-11."""
        ...

    async def attachments(self, instance_uuid: str) -> list[Attachment]:
        """All that a server has, of any volume, whether its records name them or not."""
        ...

    async def create_attachment(
        self, volume_id: str, instance_uuid: str, known: Collection[str], *,
        connector: dict[str, Any] | None = None, read_only: bool = False,
    ) -> Attachment:
        """Reserve a volume for a server, and connect it if a connector is given.

        Args:
            known: the attachments of this server and volume that its records name. Another one that no server uses
                is taken over; without a connector only one that has none.
            connector: describes a host. If connecting fails, the reservation stays for `discard_attachments`.

        Raises:
            VolumeNotFound. InvalidVolume: somebody else has it, or it is not ready; nothing is to be undone.
        Spec: VOL-06, VOL-08, EMV-13, EMV-14.
        """
        ...

    async def update_attachment(self, attachment_id: str, connector: dict[str, Any]) -> Attachment:
        """Connect: let the host of the connector use the volume. The answer has what it needs.

        Raises:
            VolumeAttachmentNotFound. InvalidVolume.
        """
        ...

    async def complete_attachment(self, attachment_id: str) -> None:
        """Tell that the server has the volume. Raises VolumeAttachmentNotFound. Spec: EMV-17."""
        ...

    async def delete_attachment(self, attachment_id: str) -> None:
        """Delete, whoever is still connected. No error if it is gone. Spec: VOL-20, EMV-18."""
        ...

    async def discard_attachments(self, volume_id: str, instance_uuid: str, known: Collection[str]) -> None:
        """Delete the attachments of a server and volume that its records do not name."""
        ...

    async def begin_detaching(self, volume_id: str) -> None:
        """Mark a volume as being detached, so that nobody else begins to. One that is so marked stays so.

        Raises:
            VolumeNotFound. InvalidVolume: it is not in use.
        Spec: EMV-30.
        """
        ...

    async def roll_detaching(self, volume_id: str) -> None:
        """It is not detached after all. No error if it is gone, or not being detached. Spec: VOL-43."""
        ...

    # --- snapshots -------------------------------------------------------------------------------

    async def snapshot(self, context: RequestContext | None, snapshot_id: str) -> Snapshot:
        """Raises VolumeSnapshotNotFound."""
        ...

    async def snapshots(self, context: RequestContext, *, limit: int, offset: int) -> list[Snapshot]:
        """As `volumes`."""
        ...

    async def create_snapshot(self, context: RequestContext, new: NewSnapshot) -> Snapshot:
        """Have a snapshot taken, which is there when it is `available`.

        Raises:
            VolumeNotFound. InvalidInput: the volume's state does not allow it. OverQuota.
        """
        ...

    async def discard_snapshot(self, volume_id: str, key: str) -> None:
        """Delete the snapshot that `create_snapshot` took for this key. No error if there is none.

        Raises:
            InvalidInput: it is used. Retryable: it is still being taken.
        """
        ...

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete. No error if it is gone, or going. Raises InvalidInput: it is used."""
        ...

    async def report_snapshot(self, snapshot_id: str, status: str) -> None:
        """Tell how far a snapshot is that the hypervisor takes or deletes for the service. Nobody may wait for it any
        more.

        Args:
            status: `creating` or `deleting` if the hypervisor has done its part, `error` or `error_deleting`
                if it could not.

        Raises:
            InvalidInput: that cannot follow the snapshot's status.
        Spec: EMV-41, SNP-35.
        """
        ...


def for_take_over(
    attachments: Iterable[Attachment], instance_uuid: str, known: Collection[str], *, connected: bool
) -> Attachment | None:
    """The attachment that `create_attachment` takes over. connected: one that has a connector will do."""
    for one in attachments:
        free = one.status in UNUSED and (connected or one.connection_info is None)
        if free and one.instance_uuid == instance_uuid and one.id not in known:
            return one
    return None


def check_attachable(volume: Volume) -> None:
    """Refuse early what a reservation would refuse. The guard is the answer of `create_attachment`.

    Raises:
        InvalidVolume. Spec: VOL-06, VOL-08.
    """
    allowed = ("available", "in-use") if volume.multiattach else ("available",)
    if volume.status not in allowed:
        raise InvalidVolume(
            f"Invalid volume: volume {volume.id} must be {' or '.join(allowed)} to be attached, "
            f"but is {volume.status}."
        )
