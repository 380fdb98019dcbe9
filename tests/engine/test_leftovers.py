"""What deleted servers and failed migrations have left on hosts is found and dealt with, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from small_cloud import FLAVOR, OPTIONS, SmallCloud, in_cloud
from structlog.testing import capture_logs

from kilonova.config import load
from kilonova.db import migration_records
from kilonova.domain.errors import InvalidInput, KilonovaError
from kilonova.domain.migration import Migration, MigrationStatus, MigrationType
from kilonova.domain.states import PowerState, VmState
from kilonova.hypervisor.fake import FakeGuest

POLL = 300.0
ROUND = POLL + 60.0


def options(action: str, **more: Any) -> Any:
    return msgspec.structs.replace(
        OPTIONS, running_deleted_instance_action=action, running_deleted_instance_poll_interval=POLL, **more
    )


def come_back(cloud: SmallCloud, uuid: str, host: str = "host0", **fields: Any) -> None:
    """A guest is there that was removed, or never was."""
    fields = {"disks": True, "defined": True, "power_state": PowerState.RUNNING, **fields}
    cloud.hypervisors[host].keep(FakeGuest(uuid=uuid, **fields))


async def deleted(cloud: SmallCloud, **fields: Any) -> str:
    uuid = await cloud.build(**fields)
    await cloud.delete(uuid)
    await cloud.rest()
    return uuid


# --- guests ------------------------------------------------------------------------------------------


@pytest.mark.spec("PER-82", "PER-86", "PER-87", "PER-88")
@pytest.mark.parametrize(("action", "left", "warned"), [
    ("noop", PowerState.RUNNING, False), ("log", PowerState.RUNNING, True), ("shutdown", PowerState.SHUTDOWN, True),
    ("reap", None, True),
])
def test_guests_of_deleted_servers(action: str, left: PowerState | None, warned: bool) -> None:
    @in_cloud(options=options(action))
    async def story(cloud: SmallCloud) -> None:
        uuid, alive = await deleted(cloud), await cloud.build()
        come_back(cloud, uuid, name="instance-1")
        with capture_logs() as logs:
            await asyncio.sleep(ROUND)
            await cloud.rest()
        assert cloud.power(uuid) is left
        assert cloud.power(alive) is PowerState.RUNNING
        told = {(line["log_level"], line["instance"], line["name"]) for line in logs
                if line["event"] == "guest of a deleted server"}
        assert told == ({("warning", uuid, "instance-1")} if warned else set())
        if action == "reap":
            cloud.nothing_left(uuid)
        assert cloud.server(uuid).vm_state is VmState.DELETED

    story()


@pytest.mark.spec("PER-88")
@in_cloud(options=options("reap"))
async def test_reaping_releases_ports_and_keeps_what_the_user_brought(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    (port,) = cloud.ports(uuid)
    record, known = cloud.server(uuid), cloud.net.ports[port]
    await cloud.delete(uuid)
    await cloud.rest()
    users = msgspec.structs.replace(known, id=str(uuid4()), device_id=uuid)
    cloud.net.ports |= {port: known, users.id: users}
    cloud.net.order.append(users.id)
    mine = msgspec.structs.replace(record.network_info[0], id=users.id, preserve_on_delete=True)
    await cloud.change(uuid, network_info=(*record.network_info, mine))
    come_back(cloud, uuid)
    await asyncio.sleep(ROUND)
    await cloud.rest()
    assert cloud.power(uuid) is None
    assert port not in cloud.net.ports
    assert cloud.net.ports[users.id].device_id == ""


@pytest.mark.spec("PER-85")
@in_cloud(options=options("reap", running_deleted_instance_timeout=3000.0, reclaim_instance_interval=100_000.0))
async def test_only_guests_of_servers_that_were_deleted_long_ago(cloud: SmallCloud) -> None:
    softly, uuid = await deleted(cloud), await cloud.build()
    await cloud.change(uuid, vm_state=VmState.DELETED, deleted_at=cloud.now)
    for one in (softly, uuid):
        come_back(cloud, one)
    await asyncio.sleep(2000.0)
    assert cloud.power(softly) is cloud.power(uuid) is PowerState.RUNNING
    await asyncio.sleep(1000.0 + ROUND)
    assert (cloud.power(softly), cloud.power(uuid)) == (PowerState.RUNNING, None)


@pytest.mark.spec("PER-94")
@in_cloud(options=options("reap"))
async def test_a_guest_that_this_cell_does_not_know_is_told_and_left_alone(cloud: SmallCloud) -> None:
    stranger = str(uuid4())
    come_back(cloud, stranger)
    with capture_logs() as logs:
        await asyncio.sleep(ROUND)
    assert cloud.power(stranger) is PowerState.RUNNING
    (line, *_) = [line for line in logs if line["event"] == "guest belongs to no server of this cell"]
    assert (line["log_level"], line["instance"]) == ("warning", stranger)


@pytest.mark.spec("PER-92")
@in_cloud(options=options("reap"))
async def test_a_guest_that_goes_meanwhile_is_reaped_all_the_same(cloud: SmallCloud) -> None:
    uuid = await deleted(cloud)
    come_back(cloud, uuid)
    cloud.at["reap-deleted/remove guest/do/before"] = lambda _: cloud.hypervisors["host0"].guests.clear()
    await asyncio.sleep(ROUND)
    await cloud.rest()
    assert cloud.operation(uuid, "reap-deleted").failure is None
    assert cloud.hypervisors["host0"].guests == {}


@pytest.mark.spec("PER-84", "PER-87", "PER-88", "PER-03")
@pytest.mark.parametrize(("action", "call"), [("shutdown", "power_off"), ("reap", "destroy")])
def test_a_failure_keeps_the_next_from_nothing_and_is_tried_again(action: str, call: str) -> None:
    @in_cloud(hosts=2, options=options(action))
    async def story(cloud: SmallCloud) -> None:
        one, two = sorted([await deleted(cloud), await deleted(cloud)])
        come_back(cloud, one)
        come_back(cloud, two)
        cloud.fail("guests", KilonovaError("not ready"), host="host1")
        cloud.fail(call, KilonovaError("no"), host="host0")
        await asyncio.sleep(ROUND)
        await cloud.rest()
        ended = [cloud.power(uuid) in (None, PowerState.SHUTDOWN) for uuid in (one, two)]
        assert sorted(ended) == [False, True]
        await asyncio.sleep(POLL)
        await cloud.rest()
        assert {cloud.power(uuid) for uuid in (one, two)} <= {None, PowerState.SHUTDOWN}

    story()


@pytest.mark.spec("PER-02")
@in_cloud(options=options("reap"))
async def test_a_conductor_that_starts_looks_at_once(cloud: SmallCloud) -> None:
    uuid = await deleted(cloud)
    come_back(cloud, uuid)
    await cloud.restart("conductor0")
    await cloud.until(lambda: cloud.power(uuid) is None, within=30.0)


@pytest.mark.spec("PER-89")
def test_an_unknown_action_stops_the_service_before_it_starts() -> None:
    with pytest.raises(InvalidInput, match="running_deleted_instance_action"):
        load(None, {"KILONOVA__OPERATIONS__RUNNING_DELETED_INSTANCE_ACTION": "burn"})


# --- files -------------------------------------------------------------------------------------------


@pytest.mark.spec("PER-95")
@in_cloud(options=msgspec.structs.replace(OPTIONS, reclaim_instance_interval=100_000.0))
async def test_files_of_deleted_servers_are_removed_and_no_others(cloud: SmallCloud) -> None:
    softly, alive = await deleted(cloud), await cloud.build()
    uuid, stranger, running = await cloud.build(), str(uuid4()), await cloud.build()
    for one in (uuid, running):
        await cloud.change(one, vm_state=VmState.DELETED, deleted_at=cloud.now)
    for one in (uuid, stranger):
        come_back(cloud, one, defined=False, power_state=PowerState.NOSTATE)
    await asyncio.sleep(3 * OPTIONS.instance_delete_interval)
    await cloud.rest()
    assert set(cloud.hypervisors["host0"].guests) == {softly, alive, stranger, running}


@pytest.mark.spec("PER-96", "PER-97", "PER-98", "PER-99")
@in_cloud(options=msgspec.structs.replace(OPTIONS, maximum_instance_delete_attempts=2))
async def test_files_that_cannot_be_removed_are_tried_so_often_and_then_told(cloud: SmallCloud) -> None:
    stuck, other = sorted([await deleted(cloud), await deleted(cloud)])
    come_back(cloud, stuck, defined=False, power_state=PowerState.NOSTATE)
    cloud.always_fail("delete_disks", KilonovaError("read-only"))
    with capture_logs() as logs:
        await asyncio.sleep(6 * OPTIONS.instance_delete_interval)
    assert len(cloud.operations(stuck, "remove-leftover")) == 2
    told = [line for line in logs if line["event"] == "leftover of a deleted server stays"]
    assert {(line["log_level"], line["instance"], line["attempts"]) for line in told} == {("error", stuck, 2)}
    cloud.heal()
    come_back(cloud, other, defined=False, power_state=PowerState.NOSTATE)
    await asyncio.sleep(2 * OPTIONS.instance_delete_interval)
    assert set(cloud.hypervisors["host0"].guests) == {stuck}


# --- migrations --------------------------------------------------------------------------------------


async def failed_migration(cloud: SmallCloud, uuid: str, **fields: Any) -> str:
    migration = Migration(
        uuid=str(uuid4()), instance_uuid=uuid, migration_type=MigrationType.RESIZE, status=MigrationStatus.ERROR,
        old_flavor=FLAVOR, new_flavor=FLAVOR, old_vm_state=VmState.ACTIVE, created_at=cloud.now, **fields,
    )
    await cloud.databases.cell.write(lambda conn: migration_records.insert(conn, migration))
    return migration.uuid


def status(cloud: SmallCloud, migration: str) -> MigrationStatus:
    found = cloud.cell(lambda conn: migration_records.find(conn, migration))
    assert found is not None
    return MigrationStatus(found.status)


@pytest.mark.spec("PER-101", "PER-102", "PER-103", "PER-105", "PER-106", "PER-109")
@in_cloud(hosts=2)
async def test_what_failed_migrations_of_deleted_servers_left_is_removed(cloud: SmallCloud) -> None:
    uuid, alive, erased = await cloud.build(), await cloud.build(), str(uuid4())
    here = cloud.server(uuid).host
    other = "host1" if here == "host0" else "host0"
    await cloud.delete(uuid)
    await cloud.rest()
    await cloud.change(uuid, host=here)
    first = await failed_migration(cloud, uuid, source_compute=other, dest_compute=here)
    second = await failed_migration(cloud, uuid, source_compute=here, dest_compute=other)
    there = await failed_migration(cloud, alive, source_compute="host0", dest_compute="host1")
    lost = await failed_migration(cloud, erased, source_compute="host0", dest_compute="host1")
    for one, host in ((uuid, other), (erased, "host0"), (erased, "host1")):
        come_back(cloud, one, host, power_state=PowerState.SHUTDOWN)
    await asyncio.sleep(OPTIONS.instance_delete_interval + 60.0)
    await cloud.rest()
    guests = {one for hypervisor in cloud.hypervisors.values() for one in hypervisor.guests}
    assert guests == {alive}
    assert [status(cloud, one) for one in (first, second, there, lost)] == [
        MigrationStatus.FAILED, MigrationStatus.ERROR, MigrationStatus.ERROR, MigrationStatus.FAILED,
    ]
    await asyncio.sleep(OPTIONS.instance_delete_interval)
    assert status(cloud, second) is MigrationStatus.FAILED
    assert status(cloud, there) is MigrationStatus.ERROR


@pytest.mark.spec("PER-102")
@in_cloud()
async def test_the_last_host_of_a_server_is_left_to_the_removal_of_files(cloud: SmallCloud) -> None:
    uuid = await deleted(cloud)
    await cloud.change(uuid, host="host0")
    migration = await failed_migration(cloud, uuid, source_compute="host0", dest_compute="host0")
    await asyncio.sleep(2 * OPTIONS.instance_delete_interval)
    assert cloud.operations(uuid, "clean-migration") == []
    assert status(cloud, migration) is MigrationStatus.ERROR


@pytest.mark.spec("PER-107", "PER-108")
@in_cloud(hosts=2, options=msgspec.structs.replace(OPTIONS, maximum_instance_delete_attempts=2))
async def test_a_migration_whose_files_stay_is_not_failed_and_holds_up_no_other(cloud: SmallCloud) -> None:
    stuck, other = str(uuid4()), str(uuid4())
    kept = await failed_migration(cloud, stuck, source_compute="host0", dest_compute="host0")
    cloud.always_fail("delete_disks", KilonovaError("read-only"), host="host0")
    clean = await failed_migration(cloud, other, source_compute="host1", dest_compute="host1")
    come_back(cloud, stuck)
    await asyncio.sleep(6 * OPTIONS.instance_delete_interval)
    assert (status(cloud, kept), status(cloud, clean)) == (MigrationStatus.ERROR, MigrationStatus.FAILED)
    assert len(cloud.operations(stuck, "clean-migration")) == 2
