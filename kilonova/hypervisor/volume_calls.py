"""The part of the driver protocol that is about volumes. What holds for all calls, `driver` says."""

from __future__ import annotations

from typing import Protocol

from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.volumes import (
    FileMerge,
    FileSource,
    GuestVolume,
    HeldVolume,
    MergeState,
    VolumeCopy,
    VolumeUsage,
)


class VolumeDriver(Protocol):
    """Volumes of guests. A guest that is started gets those of its description; these calls are for later.

    A guest whose volume stops answering stands still, with what it wanted to write, and goes on by itself once the
    volume is served again; its power state is PAUSED meanwhile.
    """

    async def held_volumes(self) -> dict[str, tuple[HeldVolume, ...]]:
        """The volumes in the definitions of this product's guests and in those that run, by instance, in the order
        of their names. Guests without any are left out."""
        ...

    def volume_device_name(self, guest: Guest, volume: GuestVolume) -> str:
        """Which name one more volume gets, for example `/dev/vdb`: the next that neither a local disk nor a volume of
        the guest has.

        Raises:
            TooManyDisks: there is none left. Spec: BDM-14.
            InvalidInput: the guest cannot have the bus that was asked for.
        """
        ...

    async def attach_volume(self, guest: Guest, volume: GuestVolume) -> None:
        """Give a guest one more volume, while it runs and whenever it is started from its definition. One that it has
        already is left alone; a guest that is not defined gets it with its next start.

        Raises:
            KilonovaError: the guest cannot take it; neither it nor its definition has it then. Spec: VOL-24.
        """
        ...

    async def detach_volume(self, uuid: str, volume_id: str) -> None:
        """Take a volume from a guest, and then from its definition. No error if guest or volume are not there.

        Raises:
            DeviceDetachFailed: the running guest does not let go of it, or stands still; guest and definition have it
                still. Conflict: it is being copied.
        """
        ...

    async def extend_volume(self, uuid: str, volume_id: str, size: int) -> None:
        """Let a running guest see the new size of a volume that has been extended and is served again. A guest that is
        off, or has no such volume, needs nothing.

        Args:
            size: bytes that the volume has now.

        Raises:
            Retryable: the volume is not served with that size yet.
        """
        ...

    async def start_copy(self, uuid: str, volume_id: str, target: GuestVolume) -> None:
        """Begin to copy a volume of a running guest to another, which the guest does not notice. A copy to it that is
        being made, or has been, is left alone.

        Args:
            target: where to; a volume as it is served to this host, of exactly the size that the guest sees. It may
                have a larger one behind it and be extended after `pivot_volume`.

        Raises:
            Conflict: the guest does not run, or the volume is being copied elsewhere. NotFound: it has no such volume.
            KilonovaError: the target is not served, or has another size.
        """
        ...

    async def copy_state(self, uuid: str, volume_id: str, target: GuestVolume) -> VolumeCopy:
        """How far the copy is, and which of the two volumes the guest uses, be it running or off.

        Raises:
            NotFound: the guest has no such volume.
        """
        ...

    async def pivot_volume(self, uuid: str, volume_id: str, target: GuestVolume) -> None:
        """Let the guest use the target of a copy that is ready, now and when it is started from its definition; the
        guest still sees the serial number of the old. One that uses it already is left alone.

        Raises:
            Conflict: the copy is not ready. NotFound: the guest has no such volume.
        """
        ...

    async def abort_copy(self, uuid: str, volume_id: str) -> None:
        """End the copy of a volume; the guest goes on with the volume that it uses. None need be made. After
        `pivot_volume` this changes nothing: ask `copy_state`."""
        ...

    async def put_file_above(self, uuid: str, volume_id: str, overlay: FileSource) -> None:
        """Let a running guest write to another file from now on, also when it is started from its definition. The file
        that it wrote to until now is read where the new one has nothing, and keeps what it has at this moment. If the
        guest writes to that file already, it is left alone.

        Args:
            overlay: an empty qcow2 file whose backing file is the one that the guest writes to.

        Raises:
            Conflict: the guest does not run, or the volume is being copied or merged. NotFound: it has no such volume.
            NotSupported: the volume is no file, or encrypted. KilonovaError: the file cannot be used; the guest goes on
                with the old one.
        """
        ...

    async def start_merge(self, uuid: str, volume_id: str, merge: FileMerge) -> None:
        """Begin to merge files of a volume while the guest uses it, which it does not notice. A merge that is being
        made, or has been, is left alone.

        Raises:
            Conflict, NotFound, NotSupported: as of `put_file_above`. InvalidInput: the volume has no such files.
        """
        ...

    async def merge_state(self, uuid: str, volume_id: str, merge: FileMerge) -> MergeState:
        """How far a merge is. Of a guest that is off nobody knows: NONE. Raises NotFound: it has no such volume."""
        ...

    async def abort_merge(self, uuid: str, volume_id: str) -> None:
        """End the merge of files of a volume; the guest goes on with all files that it needs. None need be made."""
        ...

    async def volume_usage(self, uuid: str) -> dict[str, VolumeUsage]:
        """What a running guest did with its volumes, by their ids; nothing for one that does not run. Spec: VOL-31."""
        ...
