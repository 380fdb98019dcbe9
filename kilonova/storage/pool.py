"""The storage pool protocol: what a volume service asks of a place that keeps volumes and serves them over NBD.

Every call is idempotent by the ids that the caller chooses, which are UUIDs: repeating it after a crash at any point
gives the same end state, and removing what is already gone succeeds. A call that copies data may take as long as
that; cancelling it ends the copy. A pool remembers nothing that it cannot find again, except which exports it should
have: those it is told at its start.

Errors, beside those named at the calls: `VolumeNotFound`, `VolumeSnapshotNotFound`; `StoragePoolFull`; `Retryable`
when the daemon of the pool is just being started again; any other `KilonovaError` is final.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol

import msgspec

GIB = 1 << 30

ImageFormat = Literal["raw", "qcow2"]


class FromImage(msgspec.Struct, frozen=True):
    """Data from an image file. format: the disk_format that it is declared to have."""

    path: Path
    format: str


class FromVolume(msgspec.Struct, frozen=True):
    """Data of a volume of the same pool: what it holds now, or what it held when a snapshot was taken.

    Args:
        snapshot_id: the snapshot, "" for the volume itself. While guests write to a volume, what is copied is what it
            held at one moment, as after a power loss.
    """

    volume_id: str
    snapshot_id: str = ""


Source = FromImage | FromVolume


class VolumeSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of a volume. size: of the volume when it was taken, GiB."""

    id: str
    size: int


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that is there.

    Args:
        size: GiB that a guest sees; of an encrypted volume the header is part of them.
        allocated: bytes that it and its snapshots take up.
    """

    id: str
    size: int
    allocated: int
    snapshots: tuple[VolumeSnapshot, ...] = ()


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """A volume served over NBD, to one attachment. id: also the name of the export. A volume may have several at once,
    writable ones too. What a guest discards is given back to the pool."""

    id: str
    volume_id: str
    writable: bool


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """How the clients of an export must treat it.

    Args:
        write_through: what makes sense of the data is in the daemon's memory until it is told to flush, and is lost
            when it is killed: a write is done only when it was flushed.
    """

    write_through: bool


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a pool serves its exports: a Unix socket, or host and port. tls: clients must encrypt and show a
    certificate."""

    socket: str = ""
    host: str = ""
    port: int = 0
    tls: bool = False


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """total, free: bytes of the file system. provisioned: GiB that all volumes would have if they were full."""

    total: int
    free: int
    provisioned: int


class StoragePool(Protocol):
    """One pool. All implementations pass `tests/contract/test_storage_pool.py`."""

    name: str
    address: Address

    async def start(self, exports: Iterable[Export]) -> None:
        """Find the daemon of the pool running, or start it; make sure that it has these exports.

        Exports that it has beyond these are left alone, and those whose volume is gone passed over, for the audit to
        find.

        Raises:
            KilonovaError: it cannot work, with a hint.
        """
        ...

    async def close(self) -> None:
        """Stop looking after the daemon. It runs on if it serves a volume, for guests, and ends otherwise."""
        ...

    async def create(
        self, volume_id: str, size: int, source: Source | None = None, *, passphrase: str | None = None
    ) -> None:
        """Make a volume, empty or with data.

        Args:
            size: GiB. passphrase: the volume is a LUKS container, which guests open with it. A copy of an encrypted
                volume is encrypted as that one is and takes none; nor does an image that was made of one.

        Raises:
            InvalidInput: the image is not what it claims, depends on other files, or the data are larger than `size`.
        """
        ...

    async def replace(self, volume_id: str, source: FromImage, *, passphrase: str | None = None) -> None:
        """Replace the data of a volume, which keeps its size and snapshots. If this fails in the middle the data are
        lost; they are kept when the image is refused.

        Raises:
            Conflict: it is exported. InvalidInput: as `create`.
        """
        ...

    async def delete(self, volume_id: str) -> None:
        """Remove a volume. Raises Conflict: it is exported, or has snapshots."""
        ...

    async def extend(self, volume_id: str, size: int) -> None:
        """Make a volume larger. size: GiB.

        If it is exported, its clients lose the connection for some milliseconds, and see the new size when they have
        connected again. A guest that must not see an error is suspended meanwhile.

        Raises:
            InvalidInput: it is larger than that already.
        """
        ...

    async def create_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        """Keep what a volume holds at this moment. It may be exported and written to: what is kept is then what a
        power loss would have left."""
        ...

    async def delete_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        """Remove a snapshot, also of a volume that is exported."""
        ...

    async def revert(self, volume_id: str, snapshot_id: str) -> None:
        """Give a volume the data of one of its snapshots again. It keeps its size. Raises Conflict: it is exported."""
        ...

    async def write_image(self, source: FromVolume, target: Path, format: ImageFormat) -> None:
        """Write the data of a volume to a file that does not depend on others, replacing it. Of an encrypted volume
        this is the LUKS container."""
        ...

    async def add_export(self, export: Export) -> Served:
        """Serve a volume. Raises Conflict: there is an export of that id, of another volume or mode."""
        ...

    async def remove_export(self, export_id: str, *, force: bool = False) -> None:
        """Serve it no longer. force: cut its clients off. Raises ExportInUse: without force, a client is connected."""
        ...

    async def begin_filling(self, volume_id: str) -> None:
        """A volume that is not served yet will be written from its beginning to its end by whom it is served to. That
        goes faster past the cache of the host, which would keep it all and write it to the disk in the end."""
        ...

    async def end_filling(self, volume_id: str) -> None:
        """It is served as others are from now on, also to those who use it."""
        ...

    async def volumes(self) -> list[Volume]:
        """All volumes that are there, for the audit."""
        ...

    async def exports(self) -> list[Export]:
        """All exports that are there, for the audit."""
        ...

    async def capacity(self) -> Capacity: ...
