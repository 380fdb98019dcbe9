"""The operations of the volume service, each told as a story: what it does, what refuses it, what a failure leaves."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from volume_cloud import ADMIN, IMAGE, ONE, OTHER_SERVER, SERVER, TWO, USER, VolumeCloud

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import (
    Conflict,
    ImageNotFound,
    InvalidInput,
    KilonovaError,
    NotFound,
    Retryable,
    VolumeNotFound,
    VolumeSnapshotNotFound,
)
from kilonova.domain.operation import OperationState
from kilonova.embedded.volume import attachments, backups, quotas, schema, snapshots, volume_types, volumes
from kilonova.embedded.volume.errors import (
    AttachmentNotFound,
    BackupNotFound,
    InvalidSnapshot,
    InvalidVolume,
    VolumeOverQuota,
    VolumeTypeNotFound,
)
from kilonova.embedded.volume.new_volumes import NewVolume
from kilonova.embedded.volume.operations.catalogue import VOLUME_OPERATIONS
from kilonova.embedded.volume.records import Attachment, Encryption, VolumeType
from kilonova.embedded.volume.states import AttachStatus, SnapshotStatus, VolumeStatus
from kilonova.engine import submit
from kilonova.engine.operation import Tx
from kilonova.services.image import NewImage
from kilonova.shapes.image_disks import ImageDisk, properties_of

S = VolumeStatus
BROKEN = "The disk is broken."
STRANGER = RequestContext(request_id="req-s", user_id="s", project_id="b" * 32, roles=("member",))


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[VolumeCloud]:
    made = VolumeCloud(tmp_path)
    await made.start()
    made.images.add(b"guest")
    yield made
    assert await made.problems() == []
    await made.close()


async def add_type(cloud: VolumeCloud, name: str, *, luks: bool = False, **specs: str) -> str:
    type_ = VolumeType(id=str(uuid.uuid4()), name=name, extra_specs=specs)
    await cloud.database.write(lambda conn: volume_types.insert(conn, type_))
    if luks:
        how = Encryption(id=str(uuid.uuid4()), type_id=type_.id, provider="luks", key_size=256)
        await cloud.database.write(lambda conn: volume_types.set_encryption(conn, how))
    return type_.id


async def of_volume(cloud: VolumeCloud, volume_id: str) -> list[Attachment]:
    return await cloud.database.read(lambda conn: attachments.of_volume(conn, volume_id))


def fail(cloud: VolumeCloud, call: str, times: int = 1, host: str = ONE) -> None:
    cloud.storages[host].faults.fail = {call: [KilonovaError(BROKEN) for _ in range(times)]}


# --- create and delete ---------------------------------------------------------------------------


@pytest.mark.spec("EMV-02", "EMV-04", "EMV-09")
async def test_a_volume_is_made_empty_or_of_an_image(cloud: VolumeCloud) -> None:
    await add_type(cloud, "shared", multiattach="<is> True")
    empty = await cloud.get(await cloud.make(2, volume_type="shared"))
    assert (empty.status, empty.bootable, empty.multiattach, empty.host) == (S.AVAILABLE, False, True, ONE)
    booted = await cloud.get(await cloud.make(3, image_id=IMAGE))
    assert (booted.status, booted.bootable) == (S.AVAILABLE, True)
    assert booted.image_metadata == {
        "image_id": IMAGE, "image_name": "cirros", "checksum": "c", "container_format": "bare", "disk_format": "raw",
        "min_disk": "0", "min_ram": "0", "size": "5", "os_distro": "cirros",
    }
    assert cloud.storages[ONE].volumes[booted.id].content == b"guest"
    copy = await cloud.get(await cloud.make(source_volid=booted.id, size=4))
    assert (copy.bootable, copy.image_metadata, copy.size) == (True, booted.image_metadata, 4)
    unsized = await cloud.volumes.create(USER, NewVolume(source_volid=booted.id))
    assert unsized.size == 3
    await cloud.settle()


async def test_a_volume_of_the_image_of_a_server_without_disks_is_a_copy_of_its_snapshot(cloud: VolumeCloud) -> None:
    source = await cloud.make(3, image_id=IMAGE)
    snapshot = await cloud.volumes.create_snapshot(USER, source)
    await cloud.settle()
    data = ImageDisk(source_type="snapshot", destination_type="volume", boot_index=1, snapshot_id=IMAGE)
    root = msgspec.structs.replace(data, boot_index=0, snapshot_id=snapshot.id)
    cloud.images.add(b"", properties=properties_of([data, root]))
    made = await cloud.get(await cloud.make(3, image_id=IMAGE))
    assert (made.snapshot_id, made.size, made.bootable, made.image_metadata["size"]) == (snapshot.id, 3, True, "5")
    assert cloud.storages[made.host].volumes[made.id].content == b"guest"
    cloud.images.add(b"", properties=properties_of([data]) | {"os_distro": "cirros"})
    assert (await cloud.get(await cloud.make(2, image_id=IMAGE))).snapshot_id is None
    cloud.images.add(b"", properties=properties_of([root]) | {"block_device_mapping": "[{]"})
    with pytest.raises(InvalidInput, match="cannot be read"):
        await cloud.volumes.create(USER, NewVolume(size=3, image_id=IMAGE))


@pytest.mark.spec("EMV-02", "EMV-03", "EMV-10")
async def test_what_cannot_be_made_is_refused(cloud: VolumeCloud) -> None:
    cloud.images.add(b"guest", min_disk=5)
    source = await cloud.make(3)
    for error, new in (
        (InvalidInput, NewVolume()), (InvalidInput, NewVolume(size=0)), (InvalidInput, NewVolume(size=-1)),
        (InvalidInput, NewVolume(size=2, source_volid=source)), (InvalidInput, NewVolume(size=4, image_id=IMAGE)),
        (InvalidInput, NewVolume(size=9, image_id=IMAGE, source_volid=source)),
        (ImageNotFound, NewVolume(size=1, image_id=source)), (VolumeNotFound, NewVolume(source_volid=IMAGE)),
        (VolumeSnapshotNotFound, NewVolume(snapshot_id=IMAGE)), (BackupNotFound, NewVolume(backup_id=IMAGE)),
        (VolumeTypeNotFound, NewVolume(size=1, volume_type="none")), (VolumeOverQuota, NewVolume(size=1000)),
    ):
        with pytest.raises(error):
            await cloud.volumes.create(USER, new)
    cloud.images.add(b"guest", status="queued")
    with pytest.raises(InvalidInput):
        await cloud.volumes.create(USER, NewVolume(size=1, image_id=IMAGE))
    cloud.images.add(b"guest")
    with pytest.raises(VolumeNotFound):
        await cloud.volumes.create(STRANGER, NewVolume(source_volid=source))


async def test_the_pool_with_the_most_space_gets_a_volume_and_a_full_one_none(cloud: VolumeCloud) -> None:
    first = await cloud.volumes.create(USER, NewVolume(size=20))
    await cloud.settle()
    second = await cloud.volumes.create(USER, NewVolume(size=1))
    await cloud.settle()
    assert [(await cloud.get(one.id)).host for one in (first, second)] == [ONE, TWO]
    too_large = await cloud.volumes.create(USER, NewVolume(size=500))
    await cloud.settle()
    assert (await cloud.get(too_large.id)).status is S.ERROR
    assert await cloud.told(too_large.id) == ["No valid backend was found: no storage pool has enough space."]
    await add_type(cloud, "second", volume_backend_name="two")
    chosen = await cloud.volumes.create(USER, NewVolume(size=1, volume_type="second"))
    await cloud.settle()
    assert (await cloud.get(chosen.id)).host == TWO
    await add_type(cloud, "elsewhere", vendor_name="nobody")
    nowhere = await cloud.volumes.create(USER, NewVolume(size=1, volume_type="elsewhere"))
    await cloud.settle()
    assert await cloud.told(nowhere.id) == [
        "No valid backend was found: no storage pool is as its type asks, and open to it."]


async def test_a_volume_that_cannot_be_made_is_in_error_and_can_be_deleted(cloud: VolumeCloud) -> None:
    fail(cloud, "create")
    id_ = await cloud.make()
    assert (await cloud.get(id_)).status is S.ERROR
    assert await cloud.told(id_) == [BROKEN]
    assert cloud.storages[ONE].volumes == {}
    await cloud.volumes.delete(USER, id_)
    await cloud.settle()
    assert await cloud.find(id_) is None


@pytest.mark.spec("EMV-05")
async def test_what_is_used_is_not_deleted(cloud: VolumeCloud) -> None:
    id_ = await cloud.make()
    snapshot = await cloud.volumes.create_snapshot(USER, id_)
    await cloud.settle()
    with pytest.raises(InvalidVolume, match="has snapshots"):
        await cloud.volumes.delete(USER, id_)
    attachment = await cloud.attach(id_)
    for force in (False, True):
        with pytest.raises(InvalidVolume, match="is attached"):
            await cloud.volumes.delete(USER, id_, cascade=True, force=force)
    await cloud.volumes.attachments.delete(USER, attachment)
    for status in set(S) - {S.AVAILABLE, S.ERROR, S.ERROR_RESTORING, S.ERROR_EXTENDING, S.ERROR_MANAGING,
                            S.ERROR_DELETING, S.ERROR_BACKING_UP}:
        await cloud.volumes.reset_status(ADMIN, id_, status=status)
        with pytest.raises(InvalidVolume):
            await cloud.volumes.delete(USER, id_, cascade=True)
    await cloud.volumes.reset_status(ADMIN, id_, status=S.AVAILABLE, migration_status="migrating")
    with pytest.raises(InvalidVolume, match="migration"):
        await cloud.volumes.delete(USER, id_, cascade=True)
    await cloud.volumes.reset_status(ADMIN, id_, migration_status="none")
    await cloud.volumes.delete(USER, id_, cascade=True)
    await cloud.settle()
    assert await cloud.find(id_) is None
    with pytest.raises(VolumeSnapshotNotFound):
        await cloud.database.read(lambda conn: snapshots.get(conn, snapshot.id))
    assert cloud.storages[ONE].volumes == {}


async def test_a_volume_that_the_pool_keeps_is_in_error_deleting_and_goes_later(cloud: VolumeCloud) -> None:
    id_ = await cloud.make()
    fail(cloud, "delete")
    await cloud.volumes.delete(USER, id_)
    await cloud.settle()
    assert (await cloud.get(id_)).status is S.ERROR_DELETING
    assert await cloud.told(id_) == [BROKEN]
    await cloud.volumes.delete(USER, id_)
    await cloud.settle()
    assert await cloud.find(id_) is None


async def test_a_volume_that_is_being_made_is_cancelled_by_an_operator(cloud: VolumeCloud) -> None:
    cloud.storages[ONE].faults.fail["create"] = [Retryable("The pool is tired.")] * 1000
    made = await cloud.volumes.create(USER, NewVolume(size=1, hosts=(ONE,)))
    await cloud.reached("pool/create/before")
    (making,) = await cloud.active()
    await cloud.database.write(
        lambda conn: submit.cancel(Tx(conn, 1.0), schema.journal, VOLUME_OPERATIONS, making.id, "enough")
    )
    cloud.volumes.work.wake(making.id)
    await cloud.settle()
    ended = await cloud.database.read(lambda conn: schema.journal.get(conn, making.id))
    assert ended is not None and ended.state is OperationState.CANCELLED
    assert ((await cloud.get(made.id)).status, cloud.storages[ONE].volumes) == (S.ERROR, {})


async def test_an_administrator_deletes_a_volume_that_is_being_made(cloud: VolumeCloud) -> None:
    faults = cloud.storages[ONE].faults
    faults.hang.add("create")
    made = await cloud.volumes.create(USER, NewVolume(size=1, hosts=(ONE,)))
    await asyncio.sleep(0.1)
    with pytest.raises(InvalidVolume):
        await cloud.volumes.delete(USER, made.id)
    await cloud.volumes.delete(ADMIN, made.id, force=True)
    faults.hang.clear()
    await cloud.settle()
    assert await cloud.find(made.id) is None
    assert cloud.storages[ONE].volumes == {}


@pytest.mark.spec("EMV-45")
async def test_encrypted_volumes_need_a_key_manager(cloud: VolumeCloud, tmp_path: Path) -> None:
    await add_type(cloud, "luks", luks=True)
    made = await cloud.get(await cloud.make(volume_type="luks"))
    assert made.encrypted
    keys = cloud.keys
    assert keys is not None
    assert cloud.storages[ONE].volumes[made.id].passphrase == keys.passphrase(made.encryption_key_id or "")
    copy = await cloud.get(await cloud.make(source_volid=made.id))
    assert copy.encryption_key_id == made.encryption_key_id
    for refused in (
        cloud.volumes.create_backup(USER, made.id), cloud.volumes.create(USER, NewVolume(
            source_volid=made.id, volume_type=volume_types.DEFAULT,
        )),
        cloud.volumes.upload(USER, made.id, NewImage(id=str(uuid.uuid4()), name="x", owner="p")),
        cloud.volumes.moves.retype(USER, made.id, volume_types.DEFAULT),
    ):
        with pytest.raises(InvalidInput):
            await refused
    await cloud.volumes.moves.migrate(ADMIN, made.id, TWO)
    await cloud.settle()
    assert (await cloud.get(made.id)).host == TWO
    (tmp_path / "keyless").mkdir()
    other = VolumeCloud(tmp_path / "keyless", keys=False)
    await other.start()
    await add_type(other, "luks", luks=True)
    with pytest.raises(InvalidInput, match="key manager"):
        await other.volumes.create(USER, NewVolume(size=1, volume_type="luks"))
    await other.close()


# --- extend --------------------------------------------------------------------------------------


@pytest.mark.spec("EMV-26", "EMV-27")
async def test_a_volume_grows_and_its_servers_hear_of_it(cloud: VolumeCloud) -> None:
    id_ = await cloud.make(2)
    for size in (0, 1, 2):
        with pytest.raises(InvalidInput):
            await cloud.volumes.extend(USER, id_, size)
    with pytest.raises(VolumeNotFound):
        await cloud.volumes.extend(STRANGER, id_, 3)
    with pytest.raises(VolumeOverQuota):
        await cloud.volumes.extend(USER, id_, 2000)
    await cloud.volumes.extend(USER, id_, 3)
    await cloud.settle()
    assert ((await cloud.get(id_)).size, (await cloud.get(id_)).status) == (3, S.AVAILABLE)
    assert cloud.compute.heard == []
    await cloud.attach(id_)
    with pytest.raises(InvalidVolume):
        await cloud.volumes.extend(USER, id_, 4, online=False)
    await cloud.volumes.extend(USER, id_, 4)
    await cloud.settle()
    assert ((await cloud.get(id_)).size, (await cloud.get(id_)).status) == (4, S.IN_USE)
    assert cloud.compute.heard == [("volume-extended", SERVER, id_, "completed")]


@pytest.mark.spec("EMV-29")
async def test_only_the_completion_says_that_extending_failed(cloud: VolumeCloud) -> None:
    id_ = await cloud.make()
    await cloud.attach(id_)
    cloud.compute.refuse = NotFound("no such server")
    await cloud.volumes.extend(USER, id_, 2)
    await cloud.settle()
    assert ((await cloud.get(id_)).status, (await cloud.get(id_)).size) == (S.IN_USE, 2)
    await cloud.volumes.extend_completion(USER, id_, error=False)
    assert (await cloud.get(id_)).status is S.IN_USE
    await cloud.volumes.extend_completion(USER, id_, error=True)
    assert (await cloud.get(id_)).status is S.ERROR_EXTENDING


async def test_a_pool_that_cannot_grow_a_volume(cloud: VolumeCloud) -> None:
    id_ = await cloud.make()
    fail(cloud, "extend")
    await cloud.volumes.extend(USER, id_, 2)
    await cloud.settle()
    assert ((await cloud.get(id_)).status, (await cloud.get(id_)).size) == (S.ERROR_EXTENDING, 1)
    assert await cloud.told(id_) == [BROKEN]


# --- snapshots -----------------------------------------------------------------------------------


@pytest.mark.spec("EMV-07", "EMV-08")
async def test_a_snapshot_keeps_what_a_volume_held(cloud: VolumeCloud) -> None:
    id_ = await cloud.make()
    cloud.storages[ONE].volumes[id_].content = b"before"
    first = await cloud.volumes.create_snapshot(USER, id_, name="first")
    await cloud.settle()
    held = await cloud.attach(id_)
    cloud.storages[ONE].volumes[id_].content = b"after"
    with pytest.raises(InvalidSnapshot):
        await cloud.volumes.create_snapshot(USER, id_)
    second = await cloud.volumes.create_snapshot(USER, id_, force=True)
    await cloud.settle()
    copy = await cloud.get(await cloud.make(snapshot_id=first.id))
    assert (copy.snapshot_id, cloud.storages[ONE].volumes[copy.id].content) == (first.id, b"before")
    with pytest.raises(InvalidVolume):
        await cloud.volumes.revert(USER, id_, second.id)
    await cloud.volumes.attachments.delete(USER, held)
    cloud.storages[ONE].volumes[id_].content = b"later"
    with pytest.raises(InvalidSnapshot, match="latest"):
        await cloud.volumes.revert(USER, id_, first.id)
    await cloud.volumes.revert(USER, id_, second.id)
    await cloud.settle()
    assert (await cloud.get(id_)).status is S.AVAILABLE
    assert cloud.storages[ONE].volumes[id_].content == b"after"
    for one in (first, second):
        await cloud.volumes.delete_snapshot(USER, one.id)
    await cloud.settle()
    assert cloud.storages[ONE].volumes[id_].snapshots == {}


async def test_snapshots_that_fail_say_so(cloud: VolumeCloud) -> None:
    id_ = await cloud.make()
    fail(cloud, "create_snapshot")
    snapshot = await cloud.volumes.create_snapshot(USER, id_)
    await cloud.settle()
    found = await cloud.database.read(lambda conn: snapshots.get(conn, snapshot.id))
    assert (found.status, await cloud.told(snapshot.id)) == (SnapshotStatus.ERROR, [BROKEN])
    fail(cloud, "delete_snapshot")
    await cloud.volumes.delete_snapshot(USER, snapshot.id)
    await cloud.settle()
    found = await cloud.database.read(lambda conn: snapshots.get(conn, snapshot.id))
    assert found.status is SnapshotStatus.ERROR_DELETING
    await cloud.volumes.delete_snapshot(USER, snapshot.id)
    await cloud.settle()
    again = await cloud.volumes.create_snapshot(USER, id_)
    await cloud.settle()
    fail(cloud, "revert")
    await cloud.volumes.revert(USER, id_, again.id)
    await cloud.settle()
    assert ((await cloud.get(id_)).status, await cloud.told(id_)) == (S.ERROR, [BROKEN])


# --- attachments ---------------------------------------------------------------------------------


@pytest.mark.spec("EMV-16", "EMV-18", "EMV-20", "EMV-21", "EMV-25")
async def test_an_export_exists_while_an_attachment_has_a_connector(cloud: VolumeCloud) -> None:
    id_, attaching = await cloud.make(), cloud.volumes.attachments
    reserved = await attaching.create(USER, id_, SERVER)
    assert cloud.storages[ONE].exports == {}
    connected = await attaching.update(USER, reserved.id, {"host": "h1", "mountpoint": "/dev/vdb"})
    assert (connected.status, connected.mountpoint) == (AttachStatus.ATTACHING, "/dev/vdb")
    assert connected.connection == {
        "driver_volume_type": "nbd", "export": reserved.id, "name": reserved.id, "socket": f"/simulated/{ONE}/nbd.sock",
        "tls": False, "attachment_id": reserved.id, "volume_id": id_, "access_mode": "rw", "encrypted": False,
        "qos_specs": None, "discard": True, "write_through": False, "cacheable": False, "enforce_multipath": False,
    }
    assert cloud.storages[ONE].exports[reserved.id].writable
    assert await attaching.update(USER, reserved.id, {"host": "h1"}) != reserved
    await attaching.complete(USER, reserved.id)
    again = await attaching.update(USER, reserved.id, {"host": "h1"})
    assert again.status is AttachStatus.ATTACHED
    cloud.storages[ONE].connect(reserved.id)
    assert await attaching.delete(USER, reserved.id) == []
    assert (await cloud.get(id_)).status is S.AVAILABLE
    assert cloud.storages[ONE].exports == {}
    for call in (attaching.delete(USER, reserved.id), attaching.update(USER, reserved.id, {})):
        with pytest.raises(AttachmentNotFound):
            await call
    read_only = await attaching.create(USER, id_, SERVER, connector={"host": "h1"}, mode="ro")
    assert (read_only.connection or {})["access_mode"] == "ro"
    assert not cloud.storages[ONE].exports[read_only.id].writable
    await attaching.delete(USER, read_only.id)
    await cloud.volumes.set_readonly(USER, id_, readonly=True)
    assert (await attaching.create(USER, id_, SERVER)).mode == "ro"
    with pytest.raises(InvalidVolume):
        await cloud.volumes.set_readonly(USER, id_, readonly=False)


async def test_a_connection_tells_what_the_pool_keeps_in_memory(cloud: VolumeCloud) -> None:
    for host, write_through in ((ONE, False), (TWO, True)):
        id_ = await cloud.make(host=host)
        made = await cloud.volumes.attachments.create(USER, id_, SERVER, connector={"host": "h1"})
        assert (made.connection or {})["write_through"] is write_through


@pytest.mark.spec("EMV-14", "EMV-44")
async def test_a_server_that_moves_has_the_volume_on_both_hosts(cloud: VolumeCloud) -> None:
    id_ = await cloud.make()
    source = await cloud.attach(id_)
    target = await cloud.volumes.attachments.create(USER, id_, SERVER, connector={"host": "h2"})
    assert {one.writable for one in cloud.storages[ONE].exports.values()} == {True}
    assert cloud.storages[ONE].exports.keys() == {source, target.id}
    await cloud.volumes.attachments.complete(USER, target.id)
    assert [one.id for one in await cloud.volumes.attachments.delete(USER, source)] == [target.id]
    assert (await cloud.get(id_)).status is S.IN_USE


async def test_what_cannot_be_connected_or_disconnected_says_so_and_can_be_repeated(cloud: VolumeCloud) -> None:
    id_, attaching = await cloud.make(), cloud.volumes.attachments
    fail(cloud, "add_export")
    with pytest.raises(KilonovaError, match=BROKEN):
        await attaching.create(USER, id_, SERVER, connector={"host": "h1"})
    await cloud.settle()
    assert ((await cloud.get(id_)).status, await of_volume(cloud, id_)) == (S.AVAILABLE, [])
    held = await attaching.create(USER, id_, SERVER)
    fail(cloud, "add_export")
    with pytest.raises(KilonovaError, match=BROKEN):
        await attaching.update(USER, held.id, {"host": "h1"})
    (left,) = await of_volume(cloud, id_)
    assert (left.status, left.connector) == (AttachStatus.RESERVED, None)
    await attaching.update(USER, held.id, {"host": "h1"})
    await attaching.complete(USER, held.id)
    fail(cloud, "remove_export")
    with pytest.raises(KilonovaError, match=BROKEN):
        await attaching.delete(USER, held.id)
    (left,) = await of_volume(cloud, id_)
    assert (left.status, (await cloud.get(id_)).status) == (AttachStatus.ERROR_DETACHING, S.IN_USE)
    assert await attaching.delete(USER, held.id) == []


@pytest.mark.spec("EMV-22", "EMV-23", "EMV-24")
async def test_a_user_does_not_take_away_what_a_server_uses(cloud: VolumeCloud) -> None:
    id_, other, attaching = await cloud.make(), await cloud.make(), cloud.volumes.attachments
    held = await cloud.attach(id_)
    cloud.compute.uses.add(held)
    with pytest.raises(Conflict):
        await attaching.delete(USER, held, by_service=False)
    for detach in (attaching.detach(USER, id_, held, by_service=False),
                   attaching.detach(USER, id_, None, by_service=False)):
        with pytest.raises(Conflict):
            await detach
    with pytest.raises(InvalidInput):
        await attaching.detach(USER, other, held)
    assert cloud.storages[ONE].exports.keys() == {held}
    await attaching.delete(USER, held)
    unknown = await cloud.attach(id_)
    await attaching.delete(USER, unknown, by_service=False)
    assert (await cloud.get(id_)).status is S.AVAILABLE


@pytest.mark.spec("EMV-30")
async def test_detaching_is_announced_and_taken_back(cloud: VolumeCloud) -> None:
    id_, attaching = await cloud.make(), cloud.volumes.attachments
    with pytest.raises(InvalidVolume):
        await attaching.begin_detaching(USER, id_)
    held = await cloud.attach(id_)
    await attaching.begin_detaching(USER, id_)
    assert (await cloud.get(id_)).status is S.DETACHING
    await attaching.roll_detaching(USER, id_)
    assert (await cloud.get(id_)).status is S.IN_USE
    await cloud.volumes.reset_status(ADMIN, id_, migration_status="migrating")
    await attaching.begin_detaching(USER, id_)
    assert (await cloud.get(id_)).status is S.IN_USE
    await cloud.volumes.reset_status(ADMIN, id_, migration_status="none")
    await attaching.begin_detaching(USER, id_)
    await attaching.delete(USER, held)
    assert (await cloud.get(id_)).status is S.AVAILABLE


async def test_the_old_way_to_attach(cloud: VolumeCloud) -> None:
    id_, attaching = await cloud.make(), cloud.volumes.attachments
    await attaching.reserve(USER, id_)
    with pytest.raises(InvalidVolume):
        await attaching.reserve(USER, id_)
    await attaching.unreserve(USER, id_)
    assert (await cloud.get(id_)).status is S.AVAILABLE
    await attaching.reserve(USER, id_)
    made = await attaching.initialize(USER, id_, {"host": "h1"})
    assert (await attaching.initialize(USER, id_, {"host": "h1"})).id == made.id
    assert cloud.storages[ONE].exports.keys() == {made.id}
    await attaching.attach(USER, id_, instance_id=SERVER, host_name=None, mountpoint="/dev/vdb")
    (held,) = await of_volume(cloud, id_)
    assert (held.id, held.instance_id, held.mountpoint, held.status) == (
        made.id, SERVER, "/dev/vdb", AttachStatus.ATTACHED,
    )
    with pytest.raises(InvalidVolume):
        await attaching.attach(USER, id_, instance_id=OTHER_SERVER, host_name=None, mountpoint="/dev/vdc")
    await attaching.detach(USER, id_, None)
    await attaching.initialize(USER, id_, {"host": "h1"})
    await attaching.terminate(USER, id_, {"host": "h1"})
    assert ((await cloud.get(id_)).status, cloud.storages[ONE].exports) == (S.AVAILABLE, {})


@pytest.mark.spec("EMV-46")
async def test_exports_are_back_after_the_daemon_or_the_service_died(cloud: VolumeCloud) -> None:
    held = await cloud.attach(await cloud.make())
    before = dict(cloud.storages[ONE].exports)
    cloud.storages[ONE].kill_daemon()
    await cloud.restart()
    assert cloud.storages[ONE].exports == before
    assert before.keys() == {held}


# --- images --------------------------------------------------------------------------------------


@pytest.mark.spec("EMV-31")
async def test_an_image_is_made_of_a_volume(cloud: VolumeCloud) -> None:
    id_ = await cloud.make(2, image_id=IMAGE)
    image = NewImage(id=str(uuid.uuid4()), name="copy", owner="p", properties={"mine": "yes"})
    await cloud.attach(id_)
    with pytest.raises(InvalidVolume):
        await cloud.volumes.upload(USER, id_, image)
    with pytest.raises(InvalidInput):
        await cloud.volumes.upload(USER, id_, NewImage(id=image.id, name="", owner="p", disk_format="vmdk"), force=True)
    await cloud.volumes.upload(USER, id_, image, force=True)
    assert (await cloud.get(id_)).status is S.UPLOADING
    await cloud.settle()
    assert (await cloud.get(id_)).status is S.IN_USE
    made = cloud.images.images[image.id]
    assert (made.status, made.properties) == ("active", {"os_distro": "cirros", "mine": "yes"})
    again = await cloud.get(await cloud.make(2, image_id=image.id)) if made.disk_format == "qcow2" else None
    assert again is not None
    assert cloud.storages[ONE].volumes[again.id].content == b"guest"
    cloud.images.refuse = [InvalidInput(BROKEN)]
    lost = NewImage(id=str(uuid.uuid4()), name="lost", owner="p")
    await cloud.volumes.upload(USER, again.id, lost)
    await cloud.settle()
    assert lost.id not in cloud.images.images
    assert ((await cloud.get(again.id)).status, await cloud.told(again.id)) == (S.AVAILABLE, [BROKEN])


@pytest.mark.spec("EMV-38", "EMV-39")
async def test_a_volume_that_a_server_reserved_gets_a_new_image(cloud: VolumeCloud) -> None:
    id_ = await cloud.make()
    held = await cloud.volumes.attachments.create(USER, id_, SERVER)
    with pytest.raises(InvalidVolume):
        await cloud.volumes.reimage(USER, id_, IMAGE)
    await cloud.volumes.reimage(USER, id_, IMAGE, reserved=True)
    await cloud.settle()
    found = await cloud.get(id_)
    assert (found.status, found.image_metadata["image_name"]) == (S.RESERVED, "cirros")
    assert cloud.storages[ONE].volumes[id_].content == b"guest"
    assert cloud.compute.heard == [("volume-reimaged", SERVER, id_, "completed")]
    cloud.images.add(b"x", min_disk=2)
    with pytest.raises(InvalidInput):
        await cloud.volumes.reimage(USER, id_, IMAGE, reserved=True)
    cloud.images.add(b"x", disk_format="qcow2")
    await cloud.volumes.reimage(USER, id_, IMAGE, reserved=True)
    await cloud.settle()
    assert cloud.compute.heard[-1] == ("volume-reimaged", SERVER, id_, "failed")
    assert ((await cloud.get(id_)).status, cloud.storages[ONE].volumes[id_].content) == (S.RESERVED, b"guest")
    await cloud.volumes.attachments.update(USER, held.id, {"host": "h1"})
    with pytest.raises(InvalidVolume, match="connected"):
        await cloud.volumes.reimage(USER, id_, IMAGE, reserved=True)


# --- backups -------------------------------------------------------------------------------------


async def test_a_backup_outlives_its_volume(cloud: VolumeCloud) -> None:
    id_ = await cloud.make(2, image_id=IMAGE, metadata={"tier": "gold"})
    backup = await cloud.volumes.create_backup(USER, id_, name="b")
    await cloud.settle()
    await cloud.database.write(lambda conn: volumes.change(conn, id_, 0.0, metadata={"tier": "tin"}))
    snapshot = await cloud.volumes.create_snapshot(USER, id_)
    await cloud.settle()
    cloud.storages[ONE].volumes[id_].content = b"ruined"
    of_snapshot = await cloud.volumes.create_backup(USER, id_, snapshot_id=snapshot.id)
    await cloud.settle()
    for one in (backup, of_snapshot):
        await cloud.volumes.restore_backup(USER, one.id, volume_id=id_)
        await cloud.settle()
        assert ((await cloud.get(id_)).status, cloud.storages[ONE].volumes[id_].content) == (S.AVAILABLE, b"guest")
        assert (await cloud.get(id_)).metadata == {"tier": "gold" if one is backup else "tin"}
    small = await cloud.make(1)
    with pytest.raises(InvalidVolume):
        await cloud.volumes.restore_backup(USER, backup.id, volume_id=small)
    await cloud.volumes.delete(USER, id_, cascade=True)
    await cloud.settle()
    new = await cloud.volumes.restore_backup(USER, backup.id)
    await cloud.settle()
    found = await cloud.get(new.id)
    assert (found.bootable, cloud.storages[found.host or ""].volumes[new.id].content) == (True, b"guest")
    assert found.metadata == {"tier": "gold"}
    for one in (backup, of_snapshot):
        await cloud.volumes.delete_backup(USER, one.id)
    await cloud.settle()
    with pytest.raises(BackupNotFound):
        await cloud.database.read(lambda conn: backups.get(conn, backup.id))


async def test_backups_that_fail_say_so(cloud: VolumeCloud) -> None:
    id_ = await cloud.make()
    fail(cloud, "write_image")
    backup = await cloud.volumes.create_backup(USER, id_)
    await cloud.settle()
    found = await cloud.database.read(lambda conn: backups.get(conn, backup.id))
    assert (found.status.value, found.fail_reason, (await cloud.get(id_)).status) == ("error", BROKEN, S.AVAILABLE)
    good = await cloud.volumes.create_backup(USER, id_)
    await cloud.settle()
    fail(cloud, "replace")
    await cloud.volumes.restore_backup(USER, good.id, volume_id=id_)
    await cloud.settle()
    assert ((await cloud.get(id_)).status, await cloud.told(id_)) == (S.ERROR_RESTORING, [BROKEN])


# --- moves ---------------------------------------------------------------------------------------


@pytest.mark.spec("EMV-12", "EMV-35", "EMV-36", "EMV-37")
async def test_a_volume_migrates_to_another_pool(cloud: VolumeCloud) -> None:
    id_ = await cloud.make()
    cloud.storages[ONE].volumes[id_].content = b"kept"
    for host in (ONE, ONE.partition("#")[0], "machine", "elsewhere"):
        with pytest.raises(InvalidInput):
            await cloud.volumes.moves.migrate(ADMIN, id_, host)
    await cloud.volumes.moves.migrate(ADMIN, id_, TWO, lock=True)
    assert (await cloud.get(id_)).status is S.MAINTENANCE
    with pytest.raises(InvalidVolume):
        await cloud.volumes.attachments.create(USER, id_, SERVER)
    await cloud.settle()
    found = await cloud.get(id_)
    assert (found.status, found.migration_status, found.host) == (S.AVAILABLE, "success", TWO)
    assert cloud.storages[TWO].volumes[found.name_id].content == b"kept"
    assert cloud.storages[ONE].volumes == {}
    fail(cloud, "create")
    await cloud.volumes.moves.migrate(ADMIN, id_, ONE)
    await cloud.settle()
    found = await cloud.get(id_)
    assert (found.status, found.migration_status, found.host) == (S.AVAILABLE, "error", TWO)
    assert await cloud.told(id_) == [BROKEN]
    await cloud.volumes.create_snapshot(USER, id_)
    await cloud.settle()
    with pytest.raises(InvalidVolume, match="snapshots"):
        await cloud.volumes.moves.migrate(ADMIN, id_, ONE)


@pytest.mark.spec("EMV-35")
async def test_a_volume_in_use_migrates_and_its_server_keeps_it(cloud: VolumeCloud) -> None:
    id_ = await cloud.make()
    old = await cloud.attach(id_)
    await cloud.volumes.moves.migrate(ADMIN, id_, TWO)
    with pytest.raises(InvalidVolume):
        await cloud.volumes.moves.migrate(ADMIN, id_, TWO)
    await cloud.settle()
    found = await cloud.get(id_)
    assert (found.status, found.migration_status, found.host) == (S.IN_USE, "success", TWO)
    (held,) = await of_volume(cloud, id_)
    assert held.id != old
    assert (held.instance_id, (held.connection or {})["volume_id"]) == (SERVER, id_)
    assert cloud.storages[ONE].volumes == {}
    assert cloud.storages[TWO].exports.keys() == {held.id}


@pytest.mark.spec("EMV-33")
@pytest.mark.parametrize("way", ["fails", "is refused"])
async def test_a_migration_that_compute_cannot_do_leaves_everything(cloud: VolumeCloud, way: str) -> None:
    id_ = await cloud.make()
    old = await cloud.attach(id_)
    if way == "fails":
        cloud.compute.swap_fails = True
    else:
        cloud.compute.swap_refused = InvalidInput(BROKEN)
    await cloud.volumes.moves.migrate(ADMIN, id_, TWO)
    await cloud.settle()
    found = await cloud.get(id_)
    assert (found.status, found.migration_status, found.host) == (S.IN_USE, "error", ONE)
    assert [one.id for one in await of_volume(cloud, id_)] == [old]
    assert cloud.storages[TWO].volumes == {}
    assert len(await cloud.told(id_)) == 1


async def test_a_swap_that_a_user_asked_for_keeps_both_volumes(cloud: VolumeCloud) -> None:
    old, new = await cloud.make(), await cloud.make()
    assert await cloud.volumes.moves.complete(USER, old, new, error=False) == new
    assert await cloud.volumes.moves.complete(USER, old, new, error=True) == old


@pytest.mark.spec("EMV-34", "EMV-35")
async def test_a_volume_gets_another_type(cloud: VolumeCloud) -> None:
    id_ = await cloud.make()
    shared = await add_type(cloud, "shared", multiattach="<is> True")
    second = await add_type(cloud, "second", volume_backend_name="two")
    await add_type(cloud, "nowhere", volume_backend_name="three")
    moves = cloud.volumes.moves
    for error, new_type, policy in (
        (InvalidInput, "shared", "sometimes"), (VolumeTypeNotFound, "none", "never"),
        (InvalidInput, volume_types.DEFAULT, "never"), (InvalidInput, "nowhere", "on-demand"),
    ):
        with pytest.raises(error):
            await moves.retype(USER, id_, new_type, policy)
    await moves.retype(USER, id_, "shared")
    await cloud.settle()
    found = await cloud.get(id_)
    assert (found.type_id, found.multiattach, found.status) == (shared, True, S.AVAILABLE)
    await moves.retype(USER, id_, "second", "never")
    await cloud.settle()
    assert ((await cloud.get(id_)).type_id, (await cloud.get(id_)).status) == (shared, S.AVAILABLE)
    assert len(await cloud.told(id_)) == 1
    await moves.retype(USER, id_, "second", "on-demand")
    assert (await cloud.get(id_)).status is S.RETYPING
    await cloud.settle()
    found = await cloud.get(id_)
    assert (found.type_id, found.host, found.status) == (second, TWO, S.AVAILABLE)
    await cloud.attach(id_)
    with pytest.raises(InvalidVolume):
        await moves.retype(USER, id_, "shared")


# --- many at once --------------------------------------------------------------------------------


async def test_of_two_that_want_a_volume_for_themselves_one_gets_it(cloud: VolumeCloud) -> None:
    id_ = await cloud.make()
    asked = (
        cloud.volumes.extend(USER, id_, 2), cloud.volumes.moves.migrate(ADMIN, id_, TWO),
        cloud.volumes.create_backup(USER, id_), cloud.volumes.attachments.create(USER, id_, SERVER),
    )
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(not isinstance(one, BaseException) for one in answers) == 1
    assert all(one.status == 400 for one in answers if isinstance(one, KilonovaError))
    await cloud.settle()


@pytest.mark.spec("EMV-10")
async def test_quotas_hold_for_snapshots_and_backups(cloud: VolumeCloud) -> None:
    id_ = await cloud.make()
    await cloud.database.write(
        lambda conn: quotas.set_limits(conn, USER.project_id or "", {"snapshots": 0, "backups": 0, "volumes": 1})
    )
    for asked in (cloud.volumes.create_snapshot(USER, id_), cloud.volumes.create_backup(USER, id_),
                  cloud.volumes.create(USER, NewVolume(size=1))):
        with pytest.raises(VolumeOverQuota):
            await asked
    assert (await cloud.database.read(lambda conn: volumes.get(conn, id_))).status is S.AVAILABLE
