"""A storage pool in a directory: files in raw or qcow2 format, served by a qemu-storage-daemon.

What can be done to a volume while guests use it is done by the daemon, whether they use it or not: snapshots,
extension, copies of what a volume holds at one moment. What needs a volume that nobody uses, and all reading of
images and of snapshots, is done by qemu-img beside it, so that no image file is ever opened in the process that
guests depend on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from kilonova.domain.clock import Clock
from kilonova.domain.errors import (
    Conflict,
    InvalidInput,
    KilonovaError,
    Retryable,
    StoragePoolFull,
    VolumeSnapshotNotFound,
)
from kilonova.imaging.inspect import check
from kilonova.storage.blocks import Blocks
from kilonova.storage.daemon import StorageDaemon
from kilonova.storage.files import (
    PoolFiles,
    VolumeFile,
    checked,
    internal_snapshots,
    part_of,
    settle,
    virtual_size,
)
from kilonova.storage.options import PoolOptions
from kilonova.storage.pool import (
    GIB,
    Address,
    Capacity,
    Export,
    FromImage,
    FromVolume,
    ImageFormat,
    Served,
    Source,
    Volume,
)
from kilonova.storage.qemu_img import QemuImg, Readable, Writable

log = structlog.get_logger(__name__)

COPY = "copy"
"""Name of a snapshot in a qcow2 that is there while the volume is being read. A crash may leave it."""

P = ParamSpec("P")
T = TypeVar("T")


class DirectoryPool:
    """One pool.

    Args:
        options: its directory is given. group: number of the group that may connect to its socket, None for the one of
            this process: QEMU does not run as root.
    """

    def __init__(self, options: PoolOptions, clock: Clock, *, group: int | None = None) -> None:
        directory = Path(options.directory)
        self.name = options.name
        self.address = (
            Address(host=options.listen, port=options.port, tls=bool(options.tls)) if options.listen
            else Address(socket=str(directory / "nbd.sock"))
        )
        self._format = options.format
        self._files = PoolFiles(directory)
        self._qemu_img = QemuImg(self.name)
        self._blocks = Blocks(self.name, self._files, clock)
        self._daemon = StorageDaemon(
            self.name, directory / "daemon", self.address, clock, certificates=options.tls, group=group,
            connected=self._blocks.adopt,
        )
        self._blocks.serve(self._daemon)
        self._insides: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By volume: whoever makes or removes it, or changes or reads its snapshots."""

    async def start(self, exports: Iterable[Export]) -> None:
        await asyncio.to_thread(self._files.prepare)
        self._blocks.want(exports)
        await self._daemon.start()
        await asyncio.to_thread(self._files.remove_parts)

    async def close(self) -> None:
        try:
            if not await self._blocks.serves():
                await self._daemon.stop()
        except KilonovaError as error:
            log.info("the daemon of a storage pool is left as it is", pool=self.name, error=error.message)
        finally:
            await self._daemon.close()

    async def stop(self) -> None:
        """End the daemon as well: the installation is being removed."""
        await self._daemon.stop()

    async def create(
        self, volume_id: str, size: int, source: Source | None = None, *, passphrase: str | None = None
    ) -> None:
        volume = self._files.new_volume(volume_id, self._format)
        async with self._insides[volume_id]:
            if await self._call(self._files.find, volume_id) is not None:
                return
            part = part_of(volume.path)
            try:
                if isinstance(source, FromVolume):
                    await self._make_copy(source, part, size)
                else:
                    await self._make(part, size * GIB, source, passphrase)
                await self._call(settle, part, volume.path)
            finally:
                await self._call(part.unlink, missing_ok=True)

    async def replace(self, volume_id: str, source: FromImage, *, passphrase: str | None = None) -> None:
        async with self._insides[volume_id], self._unused(volume_id, "replaced") as volume:
            readable = await self._checked(source, await self._call(virtual_size, volume))
            await self._qemu_img.copy_into(readable, Writable(volume.path, volume.format, passphrase))

    async def delete(self, volume_id: str) -> None:
        async with self._insides[volume_id]:
            if await self._call(self._files.find, volume_id) is None:
                return
            async with self._unused(volume_id, "deleted") as volume:
                if await self._call(self._files.snapshots, volume):
                    raise Conflict(f"Volume {volume_id} has snapshots.", hint="delete them first")
                await self._call(volume.path.unlink)
                self._blocks.forget_filling(volume_id)

    async def extend(self, volume_id: str, size: int) -> None:
        async with self._insides[volume_id]:
            volume = await self._call(self._files.volume, volume_id)
            now = await self._call(virtual_size, volume)
            if now > size * GIB:
                raise InvalidInput(f"Volume {volume_id} has {now // GIB} GiB and cannot shrink to {size} GiB.")
            if now < size * GIB:
                await self._blocks.extend(volume, size * GIB)

    async def create_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        checked(snapshot_id)
        async with self._insides[volume_id]:
            volume = await self._call(self._files.volume, volume_id)
            if await self._has(volume, snapshot_id):
                return
            if volume.format == "qcow2":
                await self._blocks.snapshot(volume, snapshot_id)
                return
            path = self._files.snapshot(volume_id, snapshot_id)
            async with self._copied(volume, part_of(path)) as part:
                await self._call(settle, part, path)

    async def delete_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        async with self._insides[volume_id]:
            volume = await self._call(self._files.find, volume_id)
            if volume is None or not await self._has(volume, snapshot_id):
                return
            if volume.format == "qcow2":
                await self._blocks.delete_snapshot(volume, snapshot_id)
            else:
                await self._call(self._files.snapshot(volume_id, snapshot_id).unlink)

    async def revert(self, volume_id: str, snapshot_id: str) -> None:
        async with self._insides[volume_id], self._unused(volume_id, "reverted") as volume:
            await self._need(volume, snapshot_id)
            if volume.format == "raw":
                size = await self._call(virtual_size, volume)
                part = part_of(volume.path)
                await self._qemu_img.copy(Readable(self._files.snapshot(volume_id, snapshot_id), "raw"), part, "raw")
                await self._qemu_img.resize(part, "raw", size)
                await self._call(settle, part, volume.path)
            else:
                await self._revert_inside(volume, snapshot_id)

    async def write_image(self, source: FromVolume, target: Path, format: ImageFormat) -> None:
        part = part_of(target)
        try:
            async with self._readable(source) as (readable, _):
                try:
                    await self._qemu_img.copy(readable, part, format)
                except StoragePoolFull as error:  # not necessarily the pool
                    raise KilonovaError(
                        f"There is no space left for an image of volume {source.volume_id}.",
                        hint="free some where images are written to",
                    ) from error
            await self._call(settle, part, target)
        finally:
            await self._call(part.unlink, missing_ok=True)

    async def add_export(self, export: Export) -> Served:
        checked(export.id)
        volume = await self._call(self._files.volume, export.volume_id)
        await self._blocks.add_export(export)
        return Served(write_through=volume.format == "qcow2")

    async def remove_export(self, export_id: str, *, force: bool = False) -> None:
        await self._blocks.remove_export(export_id, force=force)

    async def begin_filling(self, volume_id: str) -> None:
        await self._call(self._files.volume, volume_id)
        self._blocks.begin_filling(volume_id)

    async def end_filling(self, volume_id: str) -> None:
        await self._blocks.end_filling(await self._call(self._files.volume, volume_id))

    async def volumes(self) -> list[Volume]:
        return list(await self._call(lambda: list(self._files.volumes())))

    async def exports(self) -> list[Export]:
        return await self._blocks.exports()

    async def capacity(self) -> Capacity:
        status = await self._call(os.statvfs, self._files.directory)
        return Capacity(
            total=status.f_frsize * status.f_blocks, free=status.f_frsize * status.f_bavail,
            provisioned=sum(volume.size for volume in await self.volumes()),
        )

    async def _make(self, part: Path, size: int, image: FromImage | None, passphrase: str | None) -> None:
        """A volume that is empty or holds an image. size: bytes."""
        readable = None if image is None else await self._checked(image, size)
        if passphrase is None:
            await self._qemu_img.create(part, self._format, size)
        else:
            await self._make_luks(part, size, passphrase)
        if readable is not None:
            target = Writable(part, self._format, passphrase, zero=passphrase is None)
            await self._qemu_img.copy_into(readable, target)

    async def _make_luks(self, part: Path, size: int, passphrase: str) -> None:
        """An encrypted volume, whose header is part of its size."""
        container = part if self._format == "raw" else part.with_suffix(".luks.part")
        try:
            await self._qemu_img.create_luks(container, passphrase)
            if self._format != "raw":
                await self._qemu_img.copy(Readable(container, "raw"), part, self._format)
        finally:
            if container != part:
                await self._call(container.unlink, missing_ok=True)
        await self._qemu_img.resize(part, self._format, size)

    async def _make_copy(self, source: FromVolume, part: Path, size: int) -> None:
        async with self._readable(source) as (readable, held):
            if held > size * GIB:
                raise InvalidInput(f"Volume {source.volume_id} has {held // GIB} GiB, more than {size} GiB.")
            await self._qemu_img.copy(readable, part, self._format)
        if held < size * GIB:
            await self._qemu_img.resize(part, self._format, size * GIB)

    @asynccontextmanager
    async def _readable(self, source: FromVolume) -> AsyncIterator[tuple[Readable, int]]:
        """Something that holds what a volume or a snapshot of it holds, and its size in bytes.

        A snapshot inside a qcow2 can be read while others write to the volume: what belongs to it is not changed. Only
        where it is may change, when snapshots come and go; that waits.
        """
        async with self._insides[source.volume_id]:
            volume = await self._call(self._files.volume, source.volume_id)
            if source.snapshot_id:
                size = await self._need(volume, source.snapshot_id)
                if volume.format == "raw":
                    yield Readable(self._files.snapshot(source.volume_id, source.snapshot_id), "raw"), size
                else:
                    yield Readable(volume.path, "qcow2", source.snapshot_id, shared=True), size
                return
            size = await self._call(virtual_size, volume)
            if volume.format == "raw":
                async with self._copied(volume, volume.path.with_suffix(".copy.part")) as copy:
                    yield Readable(copy, "raw"), size
                return
            if any(name == COPY for name, _ in await self._call(internal_snapshots, volume.path)):
                await self._blocks.delete_snapshot(volume, COPY)
            await self._blocks.snapshot(volume, COPY)
            try:
                yield Readable(volume.path, "qcow2", COPY, shared=True), size
            finally:
                with contextlib.suppress(Retryable):  # the next copy removes it
                    await self._blocks.delete_snapshot(volume, COPY)

    @asynccontextmanager
    async def _copied(self, volume: VolumeFile, part: Path) -> AsyncIterator[Path]:
        """A raw file with what a raw volume holds now, for as long as this lasts."""
        try:
            await self._call(_truncate, part, await self._call(virtual_size, volume))
            await self._blocks.copy(volume, part)
            yield part
        finally:
            await self._call(part.unlink, missing_ok=True)

    async def _revert_inside(self, volume: VolumeFile, snapshot_id: str) -> None:
        """qemu-img gives a qcow2 the size of the snapshot, too. The one that it must have again is written down."""
        size = volume.path.with_suffix(".size")
        if not await self._call(size.exists):
            await self._call(size.write_text, str(await self._call(virtual_size, volume)))
        await self._qemu_img.revert(volume.path, snapshot_id)
        await self._qemu_img.resize(volume.path, volume.format, int(await self._call(size.read_text)))
        await self._call(size.unlink)

    @asynccontextmanager
    async def _unused(self, volume_id: str, why: str) -> AsyncIterator[VolumeFile]:
        """A volume that is not exported meanwhile. Raises Conflict: it is."""
        volume = await self._call(self._files.volume, volume_id)
        async with self._blocks.closed(volume_id, why):
            yield volume

    async def _has(self, volume: VolumeFile, snapshot_id: str) -> bool:
        return any(each.id == snapshot_id for each in await self._call(self._files.snapshots, volume))

    async def _need(self, volume: VolumeFile, snapshot_id: str) -> int:
        """The size of a snapshot in bytes. Raises VolumeSnapshotNotFound."""
        for each in await self._call(self._files.snapshots, volume):
            if each.id == snapshot_id:
                return each.size * GIB
        raise VolumeSnapshotNotFound(snapshot_id)

    async def _checked(self, image: FromImage, room: int) -> Readable:
        """An image that may be used. room: bytes that it may have. Raises InvalidInput."""
        facts = await self._call(check, image.path, image.format, room)
        return Readable(image.path, facts.format)

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Look at files in a thread. Raises StoragePoolFull."""
        try:
            return await asyncio.to_thread(functools.partial(function, *args, **kwargs))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoragePoolFull(self.name) from error
            raise


def _truncate(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
