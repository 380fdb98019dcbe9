"""An honest storage pool in memory: for scale, simulation and crash tests.

It keeps the invariants of a real one: a volume that is exported or has snapshots is not deleted, an export with a
client is not removed without force, an id is one thing. It can be told to be slow, to fail before or after the
effect, to hang, and to be full. Its state outlives the service, as that of a real daemon and directory does:
`SimulatedStorage` is handed to the next pool.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from kilonova.domain.clock import Clock
from kilonova.domain.errors import (
    Conflict,
    ExportInUse,
    InvalidInput,
    KilonovaError,
    StoragePoolFull,
    VolumeNotFound,
    VolumeSnapshotNotFound,
)
from kilonova.imaging.inspect import check
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
    VolumeSnapshot,
)

WRITTEN = b"a simulated volume of "
"""How files begin that this pool wrote: then their format, their size in GiB and a line feed."""
LUKS_HEADER = 2 << 20
"""Bytes of an encrypted volume that hold no data, about."""
HANG_STEP = 1.0


class SimulatedSnapshot(msgspec.Struct, frozen=True):
    """size: GiB. content: what the volume held."""

    size: int
    content: bytes


class SimulatedVolume(msgspec.Struct, kw_only=True):
    """size: GiB. content: its first bytes, as guests see them. passphrase: that it was encrypted with, if it was."""

    size: int
    content: bytes = b""
    passphrase: str | None = None
    snapshots: dict[str, SimulatedSnapshot] = {}


class Faults(msgspec.Struct, kw_only=True):
    """What the pool is told to do wrong.

    Args:
        latency: seconds that every call takes.
        fail: by call name, errors to raise instead of doing it, one each time.
        lose: by call name, errors to raise after doing it, one each time.
        hang: calls that do not go on until their name is taken out.
        full: nothing that needs space succeeds.
    """

    latency: float = 0.0
    fail: dict[str, list[KilonovaError]] = {}
    lose: dict[str, list[KilonovaError]] = {}
    hang: set[str] = set()
    full: bool = False


class SimulatedStorage:
    """The state of one pool, and the guests that use it. capacity: GiB. write_through: what it says of its exports."""

    def __init__(self, *, capacity: int = 1_000_000, write_through: bool = False) -> None:
        self.capacity = capacity
        self.write_through = write_through
        self.faults = Faults()
        self.volumes: dict[str, SimulatedVolume] = {}
        self.exports: dict[str, Export] = {}
        self.clients: set[str] = set()
        """Exports that a client is connected to."""

    def connect(self, export_id: str) -> None:
        """A client comes. Raises NotFound: there is no such export."""
        self._exported(export_id)
        self.clients.add(export_id)

    def disconnect(self, export_id: str) -> None:
        """The client goes."""
        self.clients.discard(export_id)

    def write(self, export_id: str, content: bytes) -> None:
        """A guest writes to the first bytes of its volume."""
        if not self.exports[export_id].writable:
            raise Conflict(f"Export {export_id} is read-only.")
        volume = self._exported(export_id)
        volume.content = content + volume.content[len(content):]

    def read(self, export_id: str) -> bytes:
        """A guest reads the first bytes of its volume, as far as they were ever written."""
        return self._exported(export_id).content

    def kill_daemon(self) -> None:
        """The daemon dies, and its exports with it; the pool starts it again with the next call."""
        self.exports.clear()

    def _exported(self, export_id: str) -> SimulatedVolume:
        return self.volumes[self.exports[export_id].volume_id]


class SimulatedPool:
    """The pool protocol over a `SimulatedStorage`."""

    def __init__(self, name: str, storage: SimulatedStorage, clock: Clock) -> None:
        self.name = name
        self.address = Address(socket=f"/simulated/{name}/nbd.sock")
        self.storage = storage
        self._clock = clock
        self._wanted: dict[str, Export] = {}

    async def start(self, exports: Iterable[Export]) -> None:
        async with self._call("start"):
            self._wanted.update((export.id, export) for export in exports)
            self._serve()

    async def close(self) -> None:
        self._wanted.clear()

    async def create(
        self, volume_id: str, size: int, source: Source | None = None, *, passphrase: str | None = None
    ) -> None:
        _need_uuid(volume_id)
        async with self._call("create"):
            if volume_id in self.storage.volumes:
                return
            self._need_space(size)
            made = SimulatedVolume(size=size, passphrase=passphrase)
            if isinstance(source, FromImage):
                made.content = _of_image(source, _room(size, passphrase))
            elif source is not None:
                held = self._held(source)
                if held.size > size:
                    raise InvalidInput(f"Volume {source.volume_id} has {held.size} GiB, more than {size} GiB.")
                made.content = held.content
                made.passphrase = self._volume(source.volume_id).passphrase
            self.storage.volumes[volume_id] = made

    async def replace(self, volume_id: str, source: FromImage, *, passphrase: str | None = None) -> None:
        async with self._call("replace"):
            volume = self._volume(volume_id)
            self._need_unused(volume_id)
            content = _of_image(source, _room(volume.size, passphrase))
            self._need_space(0)
            volume.content, volume.passphrase = content, passphrase

    async def delete(self, volume_id: str) -> None:
        async with self._call("delete"):
            volume = self.storage.volumes.get(volume_id)
            if volume is None:
                return
            self._need_unused(volume_id)
            if volume.snapshots:
                raise Conflict(f"Volume {volume_id} has snapshots.", hint="delete them first")
            del self.storage.volumes[volume_id]

    async def extend(self, volume_id: str, size: int) -> None:
        async with self._call("extend"):
            volume = self._volume(volume_id)
            if size < volume.size:
                raise InvalidInput(f"Volume {volume_id} has {volume.size} GiB and cannot shrink to {size} GiB.")
            self._need_space(size - volume.size)
            volume.size = size

    async def create_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        _need_uuid(snapshot_id)
        async with self._call("create_snapshot"):
            volume = self._volume(volume_id)
            if snapshot_id not in volume.snapshots:
                self._need_space(0)
                volume.snapshots[snapshot_id] = SimulatedSnapshot(volume.size, volume.content)

    async def delete_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        async with self._call("delete_snapshot"):
            volume = self.storage.volumes.get(volume_id)
            if volume is not None:
                volume.snapshots.pop(snapshot_id, None)

    async def revert(self, volume_id: str, snapshot_id: str) -> None:
        async with self._call("revert"):
            held = self._held(FromVolume(volume_id, snapshot_id))
            self._need_unused(volume_id)
            self.storage.volumes[volume_id].content = held.content

    async def write_image(self, source: FromVolume, target: Path, format: ImageFormat) -> None:
        async with self._call("write_image"):
            held = self._held(source)
            _write_image(target, format, held)

    async def add_export(self, export: Export) -> Served:
        _need_uuid(export.id)
        async with self._call("add_export"):
            self._volume(export.volume_id)
            if self.storage.exports.get(export.id, export) != export:
                raise Conflict(f"Export {export.id} exists, of another volume or mode.")
            self._wanted[export.id] = export
            self._serve()
        return Served(write_through=self.storage.write_through)

    async def remove_export(self, export_id: str, *, force: bool = False) -> None:
        async with self._call("remove_export"):
            if export_id in self.storage.clients and not force:
                raise ExportInUse(export_id)
            self._wanted.pop(export_id, None)
            self.storage.exports.pop(export_id, None)
            self.storage.clients.discard(export_id)

    async def begin_filling(self, volume_id: str) -> None:
        async with self._call("begin_filling"):
            self._volume(volume_id)

    async def end_filling(self, volume_id: str) -> None:
        async with self._call("end_filling"):
            self._volume(volume_id)

    async def volumes(self) -> list[Volume]:
        async with self._call("volumes"):
            return [
                Volume(
                    id=id_, size=each.size, allocated=len(each.content),
                    snapshots=tuple(
                        VolumeSnapshot(id=name, size=snapshot.size) for name, snapshot in each.snapshots.items()
                    ),
                )
                for id_, each in self.storage.volumes.items()
            ]

    async def exports(self) -> list[Export]:
        async with self._call("exports"):
            return list(self.storage.exports.values())

    async def capacity(self) -> Capacity:
        async with self._call("capacity"):
            total, provisioned = self.storage.capacity, self._provisioned()
            free = 0 if self.storage.faults.full else max(0, total - provisioned)
            return Capacity(total=total * GIB, free=free * GIB, provisioned=provisioned)

    @asynccontextmanager
    async def _call(self, name: str) -> AsyncIterator[None]:
        """Every call takes its time, and may have been told to hang, to fail, or to fail after its effect."""
        faults = self.storage.faults
        if faults.latency:
            await self._clock.sleep(faults.latency)
        while name in faults.hang:
            await self._clock.sleep(HANG_STEP)
        if planned := faults.fail.get(name):
            raise planned.pop(0)
        if name != "start":
            self._serve()
        yield
        if planned := faults.lose.get(name):
            raise planned.pop(0)

    def _serve(self) -> None:
        for export in self._wanted.values():
            if export.volume_id in self.storage.volumes:
                self.storage.exports[export.id] = export

    def _volume(self, volume_id: str) -> SimulatedVolume:
        volume = self.storage.volumes.get(volume_id)
        if volume is None:
            raise VolumeNotFound(volume_id)
        return volume

    def _held(self, source: FromVolume) -> SimulatedSnapshot:
        volume = self._volume(source.volume_id)
        if not source.snapshot_id:
            return SimulatedSnapshot(volume.size, volume.content)
        if source.snapshot_id not in volume.snapshots:
            raise VolumeSnapshotNotFound(source.snapshot_id)
        return volume.snapshots[source.snapshot_id]

    def _need_unused(self, volume_id: str) -> None:
        if any(export.volume_id == volume_id for export in self.storage.exports.values()):
            raise Conflict(f"Volume {volume_id} is exported.", hint="detach it first")

    def _need_space(self, gib: int) -> None:
        if self.storage.faults.full or self._provisioned() + gib > self.storage.capacity:
            raise StoragePoolFull(self.name)

    def _provisioned(self) -> int:
        return sum(volume.size for volume in self.storage.volumes.values())


def _need_uuid(text: str) -> None:
    """Ids become names of files, so they must not be anything else."""
    if str(uuid.UUID(text)) != text:
        raise ValueError(f"{text!r} is not a UUID in its usual form")


def _write_image(target: Path, format_: ImageFormat, held: SimulatedSnapshot) -> None:
    target.write_bytes(WRITTEN + f"{format_} {held.size}\n".encode() + held.content)


def _room(size: int, passphrase: str | None) -> int:
    return size * GIB - (LUKS_HEADER if passphrase is not None else 0)


def _of_image(source: FromImage, room: int) -> bytes:
    """What a volume holds that is made of an image. room: bytes."""
    data = source.path.read_bytes()
    if not data.startswith(WRITTEN):
        check(source.path, source.format, room)
        return data
    described, _, content = data.removeprefix(WRITTEN).partition(b"\n")
    format_, size = described.decode().split()
    if format_ != source.format:
        raise InvalidInput(f"The image is declared as {source.format} but its contents are {format_}.")
    if int(size) * GIB > room:
        raise InvalidInput(f"The virtual size of the image, {size} GiB, exceeds {room} bytes.")
    return content
