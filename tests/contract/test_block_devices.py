"""Block device mappings on both databases."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import sqlalchemy as sa

from kilonova.db import block_devices, instances
from kilonova.db.database import Database
from kilonova.db.schema import cell_metadata
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.errors import DeviceNameTaken, VolumeAttachedAlready
from kilonova.domain.flavor import Flavor
from kilonova.domain.instance import Instance

T = TypeVar("T")
TABLE = block_devices.block_device_mappings


@pytest.fixture(params=["sqlite", "postgresql"])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite:///{tmp_path}/cell.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    database = Database.open(url)
    await database.write(cell_metadata.create_all)
    yield database
    await database.close()


def new() -> str:
    return str(uuid.uuid4())


def volume(volume_id: str | None = None, **fields: Any) -> BlockDevice:
    return BlockDevice(
        uuid=new(), source_type="volume", destination_type="volume", volume_id=volume_id, state=AttachState.RESERVED,
        **fields,
    )


async def put(db: Database, server: str, *devices: BlockDevice) -> None:
    def insert(conn: sa.Connection) -> None:
        for device in devices:
            block_devices.insert(conn, server, device, now=1.0)

    await db.write(insert)


async def of_server(db: Database, server: str) -> list[BlockDevice]:
    return await db.read(lambda conn: block_devices.of_server(conn, server))


async def change(
    db: Database, device: BlockDevice, was: tuple[AttachState, ...] = tuple(AttachState), **changes: Any
) -> BlockDevice | None:
    return await db.write(lambda conn: block_devices.update(conn, device.uuid, now=2.0, was=was, **changes))


async def test_all_of_a_mapping_is_kept_and_the_order_is_that_of_the_inserts(db: Database) -> None:
    full = BlockDevice(
        uuid=new(), source_type="image", destination_type="volume", boot_index=0, image_id=new(), volume_id=new(),
        snapshot_id=new(), volume_size=3, volume_type="fast", guest_format="ext4", device_name="/dev/vda",
        device_type="cdrom", disk_bus="scsi", delete_on_termination=True, tag="boot", attachment_id=new(),
        connection_info='{"data": {}}', encrypted=True, encryption_format="luks", encryption_secret_uuid=new(),
        state=AttachState.ATTACHING,
    )
    defaults = {name: field.default for name, field in zip(
        BlockDevice.__struct_fields__, msgspec.structs.fields(BlockDevice), strict=True)}
    assert all(getattr(full, name) != value for name, value in defaults.items()), "a field is not tried"
    server, empty = new(), new()
    others = [volume(new()) for _ in range(9)]
    await put(db, server, full, *others)
    await put(db, new(), volume(new()))
    assert await of_server(db, server) == [full, *others]
    assert await db.read(lambda conn: block_devices.of_servers(conn, [server, empty])) == {
        server: [full, *others], empty: []}
    assert await db.read(lambda conn: block_devices.of_servers(conn, [])) == {}


@pytest.mark.spec("BDM-31")
async def test_a_server_has_a_volume_once_and_any_number_of_mappings_that_wait_for_one(db: Database) -> None:
    server, shared = new(), new()
    waiting = [volume(), volume()]
    first = volume(shared)
    await put(db, server, *waiting, first)
    with pytest.raises(VolumeAttachedAlready) as refusal:
        await put(db, server, volume(shared))
    assert refusal.value.status == 400
    with pytest.raises(VolumeAttachedAlready):
        await change(db, waiting[0], volume_id=shared)
    assert await of_server(db, server) == [*waiting, first]
    other, its = new(), volume(shared)
    await put(db, other, its)
    found = await db.read(lambda conn: block_devices.with_volume(conn, shared))
    assert found == {server: first, other: its}
    assert await db.read(lambda conn: block_devices.with_volume(conn, new())) == {}
    filled = await change(db, waiting[0], volume_id=new())
    assert filled is not None
    assert await of_server(db, server) == [filled, waiting[1], first]


@pytest.mark.spec("RBN-10")
async def test_two_disks_of_a_server_have_different_names(db: Database) -> None:
    server = new()
    first, second = volume(new(), device_name="/dev/vdb"), volume(new())
    await put(db, server, first, second)
    await put(db, new(), volume(new(), device_name="/dev/vdb"))
    with pytest.raises(DeviceNameTaken) as refusal:
        await put(db, server, volume(new(), device_name="/dev/vdb"))
    assert refusal.value.status == 409
    with pytest.raises(DeviceNameTaken):
        await change(db, second, device_name="/dev/vdb")
    assert await of_server(db, server) == [first, second]


@pytest.mark.spec("RBN-10", "BDM-31")
@pytest.mark.parametrize("same", ["volume_id", "device_name"])
async def test_the_database_itself_keeps_them_apart(db: Database, same: str) -> None:
    server = new()

    def twice(conn: sa.Connection) -> None:
        for number in range(2):
            values = {"volume_id": str(number), "device_name": str(number), same: "the same"}
            row = msgspec.structs.asdict(volume()) | values | {"instance_uuid": server, "created_at": 1.0}
            conn.execute(sa.insert(TABLE), row)

    with pytest.raises(sa.exc.IntegrityError):
        await db.write(twice)


@pytest.mark.spec("RBN-10")
async def test_of_requests_at_once_one_gets_the_name_and_one_the_volume(db: Database) -> None:
    server, wanted = new(), new()
    for devices in ([volume(new(), device_name="/dev/vdb") for _ in range(4)], [volume(wanted) for _ in range(4)]):
        results = await asyncio.gather(*(put(db, server, one) for one in devices), return_exceptions=True)
        assert [result for result in results if result is None] == [None]
        refused = [result for result in results if result is not None]
        assert all(isinstance(one, (DeviceNameTaken, VolumeAttachedAlready)) for one in refused), refused
    assert len(await of_server(db, server)) == 2


async def test_a_mapping_is_stored_once(db: Database) -> None:
    server = new()
    device = volume(new(), device_name="/dev/vdb")
    await put(db, server, device)
    changed = await change(db, device, state=AttachState.ATTACHED, connection_info="{}")
    await put(db, server, device)
    assert await of_server(db, server) == [changed]


async def test_a_change_expects_a_state(db: Database) -> None:
    server, device = new(), volume(new())
    await put(db, server, device)
    assert await change(db, device, (AttachState.ATTACHED, AttachState.DETACHING), tag="no") is None
    assert await change(db, volume(), tag="nobody") is None
    assert await of_server(db, server) == [device]
    attached = await change(db, device, (AttachState.RESERVED,), state=AttachState.ATTACHED, attachment_id=new())
    assert attached is not None
    assert attached.state is AttachState.ATTACHED
    assert await of_server(db, server) == [attached]
    assert await change(db, device, volume_id=device.volume_id) == attached
    times = await db.read(lambda conn: conn.execute(sa.select(TABLE.c.created_at, TABLE.c.updated_at)).all())
    assert [tuple(row) for row in times] == [(1.0, 2.0)]


async def test_mappings_are_removed(db: Database) -> None:
    server, other = new(), new()
    devices, kept = [volume(new()) for _ in range(3)], volume(new())
    await put(db, server, *devices)
    await put(db, other, kept)

    async def do(work: Callable[[sa.Connection], T]) -> T:
        return await db.write(work)

    for _ in range(2):
        await do(lambda conn: block_devices.remove(conn, devices[1].uuid))
        assert await of_server(db, server) == [devices[0], devices[2]]
    await put(db, server, volume(devices[1].volume_id))
    for _ in range(2):
        await do(lambda conn: block_devices.remove_all(conn, server))
        assert await of_server(db, server) == []
    assert await of_server(db, other) == [kept]


async def test_a_server_that_never_was_leaves_none_and_a_deleted_one_those_that_are_not_free(db: Database) -> None:
    flavor = Flavor(flavor_id="1", name="f", vcpus=1, memory_mib=1, root_gib=1)
    for erased in (False, True):
        server, device = Instance(uuid=new(), project_id="p", user_id="u", flavor=flavor), volume(new())
        await db.write(lambda conn, server=server: instances.insert(conn, server))
        await put(db, server.uuid, device)
        if erased:
            await db.write(lambda conn, server=server: instances.erase(conn, server.uuid))
        else:
            await db.write(lambda conn, server=server: instances.update(conn, server.uuid, now=3.0, deleted_at=3.0))
        assert await of_server(db, server.uuid) == ([] if erased else [device])
