"""What every storage pool does: the simulated one must not be kinder than the real one."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, Protocol

import pytest
from nbd_guest import LONG, NbdGuest

from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import (
    Conflict,
    ExportInUse,
    InvalidInput,
    VolumeNotFound,
    VolumeSnapshotNotFound,
)
from kilonova.storage.directory import DirectoryPool
from kilonova.storage.options import PoolOptions
from kilonova.storage.pool import GIB, Export, FromImage, FromVolume, StoragePool
from kilonova.storage.simulated import SimulatedPool, SimulatedStorage


class Storage(Protocol):
    """What is beneath a pool, and outlives it."""

    def pool(self) -> StoragePool:
        """A pool that knows nothing yet, as after a restart of the service."""
        ...

    def guest(self, pool: StoragePool, export_id: str) -> Guest: ...


class Guest(Protocol):
    """A client of one export."""

    async def write(self, letter: str) -> None:
        """Fill the beginning of the volume with a letter."""
        ...

    async def read(self) -> str:
        """The letter that the volume begins with, "" for zeros."""
        ...

    async def connect(self) -> None:
        """Stay connected until `disconnect`."""
        ...

    async def disconnect(self) -> None: ...


class SimulatedGuest:
    def __init__(self, storage: SimulatedStorage, export_id: str) -> None:
        self._storage = storage
        self._export_id = export_id

    async def write(self, letter: str) -> None:
        self._storage.write(self._export_id, letter.encode() * LONG)

    async def read(self) -> str:
        return self._storage.read(self._export_id)[:1].decode().strip("\0")

    async def connect(self) -> None:
        self._storage.connect(self._export_id)

    async def disconnect(self) -> None:
        self._storage.disconnect(self._export_id)


class Simulated:
    def __init__(self) -> None:
        self._storage = SimulatedStorage()

    def pool(self) -> StoragePool:
        return SimulatedPool("pool", self._storage, SystemClock())

    def guest(self, pool: StoragePool, export_id: str) -> Guest:
        return SimulatedGuest(self._storage, export_id)


class Directory:
    """format_: of new volumes."""

    def __init__(self, directory: Path, format_: Literal["raw", "qcow2"]) -> None:
        self._options = PoolOptions(name="pool", directory=str(directory), format=format_)

    def pool(self) -> DirectoryPool:
        return DirectoryPool(self._options, SystemClock())

    def guest(self, pool: StoragePool, export_id: str) -> Guest:
        return NbdGuest(pool.address, export_id)


@pytest.fixture(params=[
    "simulated", pytest.param("qcow2", marks=pytest.mark.servers), pytest.param("raw", marks=pytest.mark.servers),
])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    if request.param == "simulated":
        yield Simulated()
        return
    made = Directory(tmp_path / "pool", request.param)
    yield made
    await made.pool().stop()


@pytest.fixture
async def pool(storage: Storage) -> AsyncIterator[StoragePool]:
    made = storage.pool()
    await made.start(())
    yield made
    await made.close()


def new_id() -> str:
    return str(uuid.uuid4())


async def exported(pool: StoragePool, volume: str, *, writable: bool = True) -> Export:
    export = Export(id=new_id(), volume_id=volume, writable=writable)
    await pool.add_export(export)
    return export


async def contents(storage: Storage, pool: StoragePool, volume: str) -> str:
    """The letter that a volume begins with."""
    export = await exported(pool, volume, writable=False)
    letter = await storage.guest(pool, export.id).read()
    await pool.remove_export(export.id)
    return letter


async def volume_with(storage: Storage, pool: StoragePool, letter: str, size: int = 1) -> str:
    volume = new_id()
    await pool.create(volume, size)
    export = await exported(pool, volume)
    await storage.guest(pool, export.id).write(letter)
    await pool.remove_export(export.id)
    return volume


async def size_of(pool: StoragePool, volume: str) -> int:
    return next(each.size for each in await pool.volumes() if each.id == volume)


async def snapshots_of(pool: StoragePool, volume: str) -> list[tuple[str, int]]:
    found = next(each for each in await pool.volumes() if each.id == volume)
    return [(each.id, each.size) for each in found.snapshots]


async def test_a_volume_is_made_once_and_deleted_once(storage: Storage, pool: StoragePool) -> None:
    volume = await volume_with(storage, pool, "a")
    await pool.create(volume, 1)  # again: the data stay
    assert await contents(storage, pool, volume) == "a"
    assert [(each.id, each.size) for each in await pool.volumes()] == [(volume, 1)]
    assert (await pool.capacity()).provisioned == 1
    await pool.delete(volume)
    await pool.delete(volume)
    assert await pool.volumes() == []
    assert (await pool.capacity()).provisioned == 0


async def test_ids_are_uuids(pool: StoragePool) -> None:
    for bad in ("../../etc/passwd", "", new_id().upper(), "{" + new_id() + "}"):
        with pytest.raises(ValueError):
            await pool.create(bad, 1)
        with pytest.raises(ValueError):
            await pool.create_snapshot(new_id(), bad)
        with pytest.raises(ValueError):
            await pool.add_export(Export(id=bad, volume_id=new_id(), writable=True))


async def test_what_is_not_there_is_not_found(pool: StoragePool, tmp_path: Path) -> None:
    volume, snapshot = new_id(), new_id()
    image = tmp_path / "image"
    image.write_bytes(b"a" * LONG)
    with pytest.raises(VolumeNotFound):
        await pool.extend(volume, 2)
    with pytest.raises(VolumeNotFound):
        await pool.create_snapshot(volume, snapshot)
    with pytest.raises(VolumeNotFound):
        await exported(pool, volume)
    with pytest.raises(VolumeNotFound):
        await pool.replace(volume, FromImage(image, "raw"))
    with pytest.raises(VolumeNotFound):
        await pool.write_image(FromVolume(volume), tmp_path / "out", "raw")
    with pytest.raises(VolumeNotFound):
        await pool.create(new_id(), 1, FromVolume(volume))
    await pool.delete_snapshot(volume, snapshot)
    await pool.remove_export(new_id())
    await pool.create(volume, 1)
    with pytest.raises(VolumeSnapshotNotFound):
        await pool.revert(volume, snapshot)
    with pytest.raises(VolumeSnapshotNotFound):
        await pool.create(new_id(), 1, FromVolume(volume, snapshot))
    with pytest.raises(VolumeSnapshotNotFound):
        await pool.write_image(FromVolume(volume, snapshot), tmp_path / "out", "raw")
    await pool.delete_snapshot(volume, snapshot)


async def test_a_volume_of_an_image(storage: Storage, pool: StoragePool, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"i" * LONG)
    volume = new_id()
    await pool.create(volume, 1, FromImage(image, "raw"))
    assert await contents(storage, pool, volume) == "i"
    assert await size_of(pool, volume) == 1


async def test_an_image_that_does_not_fit_or_is_something_else_makes_no_volume(
    pool: StoragePool, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(GIB + 512)
    for source in (FromImage(image, "raw"), FromImage(image, "qcow2")):
        with pytest.raises(InvalidInput):
            await pool.create(new_id(), 1, source)
    assert await pool.volumes() == []


async def test_an_encrypted_volume_has_less_room(pool: StoragePool, tmp_path: Path) -> None:
    image, volume = tmp_path / "image", new_id()
    with image.open("wb") as file:
        file.truncate(GIB)
    with pytest.raises(InvalidInput):
        await pool.create(volume, 1, FromImage(image, "raw"), passphrase="open sesame")
    assert await pool.volumes() == []
    with image.open("r+b") as file:
        file.truncate(GIB // 2)
    await pool.create(volume, 1, FromImage(image, "raw"), passphrase="open sesame")
    assert await size_of(pool, volume) == 1


async def test_replacing_the_data_keeps_size_and_snapshots(
    storage: Storage, pool: StoragePool, tmp_path: Path
) -> None:
    volume, snapshot = await volume_with(storage, pool, "a", size=2), new_id()
    await pool.create_snapshot(volume, snapshot)
    image = tmp_path / "image"
    image.write_bytes(b"i" * LONG)
    for _ in range(2):
        await pool.replace(volume, FromImage(image, "raw"))
    assert await contents(storage, pool, volume) == "i"
    assert await size_of(pool, volume) == 2
    assert await snapshots_of(pool, volume) == [(snapshot, 2)]
    with pytest.raises(InvalidInput):
        await pool.replace(volume, FromImage(image, "qcow2"))
    assert await contents(storage, pool, volume) == "i"
    await pool.revert(volume, snapshot)
    assert await contents(storage, pool, volume) == "a"


async def test_replacing_nothing_that_is_exported(storage: Storage, pool: StoragePool, tmp_path: Path) -> None:
    volume = await volume_with(storage, pool, "a")
    image = tmp_path / "image"
    image.write_bytes(b"i" * LONG)
    await exported(pool, volume)
    with pytest.raises(Conflict):
        await pool.replace(volume, FromImage(image, "raw"))
    assert await contents(storage, pool, volume) == "a"


async def test_a_copy_of_a_volume(storage: Storage, pool: StoragePool) -> None:
    volume, copy = await volume_with(storage, pool, "a"), new_id()
    await pool.create(copy, 2, FromVolume(volume))
    assert await contents(storage, pool, copy) == "a"
    assert await size_of(pool, copy) == 2
    await pool.extend(volume, 2)
    with pytest.raises(InvalidInput):
        await pool.create(new_id(), 1, FromVolume(volume))


async def test_a_copy_of_a_volume_in_use(storage: Storage, pool: StoragePool, tmp_path: Path) -> None:
    volume, copy = await volume_with(storage, pool, "a"), new_id()
    export = await exported(pool, volume)
    guest = storage.guest(pool, export.id)
    await guest.connect()
    await pool.create(copy, 1, FromVolume(volume))
    await pool.write_image(FromVolume(volume), tmp_path / "out", "qcow2")
    await guest.disconnect()
    await guest.write("b")
    assert await contents(storage, pool, copy) == "a"
    restored = new_id()
    await pool.create(restored, 1, FromImage(tmp_path / "out", "qcow2"))
    assert await contents(storage, pool, restored) == "a"
    assert await snapshots_of(pool, volume) == []


async def test_a_snapshot_keeps_what_was_there(storage: Storage, pool: StoragePool) -> None:
    volume, snapshot, copy = await volume_with(storage, pool, "a"), new_id(), new_id()
    for _ in range(2):
        await pool.create_snapshot(volume, snapshot)
    export = await exported(pool, volume)
    await storage.guest(pool, export.id).write("b")
    await pool.create_snapshot(volume, snapshot)  # again: it is not taken anew
    await pool.create(copy, 1, FromVolume(volume, snapshot))
    assert await contents(storage, pool, copy) == "a"
    await pool.remove_export(export.id)
    for _ in range(2):
        await pool.revert(volume, snapshot)
    assert await contents(storage, pool, volume) == "a"
    assert await snapshots_of(pool, volume) == [(snapshot, 1)]


async def test_a_snapshot_of_a_volume_in_use(storage: Storage, pool: StoragePool) -> None:
    volume, first, second, copy = await volume_with(storage, pool, "a"), new_id(), new_id(), new_id()
    export = await exported(pool, volume)
    guest = storage.guest(pool, export.id)
    await pool.create_snapshot(volume, first)
    await guest.write("b")
    await pool.create_snapshot(volume, second)
    await guest.write("c")
    assert await guest.read() == "c"
    await pool.create(copy, 1, FromVolume(volume, second))
    assert await contents(storage, pool, copy) == "b"
    for _ in range(2):
        await pool.delete_snapshot(volume, second)
    assert await snapshots_of(pool, volume) == [(first, 1)]
    assert await guest.read() == "c"


async def test_a_volume_with_snapshots_is_not_deleted(storage: Storage, pool: StoragePool) -> None:
    volume, snapshot = await volume_with(storage, pool, "a"), new_id()
    await pool.create_snapshot(volume, snapshot)
    with pytest.raises(Conflict):
        await pool.delete(volume)
    await pool.delete_snapshot(volume, snapshot)
    await pool.delete(volume)
    assert await pool.volumes() == []


async def test_reverting_keeps_the_size(storage: Storage, pool: StoragePool) -> None:
    volume, snapshot = await volume_with(storage, pool, "a"), new_id()
    await pool.create_snapshot(volume, snapshot)
    await pool.extend(volume, 2)
    assert await snapshots_of(pool, volume) == [(snapshot, 1)]
    await pool.revert(volume, snapshot)
    assert await size_of(pool, volume) == 2
    assert await contents(storage, pool, volume) == "a"


async def test_reverting_nothing_that_is_exported(storage: Storage, pool: StoragePool) -> None:
    volume, snapshot = await volume_with(storage, pool, "a"), new_id()
    await pool.create_snapshot(volume, snapshot)
    export = await exported(pool, volume)
    await storage.guest(pool, export.id).write("b")
    with pytest.raises(Conflict):
        await pool.revert(volume, snapshot)
    assert await storage.guest(pool, export.id).read() == "b"


async def test_extension(storage: Storage, pool: StoragePool) -> None:
    volume = await volume_with(storage, pool, "a")
    for _ in range(2):
        await pool.extend(volume, 3)
    assert await size_of(pool, volume) == 3
    with pytest.raises(InvalidInput):
        await pool.extend(volume, 2)
    assert await size_of(pool, volume) == 3
    assert await contents(storage, pool, volume) == "a"


async def test_extension_of_a_volume_in_use(storage: Storage, pool: StoragePool) -> None:
    volume = await volume_with(storage, pool, "a")
    exports = [await exported(pool, volume), await exported(pool, volume, writable=False)]
    await pool.extend(volume, 2)
    assert await size_of(pool, volume) == 2
    assert sorted(await pool.exports(), key=str) == sorted(exports, key=str)
    assert await storage.guest(pool, exports[0].id).read() == "a"


async def test_two_writers_see_each_other(storage: Storage, pool: StoragePool) -> None:
    """As both ends of a live migration do."""
    volume = await volume_with(storage, pool, "a")
    one, other = [storage.guest(pool, (await exported(pool, volume)).id) for _ in range(2)]
    await one.connect()
    await other.write("b")
    await one.disconnect()
    assert await one.read() == "b"


async def test_a_volume_is_filled_while_it_is_served(storage: Storage, pool: StoragePool) -> None:
    """Its reader keeps the connection when it is filled. A second word of it, and one before it was ever served, change
    nothing."""
    volume, never = new_id(), new_id()
    for one in (volume, never):
        await pool.create(one, 1)
        await pool.begin_filling(one)
        await pool.begin_filling(one)
    writer, reader = [storage.guest(pool, (await exported(pool, volume)).id) for _ in range(2)]
    await reader.connect()
    await writer.write("a")
    await pool.end_filling(volume)
    await writer.write("b")
    await reader.disconnect()
    for one in (volume, never):
        await pool.end_filling(one)
    assert await contents(storage, pool, volume) == "b"
    await pool.delete(never)
    for call in (pool.begin_filling, pool.end_filling):
        with pytest.raises(VolumeNotFound):
            await call(never)


async def test_an_export_is_one_thing(pool: StoragePool) -> None:
    volume, other = new_id(), new_id()
    await pool.create(volume, 1)
    await pool.create(other, 1)
    export = await exported(pool, volume)
    await pool.add_export(export)
    for different in (
        Export(id=export.id, volume_id=other, writable=True), Export(id=export.id, volume_id=volume, writable=False)
    ):
        with pytest.raises(Conflict):
            await pool.add_export(different)
    assert await pool.exports() == [export]


async def test_an_export_with_a_client_needs_force(storage: Storage, pool: StoragePool) -> None:
    volume = new_id()
    await pool.create(volume, 1)
    export = await exported(pool, volume)
    guest = storage.guest(pool, export.id)
    await guest.connect()
    with pytest.raises(ExportInUse):
        await pool.remove_export(export.id)
    with pytest.raises(Conflict):
        await pool.delete(volume)
    assert await pool.exports() == [export]
    for _ in range(2):
        await pool.remove_export(export.id, force=True)
    assert await pool.exports() == []
    await guest.disconnect()
    await pool.delete(volume)
    assert await pool.volumes() == []


async def test_a_read_only_export_is_read_only(storage: Storage, pool: StoragePool) -> None:
    volume = await volume_with(storage, pool, "a")
    export = await exported(pool, volume, writable=False)
    guest = storage.guest(pool, export.id)
    with pytest.raises(Conflict):
        await guest.write("b")
    assert await guest.read() == "a"


async def test_a_new_pool_finds_everything(storage: Storage, pool: StoragePool) -> None:
    volume, snapshot = await volume_with(storage, pool, "a"), new_id()
    await pool.create_snapshot(volume, snapshot)
    kept, unknown = await exported(pool, volume), await exported(pool, volume)
    before = await pool.volumes()
    await pool.close()
    new = storage.pool()
    told = Export(id=new_id(), volume_id=volume, writable=False)
    await new.start((kept, told, Export(id=new_id(), volume_id=new_id(), writable=True)))
    assert {each.id for each in await new.exports()} == {kept.id, unknown.id, told.id}
    assert await new.volumes() == before
    await new.close()


async def test_an_image_of_a_snapshot(storage: Storage, pool: StoragePool, tmp_path: Path) -> None:
    volume, snapshot = await volume_with(storage, pool, "a"), new_id()
    await pool.create_snapshot(volume, snapshot)
    export = await exported(pool, volume)
    await storage.guest(pool, export.id).write("b")
    for format_ in ("raw", "qcow2"):
        target, restored = tmp_path / format_, new_id()
        for _ in range(2):
            await pool.write_image(FromVolume(volume, snapshot), target, format_)  # type: ignore[arg-type]
        await pool.create(restored, 1, FromImage(target, format_))
        assert await contents(storage, pool, restored) == "a"
