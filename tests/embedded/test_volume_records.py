"""The records of the volume service: who gets a volume, what its status tells, what a project may have."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from kilonova.db.database import Database
from kilonova.db.upgrade import ensure
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Conflict, InvalidInput, NotFound, VolumeNotFound, VolumeSnapshotNotFound
from kilonova.embedded.volume import (
    attachments,
    backups,
    messages,
    quotas,
    service_records,
    snapshots,
    transfers,
    volume_types,
    volumes,
)
from kilonova.embedded.volume.errors import (
    AttachmentNotFound,
    BackupNotFound,
    InvalidBackup,
    InvalidSnapshot,
    InvalidVolume,
    TransferNotFound,
    VolumeOverQuota,
    VolumeTypeNotFound,
)
from kilonova.embedded.volume.records import Backup, Encryption, Snapshot, Volume, VolumeType
from kilonova.embedded.volume.schema import VOLUME
from kilonova.embedded.volume.states import AttachStatus, BackupStatus, SnapshotStatus, VolumeStatus

S, A = VolumeStatus, AttachStatus
ALICE = RequestContext(request_id="req-a", user_id="alice", project_id="a" * 32, roles=("member",))
BOB = RequestContext(request_id="req-b", user_id="bob", project_id="b" * 32, roles=("member",))
ADMIN = RequestContext(request_id="req-c", user_id="root", project_id="c" * 32, roles=("admin",), is_admin=True)
NOW = 1_800_000_000.0


def new_id() -> str:
    return str(uuid.uuid4())


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'volumes.sqlite'}"
    else:
        url = request.getfixturevalue("postgres_url")
    opened = Database.open(url)
    await ensure(opened, VOLUME)
    await opened.write(lambda conn: volume_types.make_default(conn, NOW))
    yield opened
    await opened.close()


def make(conn: sa.Connection, status: VolumeStatus = S.AVAILABLE, **more: Any) -> str:
    id_ = new_id()
    volumes.insert(conn, Volume(**{
        "id": id_, "project_id": ALICE.project_id, "user_id": "alice", "size": 1, "status": status, "name_id": id_,
        "availability_zone": "nova", "created_at": NOW,
    } | more))
    return id_


def snap(conn: sa.Connection, volume_id: str, **more: Any) -> str:
    id_ = new_id()
    snapshots.insert(conn, Snapshot(**{
        "id": id_, "volume_id": volume_id, "project_id": ALICE.project_id, "user_id": "alice", "size": 1,
        "status": SnapshotStatus.AVAILABLE, "created_at": NOW,
    } | more))
    return id_


def status(conn: sa.Connection, volume_id: str) -> VolumeStatus:
    return volumes.get(conn, volume_id).status


@pytest.mark.spec("EMV-13")
@pytest.mark.parametrize("before", list(VolumeStatus))
async def test_a_volume_that_is_free_can_be_reserved(database: Database, before: VolumeStatus) -> None:
    def unit(conn: sa.Connection) -> None:
        id_ = make(conn, before)
        if before not in (S.AVAILABLE, S.DOWNLOADING):
            with pytest.raises(InvalidVolume):
                attachments.reserve(conn, ALICE, id_, new_id(), NOW)
            assert status(conn, id_) is before
            assert attachments.of_volume(conn, id_) == []
            return
        made = attachments.reserve(conn, ALICE, id_, new_id(), NOW)
        assert (made.status, status(conn, id_)) == (A.RESERVED, S.RESERVED)

    await database.write(unit)


@pytest.mark.spec("EMV-01", "EMV-13")
async def test_a_volume_of_several_servers_shows_the_strongest_of_its_attachments(database: Database) -> None:
    def unit(conn: sa.Connection) -> None:
        id_ = make(conn, multiattach=True)
        first, second, third = (attachments.reserve(conn, ALICE, id_, new_id(), NOW) for _ in range(3))
        assert status(conn, id_) is S.RESERVED
        attachments.connect(conn, first, {"host": "h1"}, NOW)
        assert status(conn, id_) is S.ATTACHING
        attachments.complete(conn, first.id, NOW)
        assert (status(conn, id_), volumes.get(conn, id_).attach_status) == (S.IN_USE, A.ATTACHED)
        attachments.connect(conn, second, {"host": "h2"}, NOW)
        assert status(conn, id_) is S.IN_USE
        assert [one.id for one in attachments.delete(conn, first, NOW)] == sorted([second.id, third.id])
        assert status(conn, id_) is S.ATTACHING
        attachments.disconnect(conn, second, NOW)
        assert status(conn, id_) is S.RESERVED
        attachments.delete(conn, second, NOW)
        attachments.delete(conn, third, NOW)
        assert (status(conn, id_), volumes.get(conn, id_).attach_status) == (S.AVAILABLE, A.DETACHED)

    await database.write(unit)


@pytest.mark.spec("EMV-14")
async def test_a_server_gets_a_second_attachment_of_its_own_volume(database: Database) -> None:
    def unit(conn: sa.Connection) -> None:
        server = new_id()
        for moment in (S.IN_USE, S.DETACHING, S.RESERVED, S.ATTACHING):
            id_ = make(conn)
            first = attachments.reserve(conn, ALICE, id_, server, NOW)
            attachments.complete(conn, first.id, NOW)
            volumes.change(conn, id_, NOW, status=moment)
            second = attachments.reserve(conn, ALICE, id_, server, NOW)
            assert (second.status, status(conn, id_)) == (A.RESERVED, moment)
            with pytest.raises(InvalidVolume):
                attachments.reserve(conn, ALICE, id_, new_id(), NOW)

    await database.write(unit)


@pytest.mark.spec("EMV-15")
async def test_of_two_servers_that_want_a_volume_one_gets_it(database: Database) -> None:
    id_ = await database.write(make)
    asked = [
        database.write(lambda conn: attachments.reserve(conn, ALICE, id_, new_id(), NOW).instance_id)
        for _ in range(6)
    ]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    won = [one for one in answers if isinstance(one, str)]
    assert len(won) == 1
    assert all(isinstance(one, InvalidVolume) and one.status == 400 for one in answers if not isinstance(one, str))
    left = await database.read(lambda conn: attachments.of_volume(conn, id_))
    assert [one.instance_id for one in left] == won


@pytest.mark.spec("EMV-16", "EMV-17")
async def test_an_attachment_tells_how_far_it_is(database: Database) -> None:
    def unit(conn: sa.Connection) -> None:
        made = attachments.reserve(conn, ALICE, make(conn), new_id(), NOW)
        attachments.connect(conn, made, {"host": "h1", "mountpoint": "/dev/vdb"}, NOW)
        attachments.connected(conn, made.id, {"driver_volume_type": "nbd"}, NOW)
        connected = attachments.get(conn, made.id)
        assert (connected.status, connected.mountpoint) == (A.ATTACHING, "/dev/vdb")
        assert connected.connection == {"driver_volume_type": "nbd"}
        assert [one.id for one in attachments.with_connectors(conn)] == [made.id]
        done = attachments.complete(conn, made.id, NOW + 5)
        assert (done.status, done.attached_at) == (A.ATTACHED, NOW + 5)
        assert attachments.complete(conn, made.id, NOW + 9) == done
        attachments.connect(conn, done, {"host": "h2"}, NOW + 10)
        assert attachments.get(conn, made.id).status is A.ATTACHED
        offloaded = attachments.reserve(conn, ALICE, make(conn), new_id(), NOW)
        assert attachments.complete(conn, offloaded.id, NOW).status is A.ATTACHED

    await database.write(unit)


@pytest.mark.spec("EMV-25")
async def test_a_read_only_volume_is_attached_read_only(database: Database) -> None:
    def unit(conn: sa.Connection) -> None:
        id_ = make(conn, readonly=True)
        with pytest.raises(InvalidVolume):
            attachments.reserve(conn, ALICE, id_, new_id(), NOW, mode="rw")
        with pytest.raises(InvalidInput):
            attachments.reserve(conn, ALICE, id_, new_id(), NOW, mode="wo")
        assert attachments.reserve(conn, ALICE, id_, new_id(), NOW).mode == "ro"
        assert attachments.reserve(conn, ALICE, make(conn), new_id(), NOW, mode="ro").mode == "ro"
        assert attachments.reserve(conn, ALICE, make(conn), new_id(), NOW).mode == "rw"

    await database.write(unit)


@pytest.mark.spec("EMV-06")
async def test_what_is_not_there_or_not_ones_own_is_not_found(database: Database) -> None:
    def unit(conn: sa.Connection) -> None:
        id_ = make(conn)
        held = attachments.reserve(conn, ALICE, id_, new_id(), NOW)
        snapshot = snap(conn, id_)
        for asked in (new_id(), "x", "\0"):
            for error, ask in (
                (VolumeNotFound, volumes.visible), (AttachmentNotFound, attachments.visible),
                (VolumeSnapshotNotFound, snapshots.visible), (BackupNotFound, backups.visible),
                (TransferNotFound, transfers.visible), (NotFound, messages.visible),
                (VolumeTypeNotFound, volume_types.visible),
            ):
                with pytest.raises(error):
                    ask(conn, ALICE, asked)
        for error, ask, there in (
            (VolumeNotFound, volumes.visible, id_), (AttachmentNotFound, attachments.visible, held.id),
            (VolumeSnapshotNotFound, snapshots.visible, snapshot),
        ):
            with pytest.raises(error):
                ask(conn, BOB, there)
            assert ask(conn, ALICE, there) == ask(conn, ADMIN, there)

    await database.write(unit)


async def test_an_operation_takes_a_volume_only_in_its_status_and_gives_it_back(database: Database) -> None:
    def unit(conn: sa.Connection) -> None:
        id_ = make(conn)
        before = volumes.begin(conn, id_, [S.AVAILABLE], S.EXTENDING, NOW)
        assert (before.status, volumes.get(conn, id_).previous_status) == (S.AVAILABLE, S.AVAILABLE)
        with pytest.raises(InvalidVolume, match="must be available, but is extending"):
            volumes.begin(conn, id_, [S.AVAILABLE], S.UPLOADING, NOW)
        volumes.finish(conn, id_, S.UPLOADING, NOW)
        assert status(conn, id_) is S.EXTENDING
        volumes.finish(conn, id_, S.EXTENDING, NOW, size=3)
        assert (status(conn, id_), volumes.get(conn, id_).size) == (S.AVAILABLE, 3)
        made = attachments.reserve(conn, ALICE, id_, new_id(), NOW)
        attachments.complete(conn, made.id, NOW)
        volumes.begin(conn, id_, [S.IN_USE], S.EXTENDING, NOW)
        volumes.finish(conn, id_, S.EXTENDING, NOW)
        assert status(conn, id_) is S.IN_USE
        with pytest.raises(InvalidVolume):
            volumes.refuse_migrating(msgspec.structs.replace(volumes.get(conn, id_), migration_status="migrating"))
        volumes.refuse_migrating(msgspec.structs.replace(volumes.get(conn, id_), migration_status="success"))
        snapshot = snap(conn, id_)
        snapshots.begin(conn, snapshot, [SnapshotStatus.AVAILABLE], SnapshotStatus.DELETING, NOW)
        with pytest.raises(InvalidSnapshot):
            snapshots.begin(conn, snapshot, [SnapshotStatus.AVAILABLE], SnapshotStatus.DELETING, NOW)
        snapshots.delete(conn, snapshot)
        backup = Backup(id=new_id(), volume_id=id_, project_id="p", user_id="u", container="", size=1,
                        status=BackupStatus.AVAILABLE, created_at=NOW)
        backups.insert(conn, backup)
        backups.change(conn, backup.id, NOW, name="kept")
        assert backups.begin(conn, backup.id, [BackupStatus.AVAILABLE], BackupStatus.DELETING, NOW).name == "kept"
        with pytest.raises(InvalidBackup):
            backups.begin(conn, backup.id, [BackupStatus.AVAILABLE], BackupStatus.RESTORING, NOW)
        backups.delete(conn, backup.id)
        attachments.delete(conn, made, NOW)
        volumes.delete(conn, id_)
        assert volumes.find(conn, id_) is None

    await database.write(unit)


@pytest.mark.spec("EMV-10")
async def test_a_project_gets_no_more_than_its_quota(database: Database) -> None:
    def unit(conn: sa.Connection) -> None:
        project = ALICE.project_id or ""
        assert quotas.limits(conn, project) == quotas.DEFAULTS | {
            f"{resource}_{volume_types.DEFAULT}": -1 for resource in quotas.OF_TYPES
        }
        first = make(conn, size=7, type_id=volume_types.DEFAULT_ID)
        make(conn, size=5)
        target = make(conn, size=90, migration_status=f"target:{first}")
        assert volumes.get(conn, target).migration_target_of == first
        assert volumes.get(conn, first).migration_target_of is None
        snap(conn, first, size=6)
        used = quotas.usage(conn, project)
        assert {name: n for name, n in used.items() if n} == {
            "volumes": 2, "gigabytes": 18, "snapshots": 1, "volumes___DEFAULT__": 1, "gigabytes___DEFAULT__": 13,
            "snapshots___DEFAULT__": 1,
        }
        quotas.set_limits(conn, project, {"volumes": 3, "gigabytes": 20})
        quotas.check(conn, project, {"volumes": 1, "gigabytes": 2}, volume_types.DEFAULT)
        for more in ({"volumes": 2}, {"gigabytes": 3}):
            with pytest.raises(VolumeOverQuota) as refused:
                quotas.check(conn, project, more)
            assert refused.value.status == 413
        quotas.set_limits(conn, project, {"gigabytes___DEFAULT__": 13})
        quotas.check(conn, project, {"gigabytes": 1})
        with pytest.raises(VolumeOverQuota):
            quotas.check(conn, project, {"gigabytes": 1}, volume_types.DEFAULT)
        quotas.set_limits(conn, project, {"per_volume_gigabytes": 4})
        quotas.check_size(conn, project, 4)
        with pytest.raises(VolumeOverQuota):
            quotas.check_size(conn, project, 5)
        quotas.reset(conn, project)
        quotas.set_class_limits(conn, quotas.DEFAULT_CLASS, {"volumes": 1})
        assert quotas.limits(conn, project)["volumes"] == 1

    await database.write(unit)


@pytest.mark.spec("EMV-03", "EMV-09")
async def test_types_and_who_may_use_them(database: Database) -> None:
    def unit(conn: sa.Connection) -> None:
        private = VolumeType(id=new_id(), name="fast", is_public=False, extra_specs={"multiattach": "<is> True"},
                             created_at=NOW)
        volume_types.insert(conn, private)
        assert private.multiattach
        assert not volume_types.by_name(conn, volume_types.DEFAULT).multiattach
        with pytest.raises(Conflict):
            volume_types.insert(conn, msgspec.structs.replace(private, id=new_id()))
        with pytest.raises(VolumeTypeNotFound):
            volume_types.named(conn, ALICE, "fast")
        volume_types.add_project(conn, private.id, ALICE.project_id or "")
        assert volume_types.projects(conn, private.id) == [ALICE.project_id]
        assert volume_types.named(conn, ALICE, "fast") == volume_types.named(conn, ADMIN, private.id) == private
        assert volume_types.visible(conn, ALICE, private.id) == private
        with pytest.raises(VolumeTypeNotFound):
            volume_types.visible(conn, BOB, private.id)
        for again in (private.id, volume_types.DEFAULT_ID):
            with pytest.raises(Conflict):
                volume_types.add_project(conn, again, ALICE.project_id or "")
        volume_types.remove_project(conn, private.id, ALICE.project_id or "")
        with pytest.raises(NotFound):
            volume_types.remove_project(conn, private.id, ALICE.project_id or "")
        with pytest.raises(Conflict):
            volume_types.change(conn, private.id, NOW, name=volume_types.DEFAULT)
        assert volume_types.change(conn, private.id, NOW, name="faster").name == "faster"
        luks = Encryption(id=new_id(), type_id=private.id, provider="luks", cipher="aes-xts-plain64", key_size=256)
        volume_types.set_encryption(conn, luks)
        with pytest.raises(InvalidInput):
            volume_types.set_encryption(conn, msgspec.structs.replace(luks, id=new_id()))
        assert volume_types.change_encryption(conn, private.id, NOW, key_size=512).key_size == 512
        id_ = make(conn, type_id=private.id)
        for refused in (
            lambda: volume_types.drop_encryption(conn, private.id),
            lambda: volume_types.delete(conn, private.id, volume_types.DEFAULT),
            lambda: volume_types.change_encryption(conn, private.id, NOW, key_size=128),
            lambda: volume_types.delete(conn, volume_types.DEFAULT_ID, private.name),
        ):
            with pytest.raises(InvalidInput):
                refused()
        volumes.delete(conn, id_)
        volume_types.drop_encryption(conn, private.id)
        with pytest.raises(NotFound):
            volume_types.drop_encryption(conn, private.id)
        volume_types.delete(conn, private.id, volume_types.DEFAULT)
        with pytest.raises(VolumeTypeNotFound):
            volume_types.get(conn, private.id)

    await database.write(unit)


async def test_a_volume_goes_to_another_project_with_its_snapshots(database: Database) -> None:
    def unit(conn: sa.Connection) -> None:
        id_ = make(conn, type_id=volume_types.DEFAULT_ID)
        snapshot = snap(conn, id_)
        with pytest.raises(InvalidVolume):
            transfers.create(conn, ALICE, id_, None, NOW, no_snapshots=True)
        offer, key = transfers.create(conn, ALICE, id_, "gift", NOW)
        assert key not in str(offer)
        assert status(conn, id_) is S.AWAITING_TRANSFER
        assert transfers.visible(conn, ALICE, offer.id) == offer
        with pytest.raises(TransferNotFound):
            transfers.visible(conn, BOB, offer.id)
        with pytest.raises(InvalidInput):
            transfers.accept(conn, BOB, offer.id, "wrong", NOW)
        quotas.set_limits(conn, BOB.project_id or "", {"gigabytes": 1})
        with pytest.raises(VolumeOverQuota):
            transfers.accept(conn, BOB, offer.id, key, NOW)
        quotas.reset(conn, BOB.project_id or "")
        transfers.accept(conn, BOB, offer.id, key, NOW)
        assert volumes.visible(conn, BOB, id_).status is S.AVAILABLE
        assert snapshots.visible(conn, BOB, snapshot).user_id == "bob"
        offer, _ = transfers.create(conn, BOB, id_, None, NOW)
        transfers.withdraw(conn, BOB, offer.id, NOW)
        assert status(conn, id_) is S.AVAILABLE
        with pytest.raises(TransferNotFound):
            transfers.visible(conn, BOB, offer.id)
        with pytest.raises(InvalidVolume):
            transfers.create(conn, ALICE, make(conn, encryption_key_id=new_id()), None, NOW)

    await database.write(unit)


async def test_messages_are_told_and_forgotten(database: Database) -> None:
    def unit(conn: sa.Connection) -> None:
        id_, project = new_id(), ALICE.project_id or ""
        messages.tell(conn, project, "req-1", messages.VOLUME, id_, "create-failed", "It failed.", NOW)
        (told,) = messages.of_resource(conn, id_)
        assert messages.visible(conn, ALICE, told.id) == told
        with pytest.raises(NotFound):
            messages.visible(conn, BOB, told.id)
        messages.tell(conn, project, "req-2", messages.VOLUME, new_id(), "x", "y", NOW + messages.KEPT + 1)
        assert messages.of_resource(conn, id_) == []
        messages.delete(conn, told.id)

    await database.write(unit)


@pytest.mark.spec("EMV-11")
async def test_a_service_that_is_disabled_stays_so(database: Database) -> None:
    def unit(conn: sa.Connection) -> None:
        service_records.announce(conn, ["m@one", "m@two"], NOW)
        assert [(one.binary, one.host) for one in service_records.every(conn)] == [
            ("cinder-backup", "m"), ("cinder-scheduler", "m"), ("cinder-volume", "m@one"), ("cinder-volume", "m@two"),
        ]
        service_records.enable(conn, service_records.VOLUME, "m@one", NOW, enabled=False, reason="broken disk")
        service_records.announce(conn, ["m@one"], NOW + 1)
        assert service_records.disabled_hosts(conn) == {"m@one"}
        assert [(one.host, one.disabled_reason) for one in service_records.every(conn)] == [
            ("m", None), ("m", None), ("m@one", "broken disk"),
        ]
        with pytest.raises(NotFound):
            service_records.enable(conn, service_records.VOLUME, "m@two", NOW, enabled=True)

    await database.write(unit)
