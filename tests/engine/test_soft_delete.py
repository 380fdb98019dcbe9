"""Soft delete, restore, and deleting for good what nobody restored."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from small_cloud import CONTEXT, OPTIONS, SmallCloud, in_cloud

from kilonova.db import instances
from kilonova.domain.errors import InstanceInvalidState, InstanceLocked, InstanceNeverLaunched, KilonovaError
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.operations.delete import DELETE, DeleteServer
from kilonova.operations.restore import RESTORE, RestoreServer
from kilonova.operations.soft_delete import SOFT_DELETE

KEPT = 600.0
KEEPING = msgspec.structs.replace(OPTIONS, reclaim_instance_interval=KEPT)
REFUSES = KilonovaError("the hypervisor refuses")

V, T = VmState, TaskState


async def deleted(cloud: SmallCloud, uuid: str) -> None:
    """Delete it as a user does, and wait for the end of that."""
    await cloud.delete(uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is V.SOFT_DELETED


async def restore(cloud: SmallCloud, uuid: str) -> None:
    await cloud.act(uuid, RESTORE, RestoreServer())
    await cloud.rest()


@pytest.mark.spec("DEL-67", "DEL-68", "DEL-71", "DEL-72", "DEL-57")
@in_cloud(options=KEEPING)
async def test_a_delete_switches_the_guest_off_and_keeps_everything(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    ports, claims = cloud.ports(uuid), cloud.claims(uuid)
    await deleted(cloud, uuid)
    server = cloud.server(uuid)
    assert (server.task_state, server.power_state, server.deleted_at) == (None, PowerState.SHUTDOWN, None)
    assert server.soft_deletion is not None
    assert server.soft_deletion.vm_state is V.ACTIVE
    assert cloud.now - 60.0 < server.soft_deletion.at < cloud.now
    assert cloud.power(uuid) is PowerState.SHUTDOWN
    assert (cloud.ports(uuid), cloud.claims(uuid)) == (ports, claims) != ([], [])
    assert cloud.power_offs == [(20.0, 5.0)]  # a clean shutdown
    assert [(a.action, a.message or "") for a in await cloud.actions(uuid)][-1] == ("delete", "")
    saved = [(i.vm_state, i.soft_deletion is not None) for i in cloud.history if i.uuid == uuid]
    assert (V.SOFT_DELETED, False) not in saved


@pytest.mark.spec("DEL-67")
@in_cloud()
async def test_without_the_option_a_delete_is_for_good(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.delete(uuid)
    await cloud.rest()
    cloud.gone(uuid)


@pytest.mark.spec("DEL-66", "DEL-62")
@pytest.mark.parametrize("moment", ["in progress", "done"])
def test_a_forced_delete_supersedes_a_soft_one(moment: str) -> None:
    @in_cloud(options=KEEPING)
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.hypervisors["host0"].faults.disobedient = {uuid}
        await cloud.delete(uuid)
        if moment == "done":
            await cloud.rest()
        else:
            await cloud.until(lambda: cloud.power_offs)
            assert cloud.server(uuid).task_state is T.SOFT_DELETING
        await cloud.compute.delete(CONTEXT, await cloud.located(uuid), force=True)
        await cloud.rest()
        cloud.gone(uuid)

    story()


@in_cloud(options=KEEPING)
async def test_a_server_that_never_ran_is_deleted_for_good(cloud: SmallCloud) -> None:
    cloud.fail("create_disks", KilonovaError("no"))
    uuid = await cloud.ask(cloud.new())
    await cloud.rest()
    await cloud.delete(uuid)
    await cloud.rest()
    cloud.gone(uuid)


@pytest.mark.spec("DEL-62")
@in_cloud(options=KEEPING)
async def test_a_soft_delete_takes_no_server_that_is_going_or_never_ran(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    now = cloud.now
    request = SOFT_DELETE.request(grace=0.0, interval=0.0)
    await cloud.unwatched(lambda conn: instances.update(conn, uuid, now=now, task_state=T.DELETING))
    with pytest.raises(InstanceInvalidState):
        await cloud.act(uuid, SOFT_DELETE, request)
    await cloud.unwatched(lambda conn: instances.update(conn, uuid, now=now, task_state=None, launched_at=None))
    with pytest.raises(InstanceNeverLaunched):
        await cloud.act(uuid, SOFT_DELETE, request)


@pytest.mark.spec("DEL-62", "DEL-82")
@in_cloud(options=KEEPING)
async def test_a_second_soft_delete_prolongs_nothing(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    await deleted(cloud, uuid)
    first = cloud.server(uuid).soft_deletion
    await asyncio.sleep(100.0)
    await deleted(cloud, uuid)
    assert cloud.server(uuid).soft_deletion == first
    assert first is not None
    assert first.vm_state is V.STOPPED


@pytest.mark.spec("DEL-69")
@in_cloud(options=KEEPING)
async def test_a_soft_delete_that_fails_changes_no_state(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.always_fail("power_off", REFUSES)
    await cloud.delete(uuid)
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.soft_deletion) == (V.ACTIVE, None, None)
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "refuses" in fault.message
    assert cloud.power(uuid) is PowerState.RUNNING


@pytest.mark.spec("DEL-70")
@in_cloud(options=KEEPING)
async def test_a_soft_delete_has_the_server_to_itself(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.disobedient = {uuid}
    await cloud.delete(uuid)
    await cloud.task(uuid, T.SOFT_DELETING)
    with pytest.raises(InstanceInvalidState):
        await cloud.stop(uuid)
    with pytest.raises(InstanceInvalidState):
        await cloud.act(uuid, RESTORE, RestoreServer())


@pytest.mark.spec("DEL-73", "INI-100", "DEL-37")
@pytest.mark.parametrize("who", ["conductor0", "host0"])
@pytest.mark.parametrize("boundary", ["power off/do/before", "power off/do/effect", "power off/do/answered"])
def test_a_soft_delete_that_is_cut_off_is_done(boundary: str, who: str) -> None:
    @in_cloud(options=KEEPING)
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()

        def kill(_process: str) -> None:
            cloud.crash(who)
            cloud.loop.call_later(3.0, lambda: cloud.wire.spawn(cloud.boot(who)))

        cloud.at[boundary] = kill
        await cloud.delete(uuid)
        await cloud.until(lambda: not cloud.at)
        await cloud.rest(debts=True)
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state) == (V.SOFT_DELETED, None)
        assert cloud.power(uuid) is PowerState.SHUTDOWN is server.power_state

    story()


@pytest.mark.spec("DEL-74")
@in_cloud(options=KEEPING)
async def test_what_was_switched_off_is_recorded_even_if_the_server_was_taken_away(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.disobedient = {uuid}
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.power_offs)
    now = cloud.now
    await cloud.unwatched(lambda conn: instances.update(conn, uuid, now=now, task_state=T.MIGRATING))
    await cloud.rest()
    assert cloud.operation(uuid, "soft-delete").state is OperationState.CANCELLED
    server = cloud.server(uuid)
    assert (server.task_state, server.power_state) == (T.MIGRATING, PowerState.SHUTDOWN)


@pytest.mark.spec("DEL-57")
@in_cloud(options=KEEPING)
async def test_a_host_that_is_away_switches_the_guest_off_when_it_is_back(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.crash("host0")
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).vm_state is V.SOFT_DELETED)
    assert cloud.power(uuid) is PowerState.RUNNING
    await cloud.boot("host0")
    await cloud.rest(debts=True)
    assert cloud.power(uuid) is PowerState.SHUTDOWN is cloud.server(uuid).power_state
    assert cloud.server(uuid).vm_state is V.SOFT_DELETED


@pytest.mark.spec("DEL-57", "DEL-80")
@in_cloud(options=KEEPING)
async def test_a_restore_comes_after_what_is_owed(cloud: SmallCloud) -> None:
    """The guest is not switched off after it was restored."""
    uuid = await cloud.build()
    cloud.crash("host0")
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).vm_state is V.SOFT_DELETED)
    await cloud.act(uuid, RESTORE, RestoreServer())
    await cloud.boot("host0")
    await cloud.rest(debts=True, within=400.0)
    server = cloud.server(uuid)
    if server.vm_state is V.SOFT_DELETED:  # the host came back too late for the restore
        await restore(cloud, uuid)
    assert cloud.server(uuid).vm_state is V.ACTIVE
    assert cloud.power(uuid) is PowerState.RUNNING is cloud.server(uuid).power_state


# --- restore --------------------------------------------------------------------------------------------


@pytest.mark.spec("DEL-77", "DEL-78", "API-136")
@in_cloud(options=KEEPING)
async def test_a_restored_server_runs_again(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await deleted(cloud, uuid)
    await restore(cloud, uuid)
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.power_state) == (V.ACTIVE, None, PowerState.RUNNING)
    assert server.soft_deletion is None
    assert cloud.power(uuid) is PowerState.RUNNING
    assert (V.SOFT_DELETED.value, T.RESTORING.value) in cloud.states(uuid)
    assert (await cloud.actions(uuid))[-1].action == "restore"


@pytest.mark.spec("DEL-82")
@in_cloud(options=KEEPING)
async def test_what_was_stopped_is_stopped_again(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    await deleted(cloud, uuid)
    before = len(cloud.calls("power_on"))
    await restore(cloud, uuid)
    assert cloud.server(uuid).vm_state is V.STOPPED
    assert cloud.power(uuid) is PowerState.SHUTDOWN
    assert len(cloud.calls("power_on")) == before
    await cloud.start(uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is V.ACTIVE


@pytest.mark.spec("DEL-79")
@in_cloud(options=KEEPING)
async def test_a_restore_that_fails_can_be_asked_again(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await deleted(cloud, uuid)
    cloud.always_fail("power_on", REFUSES)
    await restore(cloud, uuid)
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state) == (V.SOFT_DELETED, None)
    assert server.soft_deletion is not None
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "refuses" in fault.message
    cloud.hypervisors["host0"].faults.fail.clear()
    await restore(cloud, uuid)
    assert cloud.server(uuid).vm_state is V.ACTIVE


@pytest.mark.spec("DEL-80", "API-136", "API-064")
@in_cloud(options=KEEPING)
async def test_only_what_is_softly_deleted_can_be_restored(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    with pytest.raises(InstanceInvalidState, match=r"Cannot 'restore' instance .* while it is in vm_state active"):
        await cloud.act(uuid, RESTORE, RestoreServer())
    await deleted(cloud, uuid)
    now, member = cloud.now, msgspec.structs.replace(CONTEXT, is_admin=False)
    await cloud.unwatched(lambda conn: instances.update(conn, uuid, now=now, locked_by="owner"))
    with pytest.raises(InstanceNeverLaunched, match="invalid state for 'restore'"):
        await cloud.compute.ask(member, await cloud.located(uuid), RESTORE, RestoreServer())
    with pytest.raises(InstanceLocked):
        await cloud.compute.delete(member, await cloud.located(uuid))


# --- deleting for good ----------------------------------------------------------------------------------


@pytest.mark.spec("DEL-75", "PER-74", "DEL-45")
@in_cloud(options=KEEPING)
async def test_what_nobody_restored_is_deleted_for_good(cloud: SmallCloud) -> None:
    uuid, other = await cloud.build(), await cloud.build()
    await deleted(cloud, uuid)
    await asyncio.sleep(KEPT - 300.0)
    await deleted(cloud, other)
    assert cloud.server(uuid).deleted_at is None
    await asyncio.sleep(400.0)
    await cloud.rest()
    cloud.gone(uuid)
    assert cloud.server(other).vm_state is V.SOFT_DELETED
    last = (await cloud.actions(uuid))[-1]
    assert (last.action, last.user_id) == ("delete", None)  # nobody asked


@pytest.mark.spec("DEL-71", "PER-79")
@in_cloud(options=KEEPING)
async def test_a_server_without_the_time_of_its_delete_is_kept(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    now = cloud.now
    await cloud.unwatched(lambda conn: instances.update(conn, uuid, now=now, vm_state=V.SOFT_DELETED))
    await asyncio.sleep(2 * KEPT)
    assert cloud.server(uuid).vm_state is V.SOFT_DELETED


@pytest.mark.spec("DEL-75", "PER-73")
@in_cloud()
async def test_without_the_option_nothing_is_reclaimed(cloud: SmallCloud) -> None:
    """The option was taken away after the delete."""
    uuid = await cloud.build()
    await cloud.act(uuid, SOFT_DELETE, SOFT_DELETE.request(grace=5.0, interval=1.0))
    await cloud.rest()
    await asyncio.sleep(2 * KEPT)
    assert cloud.server(uuid).vm_state is V.SOFT_DELETED


@pytest.mark.spec("DEL-76", "DEL-45", "PER-75", "PER-05")
@in_cloud(options=KEEPING)
async def test_a_reclaim_that_fails_is_tried_again(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await deleted(cloud, uuid)
    cloud.always_fail("destroy", REFUSES)
    await asyncio.sleep(KEPT + 200.0)
    await cloud.rest(within=400.0)
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state) == (V.SOFT_DELETED, None)
    assert cloud.fault(uuid) is not None
    cloud.hypervisors["host0"].faults.fail.clear()
    await asyncio.sleep(200.0)
    await cloud.rest()
    cloud.gone(uuid)


@pytest.mark.spec("DEL-80", "DEL-81", "PER-78")
@in_cloud(options=KEEPING)
async def test_a_reclaim_takes_nothing_that_is_being_restored(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await deleted(cloud, uuid)
    cloud.hypervisors["host0"].faults.latency = 30.0
    await cloud.act(uuid, RESTORE, RestoreServer())
    await cloud.task(uuid, T.RESTORING)
    with pytest.raises(KilonovaError):
        await cloud.act(uuid, DELETE, DeleteServer(reclaim=True))
    cloud.hypervisors["host0"].faults.latency = 0.0
    await cloud.rest()
    assert cloud.server(uuid).vm_state is V.ACTIVE
    with pytest.raises(KilonovaError):
        await cloud.act(uuid, DELETE, DeleteServer(reclaim=True))
    assert cloud.server(uuid).task_state is None


@pytest.mark.spec("DEL-81", "DEL-37")
@pytest.mark.parametrize("who", ["conductor0", "host0"])
def test_a_restore_that_is_cut_off_is_done(who: str) -> None:
    @in_cloud(options=KEEPING)
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        await deleted(cloud, uuid)

        def kill(_process: str) -> None:
            cloud.crash(who)
            cloud.loop.call_later(3.0, lambda: cloud.wire.spawn(cloud.boot(who)))

        cloud.at["power on/do/effect"] = kill
        await restore(cloud, uuid)
        assert not cloud.at
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state, server.power_state) == (V.ACTIVE, None, PowerState.RUNNING)

    story()


@pytest.mark.spec("PER-81")
@pytest.mark.parametrize("who", ["conductor0", "host0"])
def test_a_reclaim_that_is_cut_off_is_done(who: str) -> None:
    @in_cloud(options=KEEPING)
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        await deleted(cloud, uuid)

        def kill(_process: str) -> None:
            cloud.crash(who)
            cloud.loop.call_later(3.0, lambda: cloud.wire.spawn(cloud.boot(who)))

        cloud.at["remove guest/do/effect"] = kill
        await asyncio.sleep(KEPT + 200.0)
        await cloud.rest()
        assert not cloud.at
        cloud.gone(uuid)

    story()
