"""What every implementation of the volume service promises the compute service."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from volume_clients import IMPLEMENTATIONS, Clients
from volume_cloud import ADMIN, IMAGE, ONE, OTHER_SERVER, SERVER, TWO, USER

from kilonova.domain.errors import (
    InvalidInput,
    InvalidVolume,
    KilonovaError,
    NotFound,
    OverQuota,
    Retryable,
    ServiceUnavailable,
    VolumeAttachmentNotFound,
    VolumeNotFound,
    VolumeSnapshotNotFound,
)
from kilonova.embedded.volume import attachments, quotas, snapshots, volume_types
from kilonova.embedded.volume import records as kept
from kilonova.embedded.volume.states import SnapshotStatus, VolumeStatus
from kilonova.services.volumes import NewSnapshot, NewVolume, check_attachable

STRANGER = msgspec.structs.replace(USER, project_id="b" * 32)
CONNECTOR = {"host": "h1", "ip": "192.0.2.7", "mountpoint": "/dev/vdb"}
UNKNOWN = [str(uuid.uuid4()), "name", "", "..", "../x", "x\0y"]


@pytest.fixture(params=IMPLEMENTATIONS)
async def volume(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Clients]:
    async with IMPLEMENTATIONS[request.param](tmp_path) as clients:
        yield clients


async def status(volume: Clients, id_: str) -> str:
    return (await volume.client.volume(None, id_)).status


async def force(volume: Clients, id_: str, to: VolumeStatus) -> None:
    await volume.cloud.volumes.reset_status(ADMIN, id_, status=to)


async def add_type(volume: Clients, name: str, **specs: str) -> str:
    made = kept.VolumeType(id=str(uuid.uuid4()), name=name, extra_specs=specs)
    await volume.cloud.database.write(lambda conn: volume_types.insert(conn, made))
    return made.id


async def held(volume: Clients, id_: str) -> list[str]:
    found = await volume.cloud.database.read(lambda conn: attachments.of_volume(conn, id_))
    return [one.id for one in found]


# --- volumes -------------------------------------------------------------------------------------


async def test_a_volume_is_described(volume: Clients) -> None:
    volume.cloud.images.add(b"data", min_disk=1)
    id_ = await volume.cloud.make(2, name="data", image_id=IMAGE)
    shown = await volume.client.volume(USER, id_)
    assert (shown.id, shown.name, shown.status, shown.size) == (id_, "data", "available", 2)
    assert (shown.project_id, shown.user_id) == (USER.project_id, USER.user_id)
    assert (shown.availability_zone, shown.volume_type) == ("nova", "__DEFAULT__")
    assert (shown.bootable, shown.multiattach, shown.encrypted, shown.read_only) == (True, False, False, False)
    assert (shown.image_metadata["image_id"], shown.image_metadata["min_disk"]) == (IMAGE, "1")
    assert (shown.migration_status, shown.attachments) == (None, ())
    assert await volume.client.volume(None, id_) == await volume.client.volume(ADMIN, id_) == shown
    made = await volume.client.create_attachment(id_, SERVER, (), connector=CONNECTOR)
    assert (await volume.client.volume(USER, id_)).attachments == ()
    await volume.client.complete_attachment(made.id)
    [one] = (await volume.client.volume(USER, id_)).attachments
    assert (one.attachment_id, one.server_id, one.host, one.device) == (made.id, SERVER, "h1", "/dev/vdb")


async def test_the_volumes_and_snapshots_of_a_project_are_listed(volume: Clients) -> None:
    """Newest first, and none of others."""
    new = NewVolume(key="a", size=1, name="one", description="first", metadata={"color": "red"})
    made = [(await volume.client.create_volume(USER, new)).id]
    await volume.cloud.settle()
    for number in range(2):
        made.append(await volume.cloud.make(name=str(number)))
    await volume.client.create_volume(STRANGER, NewVolume(key="theirs", size=1))
    await volume.cloud.settle()
    taken = [await volume.client.create_snapshot(USER, NewSnapshot(
        key=key, volume_id=made[0], name=key, description="d")) for key in ("s1", "s2")]
    await volume.cloud.settle()
    found = await volume.client.volumes(USER, limit=10, offset=0)
    assert [one.id for one in found] == [*reversed(made)]
    assert (found[-1].description, found[-1].snapshot_id) == ("first", None)
    assert found[-1].metadata["color"] == "red"
    stored = await volume.cloud.get(made[0])
    assert abs(found[-1].created_at - stored.created_at) < 1.0
    assert [one.id for one in await volume.client.volumes(USER, limit=1, offset=1)] == [made[1]]
    assert len(await volume.client.volumes(STRANGER, limit=10, offset=0)) == 1
    listed = await volume.client.snapshots(USER, limit=10, offset=0)
    assert [one.id for one in listed] == [one.id for one in reversed(taken)]
    assert (listed[0].name, listed[0].description, listed[0].volume_id) == ("s2", "d", made[0])
    assert abs(listed[0].created_at - stored.created_at) < 10.0
    assert await volume.client.snapshots(STRANGER, limit=10, offset=0) == []
    assert [one.id for one in await volume.client.snapshots(USER, limit=1, offset=0)] == [taken[1].id]


async def test_a_volume_is_hidden_from_others(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    with pytest.raises(VolumeNotFound):
        await volume.client.volume(STRANGER, id_)
    for unknown in UNKNOWN:
        with pytest.raises(VolumeNotFound):
            await volume.client.volume(None, unknown)


async def test_a_volume_is_made_once(volume: Clients) -> None:
    new = NewVolume(key="op/vda", size=3, name="root", description="of a server")
    made = await volume.client.create_volume(USER, new)
    assert (await volume.client.create_volume(USER, new)).id == made.id
    await volume.cloud.settle()
    again = await volume.client.create_volume(USER, new)
    assert (again.id, again.status, again.size, again.name) == (made.id, "available", 3, "root")
    assert (again.project_id, again.multiattach) == (USER.project_id, False)
    other = await volume.client.create_volume(USER, NewVolume(key="op/vdb", size=3))
    assert other.id != made.id


async def test_a_volume_is_made_from_an_image_or_a_snapshot(volume: Clients) -> None:
    volume.cloud.images.add(b"data of an image")
    first = await volume.client.create_volume(USER, NewVolume(key="1", size=2, image_id=IMAGE))
    await volume.cloud.settle()
    assert (await volume.client.volume(USER, first.id)).bootable
    taken = await volume.client.create_snapshot(USER, NewSnapshot(key="s", volume_id=first.id))
    await volume.cloud.settle()
    type_ = await add_type(volume, "fast")
    new = NewVolume(key="2", snapshot_id=taken.id, volume_type=type_, availability_zone="nova")
    copy = await volume.client.create_volume(USER, new)
    await volume.cloud.settle()
    assert (copy.size, copy.volume_type) == (2, "fast")
    assert (await volume.client.volume(USER, copy.id)).status == "available"


async def test_a_volume_that_cannot_be_made_is_refused(volume: Clients) -> None:
    nowhere = str(uuid.uuid4())
    for new in (NewVolume(key="a", size=0), NewVolume(key="b")):
        with pytest.raises(InvalidInput):
            await volume.client.create_volume(USER, new)
    for new in (
        NewVolume(key="c", snapshot_id=nowhere), NewVolume(key="d", size=1, image_id=nowhere),
        NewVolume(key="e", size=1, volume_type="none"),
    ):
        with pytest.raises(NotFound):
            await volume.client.create_volume(USER, new)
    await volume.cloud.database.write(
        lambda conn: quotas.set_limits(conn, USER.project_id or "", {"volumes": 0, "snapshots": 0})
    )
    with pytest.raises(OverQuota) as error:
        await volume.client.create_volume(USER, NewVolume(key="f", size=1))
    assert error.value.status == 403


async def test_what_was_made_is_found_by_its_key_and_deleted(volume: Clients) -> None:
    made = await volume.client.create_volume(USER, NewVolume(key="op/vda", size=1))
    kept_ = await volume.client.create_volume(USER, NewVolume(key="op/vdb", size=1))
    await volume.cloud.settle()
    await force(volume, made.id, VolumeStatus.DOWNLOADING)
    with pytest.raises(Retryable):
        await volume.client.discard_volume("op/vda")
    await force(volume, made.id, VolumeStatus.AVAILABLE)
    await volume.client.discard_volume("op/vda")
    await volume.cloud.settle()
    with pytest.raises(VolumeNotFound):
        await volume.client.volume(None, made.id)
    await volume.client.discard_volume("op/vda")
    await volume.client.discard_volume("never made")
    assert await status(volume, kept_.id) == "available"


async def test_deleting_a_volume_twice_is_no_error(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    made = await volume.client.create_attachment(id_, SERVER, ())
    with pytest.raises(InvalidVolume):
        await volume.client.delete_volume(id_)
    await volume.client.delete_attachment(made.id)
    volume.cloud.storages[ONE].faults.hang = {"delete"}
    await volume.client.delete_volume(id_)
    assert await status(volume, id_) == "deleting"
    await volume.client.delete_volume(id_)
    volume.cloud.storages[ONE].faults.hang.clear()
    await volume.cloud.settle()
    await volume.client.delete_volume(id_)
    assert await volume.cloud.find(id_) is None


@pytest.mark.spec("EMV-29")
async def test_a_larger_volume_was_seen_or_not(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    await force(volume, id_, VolumeStatus.EXTENDING)
    for _ in range(2):
        await volume.client.extend_completed(id_, error=True)
    assert await status(volume, id_) == "error_extending"
    await force(volume, id_, VolumeStatus.IN_USE)
    await volume.client.extend_completed(id_, error=False)
    assert await status(volume, id_) == "in-use"
    with pytest.raises(VolumeNotFound):
        await volume.client.extend_completed(str(uuid.uuid4()), error=False)


@pytest.mark.spec("EMV-30")
async def test_a_migrated_volume_keeps_its_id(volume: Clients) -> None:
    """The compute service of the stand-in asks in process; here its part is played through the client."""
    id_ = await volume.cloud.make()
    old = await volume.client.create_attachment(id_, SERVER, (), connector=CONNECTOR)
    await volume.client.complete_attachment(old.id)
    asked: list[str] = []

    async def swap(_server: str, _old: str, new: str) -> None:
        asked.append(new)

    volume.cloud.compute.swap_volume = swap  # type: ignore[method-assign]
    await volume.cloud.volumes.moves.migrate(ADMIN, id_, TWO)
    while not asked:
        await volume.cloud.clock.sleep(0.01)
    await volume.client.begin_detaching(id_)
    assert (await volume.client.volume(None, id_)).migration_status == "migrating"
    assert await status(volume, id_) == "in-use"
    made = await volume.client.create_attachment(asked[0], SERVER, (), connector=CONNECTOR)
    await volume.client.complete_attachment(made.id)
    await volume.client.delete_attachment(old.id)
    assert await volume.client.migration_completed(id_, asked[0], error=False) == id_
    await volume.cloud.settle()
    assert await volume.client.migration_completed(id_, asked[0], error=False) == id_
    after = await volume.client.volume(None, id_)
    assert (after.status, after.migration_status) == ("in-use", "success")
    assert [one.attachment_id for one in after.attachments] == [made.id]
    with pytest.raises(VolumeNotFound):
        await volume.client.migration_completed(str(uuid.uuid4()), id_, error=True)


async def test_of_volumes_that_do_not_migrate_the_server_has_the_one_it_uses(volume: Clients) -> None:
    old, new = await volume.cloud.make(), await volume.cloud.make()
    assert await volume.client.migration_completed(old, new, error=False) == new
    assert await volume.client.migration_completed(old, new, error=True) == old


@pytest.mark.spec("EMV-38")
async def test_the_data_of_a_reserved_volume_are_replaced(volume: Clients) -> None:
    volume.cloud.images.add(b"another image")
    id_ = await volume.cloud.make()
    made = await volume.client.create_attachment(id_, SERVER, ())
    volume.cloud.storages[ONE].faults.hang = {"replace"}
    await volume.client.reimage(id_, IMAGE)
    assert await status(volume, id_) == "downloading"
    await volume.client.reimage(id_, IMAGE)
    volume.cloud.storages[ONE].faults.hang.clear()
    await volume.cloud.settle()
    assert volume.cloud.compute.heard == [("volume-reimaged", SERVER, id_, "completed")]
    assert (await volume.client.volume(None, id_)).image_metadata["image_id"] == IMAGE
    for volume_id, image_id in ((id_, str(uuid.uuid4())), (str(uuid.uuid4()), IMAGE)):
        with pytest.raises(NotFound):
            await volume.client.reimage(volume_id, image_id)
    await volume.client.update_attachment(made.id, CONNECTOR)
    with pytest.raises(InvalidVolume):
        await volume.client.reimage(id_, IMAGE)
    large = await volume.cloud.make()
    volume.cloud.images.add(b"large", min_disk=5)
    with pytest.raises(InvalidVolume):
        await volume.client.reimage(large, IMAGE)


async def test_types_are_known_by_name_and_id(volume: Clients) -> None:
    type_ = await add_type(volume, "fast")
    for known in (None, type_, "fast"):
        await volume.client.check_type(USER, known)
    with pytest.raises(NotFound, match="slow"):
        await volume.client.check_type(USER, "slow")


@pytest.mark.spec("EMV-45")
async def test_how_a_volume_is_encrypted(volume: Clients) -> None:
    plain = await volume.cloud.make()
    assert await volume.client.encryption(plain) is None
    type_ = await add_type(volume, "secret")
    how = kept.Encryption(
        id=str(uuid.uuid4()), type_id=type_, provider="luks", cipher="aes-xts-plain64", key_size=256
    )
    await volume.cloud.database.write(lambda conn: volume_types.set_encryption(conn, how))
    secret = await volume.cloud.make(volume_type="secret")
    assert (await volume.client.volume(None, secret)).encrypted
    found = await volume.client.encryption(secret)
    assert found is not None
    assert (found.provider, found.cipher, found.key_size, found.control_location) == (
        "luks", "aes-xts-plain64", 256, "front-end",
    )
    assert found.key_id == (await volume.cloud.get(secret)).encryption_key_id
    with pytest.raises(NotFound):
        await volume.client.passphrase(plain)
    for ask in (volume.client.encryption, volume.client.passphrase):
        with pytest.raises(VolumeNotFound):
            await ask(str(uuid.uuid4()))


# --- attachments ---------------------------------------------------------------------------------


async def test_an_attachment_from_its_reservation_to_its_end(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    made = await volume.client.create_attachment(id_, SERVER, ())
    assert (made.volume_id, made.instance_uuid, made.status, made.mode) == (id_, SERVER, "reserved", "rw")
    assert made.connection_info is None
    assert await status(volume, id_) == "reserved"
    for _ in range(2):
        connected = await volume.client.update_attachment(made.id, CONNECTOR)
        assert (connected.id, connected.status) == (made.id, "attaching")
        info = connected.connection_info
        assert info is not None
        assert (info["driver_volume_type"], info["access_mode"], info["export"]) == ("nbd", "rw", made.id)
    assert await volume.client.attachment(made.id) == connected
    assert list(volume.cloud.storages[ONE].exports) == [made.id]
    for _ in range(2):
        await volume.client.complete_attachment(made.id)
    assert await status(volume, id_) == "in-use"
    assert [one.status for one in await volume.client.attachments(SERVER)] == ["attached"]
    for _ in range(2):
        await volume.client.delete_attachment(made.id)
    assert await status(volume, id_) == "available"
    assert volume.cloud.storages[ONE].exports == {}
    assert await volume.client.attachments(SERVER) == []


async def test_an_attachment_that_is_not_there(volume: Clients) -> None:
    for unknown in UNKNOWN:
        for call in (
            volume.client.attachment(unknown), volume.client.update_attachment(unknown, CONNECTOR),
            volume.client.complete_attachment(unknown),
        ):
            with pytest.raises(VolumeAttachmentNotFound):
                await call
        await volume.client.delete_attachment(unknown)
    with pytest.raises(VolumeNotFound):
        await volume.client.create_attachment(str(uuid.uuid4()), SERVER, ())


async def test_reading_an_attachment_changes_nothing(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    made = await volume.client.create_attachment(id_, SERVER, (), connector=CONNECTOR)
    await volume.client.complete_attachment(made.id)
    before = await volume.cloud.state()
    found = await volume.client.attachment(made.id)
    assert found.status == "attached"
    assert found.connection_info == made.connection_info
    assert await volume.cloud.state() == before


async def test_an_attachment_that_nobody_knows_is_taken_over(volume: Clients) -> None:
    """The answer to its making was lost: who asked makes it again, or gives up."""
    id_ = await volume.cloud.make()
    lost = await volume.client.create_attachment(id_, SERVER, ())
    again = await volume.client.create_attachment(id_, SERVER, [])
    assert again == lost
    connected = await volume.client.create_attachment(id_, SERVER, (), connector=CONNECTOR)
    assert connected.id == lost.id
    assert connected.connection_info is not None
    assert await held(volume, id_) == [lost.id]
    await volume.client.discard_attachments(id_, SERVER, ())
    assert await held(volume, id_) == []
    assert await status(volume, id_) == "available"


@pytest.mark.spec("EMV-14")
async def test_a_server_gets_a_second_attachment_of_its_volume(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    first = await volume.client.create_attachment(id_, SERVER, (), connector=CONNECTOR)
    await volume.client.complete_attachment(first.id)
    second = await volume.client.create_attachment(id_, SERVER, {first.id})
    assert (second.id != first.id, second.status) == (True, "reserved")
    assert await volume.client.create_attachment(id_, SERVER, {first.id}) == second
    assert await status(volume, id_) == "in-use"
    await volume.client.discard_attachments(id_, SERVER, {first.id})
    assert await held(volume, id_) == [first.id]
    third = await volume.client.create_attachment(id_, SERVER, {first.id}, connector=CONNECTOR | {"host": "h2"})
    reserved = await volume.client.create_attachment(id_, SERVER, {first.id})
    assert reserved.id not in (first.id, third.id), "one that is connected keeps no volume"
    assert reserved.connection_info is None


async def test_one_that_a_server_uses_is_not_taken_over(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    used = await volume.client.create_attachment(id_, SERVER, (), connector=CONNECTOR)
    await volume.client.complete_attachment(used.id)
    made = await volume.client.create_attachment(id_, SERVER, (), connector=CONNECTOR)
    assert made.id != used.id


async def test_of_two_servers_one_gets_the_volume(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    winner = await volume.client.create_attachment(id_, SERVER, ())
    with pytest.raises(InvalidVolume):
        await volume.client.create_attachment(id_, OTHER_SERVER, ())
    await volume.client.discard_attachments(id_, OTHER_SERVER, ())
    assert await held(volume, id_) == [winner.id], "who lost undoes nothing of who won"
    await add_type(volume, "shared", multiattach="<is> True")
    shared = await volume.cloud.make(volume_type="shared")
    for server in (SERVER, OTHER_SERVER):
        made = await volume.client.create_attachment(shared, server, (), connector=CONNECTOR)
        await volume.client.complete_attachment(made.id)
    assert len(await held(volume, shared)) == 2


async def test_only_what_is_of_the_volume_is_discarded(volume: Clients) -> None:
    one, two = await volume.cloud.make(), await volume.cloud.make()
    await volume.client.create_attachment(one, SERVER, ())
    other = await volume.client.create_attachment(two, SERVER, ())
    await volume.client.discard_attachments(one, SERVER, ())
    assert await held(volume, one) == []
    assert [(a.id, a.volume_id) for a in await volume.client.attachments(SERVER)] == [(other.id, two)]


@pytest.mark.spec("EMV-25")
async def test_a_server_may_get_a_volume_for_reading_alone(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    made = await volume.client.create_attachment(id_, SERVER, (), connector=CONNECTOR, read_only=True)
    assert made.mode == "ro"
    assert made.connection_info is not None
    assert made.connection_info["access_mode"] == "ro"
    assert not volume.cloud.storages[ONE].exports[made.id].writable


@pytest.mark.spec("EMV-21")
async def test_what_fails_there_is_worth_a_retry(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    made = await volume.client.create_attachment(id_, SERVER, ())
    faults = volume.cloud.storages[ONE].faults
    faults.fail = {"add_export": [KilonovaError("The pool is ill.")]}
    with pytest.raises(ServiceUnavailable):
        await volume.client.update_attachment(made.id, CONNECTOR)
    assert await status(volume, id_) == "reserved"
    await volume.client.update_attachment(made.id, CONNECTOR)
    faults.fail = {"remove_export": [KilonovaError("The pool is ill.")]}
    with pytest.raises(ServiceUnavailable):
        await volume.client.delete_attachment(made.id)
    await volume.client.delete_attachment(made.id)
    assert await status(volume, id_) == "available"


async def test_detaching_begins_and_is_called_off(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    with pytest.raises(InvalidVolume):
        await volume.client.begin_detaching(id_)
    made = await volume.client.create_attachment(id_, SERVER, (), connector=CONNECTOR)
    await volume.client.complete_attachment(made.id)
    for _ in range(2):
        await volume.client.begin_detaching(id_)
        assert await status(volume, id_) == "detaching"
    for _ in range(2):
        await volume.client.roll_detaching(id_)
        assert await status(volume, id_) == "in-use"
    await volume.client.roll_detaching(str(uuid.uuid4()))
    with pytest.raises(VolumeNotFound):
        await volume.client.begin_detaching(str(uuid.uuid4()))


async def test_what_cannot_be_reserved_is_refused_early(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    check_attachable(await volume.client.volume(None, id_))
    await volume.client.create_attachment(id_, SERVER, ())
    with pytest.raises(InvalidVolume, match="must be available to be attached, but is reserved"):
        check_attachable(await volume.client.volume(None, id_))
    await add_type(volume, "shared", multiattach="<is> True")
    shared = await volume.cloud.make(volume_type="shared")
    await force(volume, shared, VolumeStatus.IN_USE)
    check_attachable(await volume.client.volume(None, shared))
    await force(volume, shared, VolumeStatus.ERROR)
    with pytest.raises(InvalidVolume):
        check_attachable(await volume.client.volume(None, shared))


# --- snapshots -----------------------------------------------------------------------------------


async def test_a_snapshot_is_taken_once(volume: Clients) -> None:
    id_ = await volume.cloud.make(2)
    made = await volume.client.create_attachment(id_, SERVER, (), connector=CONNECTOR)
    await volume.client.complete_attachment(made.id)
    new = NewSnapshot(key="op/snap", volume_id=id_, name="nightly")
    taken = await volume.client.create_snapshot(USER, new)
    await volume.cloud.settle()
    assert (await volume.client.create_snapshot(USER, new)).id == taken.id
    shown = await volume.client.snapshot(USER, taken.id)
    assert (shown.id, shown.volume_id, shown.status, shown.size) == (taken.id, id_, "available", 2)
    assert (shown.name, shown.project_id) == ("nightly", USER.project_id)
    other = await volume.client.create_snapshot(USER, NewSnapshot(key="op/other", volume_id=id_))
    await volume.cloud.settle()
    await volume.client.discard_snapshot(id_, "op/snap")
    await volume.cloud.settle()
    await volume.client.discard_snapshot(id_, "op/snap")
    with pytest.raises(VolumeSnapshotNotFound):
        await volume.client.snapshot(None, taken.id)
    assert (await volume.client.snapshot(None, other.id)).status == "available"


async def test_a_snapshot_is_hidden_from_others(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    taken = await volume.client.create_snapshot(USER, NewSnapshot(key="s", volume_id=id_))
    with pytest.raises(VolumeSnapshotNotFound):
        await volume.client.snapshot(STRANGER, taken.id)
    for unknown in UNKNOWN:
        with pytest.raises(VolumeSnapshotNotFound):
            await volume.client.snapshot(None, unknown)


async def test_a_snapshot_that_cannot_be_taken_is_refused(volume: Clients) -> None:
    with pytest.raises(VolumeNotFound):
        await volume.client.create_snapshot(USER, NewSnapshot(key="a", volume_id=str(uuid.uuid4())))
    id_ = await volume.cloud.make()
    await force(volume, id_, VolumeStatus.ERROR)
    with pytest.raises(InvalidInput):
        await volume.client.create_snapshot(USER, NewSnapshot(key="b", volume_id=id_))
    await force(volume, id_, VolumeStatus.AVAILABLE)
    await volume.cloud.database.write(
        lambda conn: quotas.set_limits(conn, USER.project_id or "", {"snapshots": 0})
    )
    with pytest.raises(OverQuota):
        await volume.client.create_snapshot(USER, NewSnapshot(key="c", volume_id=id_))


async def reset(volume: Clients, snapshot_id: str, to: SnapshotStatus) -> None:
    await volume.cloud.database.write(lambda conn: snapshots.change(conn, snapshot_id, 1.0, status=to))


async def test_deleting_a_snapshot_twice_is_no_error(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    taken = await volume.client.create_snapshot(USER, NewSnapshot(key="s", volume_id=id_))
    await volume.cloud.settle()
    await reset(volume, taken.id, SnapshotStatus.BACKING_UP)
    with pytest.raises(InvalidInput):
        await volume.client.delete_snapshot(taken.id)
    await reset(volume, taken.id, SnapshotStatus.CREATING)
    with pytest.raises(Retryable):
        await volume.client.discard_snapshot(id_, "s")
    await reset(volume, taken.id, SnapshotStatus.AVAILABLE)
    volume.cloud.storages[ONE].faults.hang = {"delete_snapshot"}
    await volume.client.delete_snapshot(taken.id)
    await volume.client.delete_snapshot(taken.id)
    volume.cloud.storages[ONE].faults.hang.clear()
    await volume.cloud.settle()
    await volume.client.delete_snapshot(taken.id)
    assert await volume.cloud.database.read(lambda conn: snapshots.of_volume(conn, id_)) == []


@pytest.mark.spec("EMV-41")
async def test_what_the_hypervisor_did_for_a_snapshot_is_told(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    taken = await volume.client.create_snapshot(USER, NewSnapshot(key="s", volume_id=id_))
    await volume.cloud.settle()

    async def told() -> tuple[str, int]:
        found = await volume.cloud.database.read(lambda conn: snapshots.get(conn, taken.id))
        return found.status.value, found.progress

    await reset(volume, taken.id, SnapshotStatus.CREATING)
    for _ in range(2):
        await volume.client.report_snapshot(taken.id, "creating")
    assert await told() == ("creating", 90)
    with pytest.raises(InvalidInput):
        await volume.client.report_snapshot(taken.id, "error_deleting")
    for _ in range(2):
        await volume.client.report_snapshot(taken.id, "error")
    assert (await told())[0] == "error"
    await reset(volume, taken.id, SnapshotStatus.DELETING)
    await volume.client.report_snapshot(taken.id, "error_deleting")
    assert (await told())[0] == "error_deleting"
    await volume.client.report_snapshot(str(uuid.uuid4()), "error")


async def test_a_read_only_volume_is_known_as_such(volume: Clients) -> None:
    id_ = await volume.cloud.make()
    await volume.cloud.volumes.set_readonly(ADMIN, id_, readonly=True)
    assert (await volume.client.volume(None, id_)).read_only
    made = await volume.client.create_attachment(id_, SERVER, ())
    assert made.mode == "ro"


