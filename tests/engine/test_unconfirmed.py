"""Resizes that nobody decides on."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import msgspec
import pytest
from small_cloud import FLAVOR, OPTIONS, SmallCloud, in_cloud
from structlog.testing import capture_logs

from kilonova.conductor import unconfirmed
from kilonova.domain.errors import Conflict
from kilonova.domain.flavor import Flavor
from kilonova.domain.migration import MigrationStatus
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.resize import RESIZE, ResizeServer
from kilonova.operations.revert_resize import REVERT_RESIZE, RevertResize

BIG = Flavor(flavor_id="2", name="big", vcpus=2, memory_mib=1024, root_gib=2)
WINDOW = 60.0
SOON = msgspec.structs.replace(OPTIONS, resize_confirm_window=WINDOW)


async def resized(cloud: SmallCloud) -> str:
    uuid = await cloud.build()
    await cloud.act(uuid, RESIZE, ResizeServer(flavor=BIG))
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.RESIZED)
    await cloud.rest()
    return uuid


def status(cloud: SmallCloud, uuid: str) -> MigrationStatus:
    return cloud.migrations(uuid)[0].status


@pytest.mark.spec("PER-36", "PER-42", "PER-05")
@in_cloud(options=SOON)
async def test_a_resize_is_confirmed_when_its_window_has_passed(cloud: SmallCloud) -> None:
    uuid = await resized(cloud)
    arrived = cloud.loop.time()
    with capture_logs() as logs:
        await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ACTIVE)
    assert WINDOW - 5.0 < cloud.loop.time() - arrived < WINDOW + 30.0
    await cloud.rest()
    assert (cloud.server(uuid).flavor, status(cloud, uuid)) == (BIG, MigrationStatus.CONFIRMED)
    assert list(cloud.held(uuid)) == [uuid]
    assert [o.kind for o in cloud.operations(uuid)].count("confirm-resize") == 1
    assert [line["count"] for line in logs if line["event"] == "resizes to be confirmed"] == [1]


@pytest.mark.spec("PER-35")
@in_cloud()
async def test_without_a_window_nothing_is_confirmed(cloud: SmallCloud) -> None:
    uuid = await resized(cloud)
    await asyncio.sleep(10_000)
    assert (cloud.server(uuid).vm_state, status(cloud, uuid)) == (VmState.RESIZED, MigrationStatus.FINISHED)


@pytest.mark.spec("PER-37", "PER-03", "PER-46")
@in_cloud(options=SOON)
async def test_a_migration_whose_server_is_gone_is_in_error_and_the_next_is_handled(cloud: SmallCloud) -> None:
    gone, there = await resized(cloud), await resized(cloud)
    await cloud.erase(gone)
    await cloud.until(lambda: cloud.server(there).vm_state is VmState.ACTIVE, within=300)
    assert status(cloud, gone) is MigrationStatus.ERROR
    await cloud.rest()
    assert status(cloud, there) is MigrationStatus.CONFIRMED


@pytest.mark.spec("PER-38", "PER-41", "PER-44")
@pytest.mark.parametrize(
    ("vm_state", "task"), [(VmState.ERROR, None), (VmState.ACTIVE, None), (VmState.RESIZED, TaskState.REBOOTING)]
)
def test_a_server_in_other_states_ends_its_migration_and_says_so(vm_state: VmState, task: TaskState | None) -> None:
    @in_cloud(options=SOON)
    async def story(cloud: SmallCloud) -> None:
        uuid = await resized(cloud)
        await cloud.change(uuid, vm_state=vm_state, task_state=task)
        await cloud.until(lambda: status(cloud, uuid) is MigrationStatus.ERROR, within=300)
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state) == (vm_state, task)
        fault = cloud.fault(uuid)
        assert fault is not None
        assert f"{vm_state.value}/{task.value if task else 'None'}" in fault.message
        await asyncio.sleep(60)
        assert cloud.faults(uuid) == 1

    story()


@pytest.mark.spec("PER-39", "PER-40")
@pytest.mark.parametrize("task", [TaskState.DELETING, TaskState.SOFT_DELETING, TaskState.RESIZE_FINISH])
def test_a_delete_or_a_resize_that_is_about_to_arrive_is_left_alone(task: TaskState) -> None:
    @in_cloud(options=SOON)
    async def story(cloud: SmallCloud) -> None:
        uuid = await resized(cloud)
        await cloud.change(uuid, task_state=task)
        await asyncio.sleep(3 * WINDOW)
        assert status(cloud, uuid) is MigrationStatus.FINISHED
        assert cloud.server(uuid).task_state is task
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.spec("PER-44")
@in_cloud(options=SOON)
async def test_a_revert_under_way_is_not_disturbed(cloud: SmallCloud) -> None:
    uuid = await resized(cloud)
    await asyncio.sleep(WINDOW - 15.0)
    cloud.hypervisors["host0"].faults.latency = 15.0
    await cloud.act(uuid, REVERT_RESIZE, RevertResize())
    await asyncio.sleep(WINDOW)
    cloud.hypervisors["host0"].faults.latency = 0.0
    await cloud.rest(within=300)
    assert (cloud.server(uuid).vm_state, cloud.server(uuid).flavor) == (VmState.ACTIVE, FLAVOR)
    assert status(cloud, uuid) is MigrationStatus.REVERTED
    assert cloud.faults(uuid) == 0


@pytest.mark.spec("PER-43")
@in_cloud(options=SOON)
async def test_a_confirm_that_is_refused_is_asked_for_again(
    cloud: SmallCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = await resized(cloud)
    before = cloud.server(uuid)

    def refuses(*_: object, **__: object) -> None:
        raise Conflict("busy")

    monkeypatch.setattr(unconfirmed, "submit", SimpleNamespace(submit=refuses))
    with capture_logs() as logs:
        await asyncio.sleep(2 * WINDOW)
    assert {line["log_level"] for line in logs if line["event"] == "resize not confirmed"} == {"info"}
    assert (cloud.server(uuid), status(cloud, uuid)) == (before, MigrationStatus.FINISHED)
    monkeypatch.undo()
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ACTIVE)
