"""Shelving a server, and taking it off its shelf."""

from __future__ import annotations

import pytest
import structlog
from small_cloud import CONTEXT, SmallCloud, in_cloud

from kilonova.domain.errors import Forbidden, InstanceInvalidState, KilonovaError, ServiceUnavailable
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.operations.pause import PAUSE_SERVER, PauseServer
from kilonova.operations.shelve import UNSHELVE, UnshelveServer

REFUSES = KilonovaError("the hypervisor refuses")


async def shelve(cloud: SmallCloud, uuid: str) -> None:
    await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))


async def unshelve(cloud: SmallCloud, uuid: str) -> None:
    await cloud.act(uuid, UNSHELVE, UnshelveServer())


async def on_its_shelf(cloud: SmallCloud) -> str:
    uuid = await cloud.build()
    await shelve(cloud, uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.SHELVED
    return uuid


@pytest.mark.spec("SHV-01", "SHV-04", "SHV-05", "SHV-07", "SHV-08")
@in_cloud()
async def test_a_shelved_server_is_off_and_has_an_image(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.history.clear()
    await shelve(cloud, uuid)
    await cloud.rest()
    assert cloud.states(uuid) == [
        *(("active", task) for task in (
            "shelving", "shelving_image_pending_upload", "shelving_image_uploading")),
        ("shelved", None),
    ]
    server = cloud.server(uuid)
    (image,) = cloud.images.kept()
    assert (image.name, image.status, image.owner) == ("vm-shelved", "active", "project")
    assert (server.host, server.power_state, cloud.power(uuid)) == ("host0", PowerState.SHUTDOWN, PowerState.SHUTDOWN)
    assert server.system_metadata["shelved_image_id"] == image.id
    assert server.system_metadata["shelved_host"] == "host0"
    assert server.system_metadata["shelved_at"].endswith("Z")
    assert [n for _, n in cloud.calls("power_off", "snapshot", "snapshot_data")] == [
        "power_off", "snapshot", "snapshot_data"]
    assert cloud.power_offs == [(20.0, 5.0)]
    assert cloud.claims(uuid) == ["host0"]


@pytest.mark.spec("SHV-06")
@in_cloud()
async def test_a_guest_that_is_paused_is_not_asked(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.act(uuid, PAUSE_SERVER, PauseServer())
    await cloud.rest()
    await shelve(cloud, uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.SHELVED
    assert cloud.power_offs == [(0.0, 5.0)]


@pytest.mark.spec("SHV-09", "SHV-10", "SHV-11")
@pytest.mark.parametrize("call", ["power_off", "snapshot", "snapshot_data"])
@pytest.mark.parametrize("state", [VmState.ACTIVE, VmState.STOPPED, VmState.PAUSED])
def test_a_server_that_cannot_be_shelved_is_as_before_or_stopped(call: str, state: VmState) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await (cloud.stopped() if state is VmState.STOPPED else cloud.build())
        if state is VmState.PAUSED:
            await cloud.act(uuid, PAUSE_SERVER, PauseServer())
            await cloud.rest()
        cloud.fail(call, REFUSES)
        await shelve(cloud, uuid)
        await cloud.rest()
        server = cloud.server(uuid)
        ends = state if state is not VmState.PAUSED or call == "power_off" else VmState.STOPPED
        assert (server.vm_state, server.task_state) == (ends, None)
        assert server.power_state is cloud.power(uuid)
        assert (cloud.power(uuid) is PowerState.RUNNING) == (state is VmState.ACTIVE)
        assert "shelved_at" not in server.system_metadata
        assert cloud.images.kept() == []
        fault = cloud.fault(uuid)
        assert fault is not None
        assert fault.message == REFUSES.message

    story()


@pytest.mark.spec("SHV-10")
@in_cloud()
async def test_a_guest_that_does_not_come_back_leaves_a_stopped_server(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.fail("snapshot", REFUSES)
    cloud.always_fail("power_on", REFUSES)
    await shelve(cloud, uuid)
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.power_state) == (VmState.STOPPED, None, PowerState.SHUTDOWN)
    assert cloud.images.kept() == []


@pytest.mark.spec("SHV-15", "INI-108")
@pytest.mark.parametrize("step", ["power off", "take snapshot", "upload"])
@pytest.mark.parametrize("moment", ["before", "answered"])
def test_a_shelving_that_was_cut_off_goes_on(step: str, moment: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()

        def die(_process: str) -> None:
            for name in ("host0", "conductor0"):
                cloud.crash(name)

        cloud.at[f"shelve/{step}/do/{moment}"] = die
        await shelve(cloud, uuid)
        await cloud.until(lambda: not cloud.at)
        await cloud.restart("host0", "conductor0")
        await cloud.rest()
        server, guest = cloud.server(uuid), cloud.guest(uuid)
        assert (server.vm_state, server.task_state) == (VmState.SHELVED, None)
        assert [image.status for image in cloud.images.kept()] == ["active"]
        assert guest is not None
        assert (guest.snapshots, guest.power_state) == ((), PowerState.SHUTDOWN)

    story()


@pytest.mark.spec("PWR-20", "PWR-25")
@in_cloud()
async def test_a_server_off_its_shelf_runs_and_needs_no_image(cloud: SmallCloud) -> None:
    uuid = await on_its_shelf(cloud)
    seen: list[VmState] = []
    cloud.at["unshelve/drop image/do/before"] = lambda _p: seen.append(cloud.server(uuid).vm_state)
    await unshelve(cloud, uuid)
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.power_state) == (VmState.ACTIVE, None, PowerState.RUNNING)
    assert not [key for key in server.system_metadata if key.startswith("shelved")]
    assert cloud.images.kept() == []
    assert seen == [VmState.ACTIVE]
    assert cloud.power(uuid) is PowerState.RUNNING


@pytest.mark.spec("PWR-21", "PWR-25")
@in_cloud()
async def test_an_image_that_stays_does_not_keep_a_server_on_its_shelf(cloud: SmallCloud) -> None:
    uuid = await on_its_shelf(cloud)
    cloud.images.fail["delete"] = [Forbidden("protected")]
    with structlog.testing.capture_logs() as logs:
        await unshelve(cloud, uuid)
        await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.ACTIVE
    (image,) = cloud.images.kept()
    assert [(e["image"], e["log_level"]) for e in logs if e["event"] == "image left over"] == [(image.id, "warning")]
    other = await on_its_shelf(cloud)
    cloud.images.images.popitem()
    await unshelve(cloud, other)
    await cloud.rest()
    assert (cloud.server(other).vm_state, cloud.faults(other)) == (VmState.ACTIVE, 0)


@in_cloud()
async def test_an_image_service_that_is_away_is_told_later(cloud: SmallCloud) -> None:
    uuid = await on_its_shelf(cloud)
    cloud.images.fail["delete"] = [ServiceUnavailable("away")] * 6
    await unshelve(cloud, uuid)
    await cloud.rest()
    assert (cloud.server(uuid).vm_state, cloud.server(uuid).task_state) == (VmState.ACTIVE, None)
    await cloud.rest(debts=True, within=900.0)
    assert cloud.images.kept() == []


@in_cloud()
async def test_a_server_that_does_not_start_stays_on_its_shelf(cloud: SmallCloud) -> None:
    uuid = await on_its_shelf(cloud)
    cloud.fail("power_on", REFUSES)
    await unshelve(cloud, uuid)
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, cloud.power(uuid)) == (VmState.SHELVED, None, PowerState.SHUTDOWN)
    assert len(cloud.images.kept()) == 1
    await unshelve(cloud, uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.ACTIVE


@pytest.mark.spec("SHV-14")
@in_cloud()
async def test_a_shelf_that_tells_nothing_is_left_as_well(cloud: SmallCloud) -> None:
    uuid = await on_its_shelf(cloud)
    await cloud.change(uuid, system_metadata={})
    await unshelve(cloud, uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.ACTIVE


@in_cloud()
async def test_the_image_goes_with_the_server(cloud: SmallCloud) -> None:
    uuid = await on_its_shelf(cloud)
    await cloud.delete(uuid)
    await cloud.rest()
    cloud.gone(uuid)
    assert cloud.images.kept() == []


@in_cloud()
async def test_a_delete_ends_a_shelving(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.at["shelve/take snapshot/do/before"] = lambda _p: cloud.wire.spawn(cloud.delete(uuid))
    await shelve(cloud, uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at)
    await cloud.rest()
    cloud.gone(uuid)
    assert cloud.images.kept() == []
    assert cloud.operation(uuid, "shelve").state is OperationState.CANCELLED


@in_cloud()
async def test_what_is_on_a_shelf_is_neither_shelved_nor_started(cloud: SmallCloud) -> None:
    uuid = await on_its_shelf(cloud)
    for ask in (shelve, SmallCloud.start):
        with pytest.raises(InstanceInvalidState, match="vm_state shelved"):
            await (ask(cloud, uuid))
    await cloud.change(uuid, vm_state=VmState.ACTIVE, task_state=TaskState.REBUILDING)
    with pytest.raises(InstanceInvalidState):
        await unshelve(cloud, uuid)
