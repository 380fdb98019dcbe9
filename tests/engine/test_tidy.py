"""What a server holds beside what it runs on is given back when its states are reset."""

from __future__ import annotations

import msgspec
import pytest
from small_cloud import CONTEXT, FLAVOR, OPTIONS, SmallCloud, in_cloud

from kilonova.db import migration_records
from kilonova.domain.errors import KilonovaError
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.instance import Rescue
from kilonova.domain.migration import MigrationStatus
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.hypervisor.fake import FakeGuest
from kilonova.operations.rescue import RESCUE, RescueServer
from kilonova.operations.resize import RESIZE, ResizeServer
from kilonova.operations.revert_resize import REVERT_RESIZE, RevertResize
from kilonova.operations.shelf import IMAGE_KEY
from kilonova.operations.unrescue import UNRESCUE, UnrescueServer

BIG = Flavor(flavor_id="2", name="big", vcpus=2, memory_mib=1024, root_gib=2)
RESCUE_IMAGE = Image(id="33333333-3333-4333-8333-333333333333")
REFUSES = KilonovaError("the hypervisor refuses")
V, M = VmState, MigrationStatus


async def reset(cloud: SmallCloud, uuid: str, *, active: bool = True) -> None:
    await cloud.compute.reset_state(CONTEXT, await cloud.located(uuid), active=active)


async def done(cloud: SmallCloud, uuid: str, *what: object) -> None:
    await cloud.act(uuid, *what)  # type: ignore[arg-type]
    await cloud.rest()


async def resized(cloud: SmallCloud) -> str:
    uuid = await cloud.build()
    await done(cloud, uuid, RESIZE, ResizeServer(flavor=BIG))
    assert cloud.server(uuid).vm_state is V.RESIZED
    return uuid


async def rescued(cloud: SmallCloud) -> str:
    uuid = await cloud.build()
    await done(cloud, uuid, RESCUE, RescueServer(image=RESCUE_IMAGE))
    assert cloud.server(uuid).vm_state is V.RESCUED
    return uuid


def guest_of(cloud: SmallCloud, uuid: str) -> FakeGuest:
    guest = cloud.guest(uuid)
    assert guest is not None
    return guest


@pytest.mark.spec("API-141")
@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("status", [M.FINISHED, M.ERROR])
def test_a_resized_server_keeps_its_new_flavor_and_nothing_else(active: bool, status: MigrationStatus) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await resized(cloud)
        if status is M.ERROR:
            (migration,) = cloud.migrations(uuid)
            await cloud.databases.cell.write(lambda conn: migration_records.change(
                conn, migration.uuid, now=cloud.now, was=(M.FINISHED,), status=M.ERROR
            ))
        starts = guest_of(cloud, uuid).starts
        await reset(cloud, uuid, active=active)
        assert cloud.server(uuid).vm_state is (V.ACTIVE if active else V.ERROR)
        await cloud.rest()
        server, guest = cloud.server(uuid), guest_of(cloud, uuid)
        assert (server.vm_state, server.task_state, server.flavor) == (V.ACTIVE if active else V.ERROR, None, BIG)
        assert (guest.kept, guest.power_state, guest.starts) == ({}, PowerState.RUNNING, starts)
        assert list(cloud.held(uuid)) == [uuid]
        assert cloud.migrations(uuid)[0].status is M.CONFIRMED
        assert "resetState" in [action.action for action in await cloud.actions(uuid)]

    story()


@in_cloud()
async def test_a_host_that_refuses_owes_it(cloud: SmallCloud) -> None:
    uuid = await resized(cloud)
    cloud.always_fail("tidy_disks", REFUSES)
    await reset(cloud, uuid)
    await cloud.rest()
    assert cloud.operation(uuid, "tidy").state is OperationState.SUCCEEDED
    assert guest_of(cloud, uuid).kept != {}
    assert list(cloud.held(uuid)) == [uuid]
    cloud.heal()
    await cloud.rest(within=900.0, debts=True)
    assert guest_of(cloud, uuid).kept == {}


@in_cloud()
async def test_a_rescue_disk_from_which_the_guest_runs_goes_with_the_next_start(cloud: SmallCloud) -> None:
    uuid = await rescued(cloud)
    await reset(cloud, uuid)
    await cloud.rest()
    assert cloud.server(uuid).rescue is None
    guest = guest_of(cloud, uuid)
    assert (guest.rescue, guest.rescued, guest.power_state) == (RESCUE_IMAGE.id, True, PowerState.RUNNING)
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    guest = guest_of(cloud, uuid)
    assert (guest.rescue, guest.rescued, guest.power_state) == (None, False, PowerState.RUNNING)


@in_cloud()
async def test_a_rescue_disk_that_is_not_used_goes_at_once(cloud: SmallCloud) -> None:
    uuid = await rescued(cloud)
    await cloud.drivers["host0"].power_off(uuid, grace=0.0, interval=0.0)
    await reset(cloud, uuid, active=False)
    await cloud.rest()
    assert guest_of(cloud, uuid).rescue is None


@in_cloud()
async def test_the_image_of_a_shelved_server_goes_if_its_disks_are_there(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))
    await cloud.rest()
    assert (cloud.server(uuid).vm_state, len(cloud.images.kept())) == (V.SHELVED, 1)
    await reset(cloud, uuid)
    await cloud.rest()
    server = cloud.server(uuid)
    assert (IMAGE_KEY in server.system_metadata, cloud.images.kept(), server.host) == (False, [], "host0")


@in_cloud(options=msgspec.structs.replace(OPTIONS, shelved_offload_time=0.0))
async def test_the_image_of_a_server_that_is_on_no_host_stays(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))
    await cloud.rest()
    assert cloud.server(uuid).vm_state is V.SHELVED_OFFLOADED
    await reset(cloud, uuid, active=False)
    await cloud.rest()
    assert (IMAGE_KEY in cloud.server(uuid).system_metadata, len(cloud.images.kept())) == (True, 1)


@pytest.mark.parametrize("call", ["claim", "power off", "resize disks", "start guest"])
def test_a_resize_that_was_reset_leaves_nothing(call: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.at[f"resize/{call}/do/before"] = lambda _p: cloud.wire.spawn(reset(cloud, uuid))
        await done(cloud, uuid, RESIZE, ResizeServer(flavor=BIG))
        server, guest = cloud.server(uuid), guest_of(cloud, uuid)
        assert (server.vm_state, server.task_state, server.flavor) == (V.ACTIVE, None, FLAVOR)
        assert (guest.kept, guest.power_state) == ({}, PowerState.RUNNING)
        assert list(cloud.held(uuid)) == [uuid]
        assert cloud.migrations(uuid)[0].status is M.ERROR

    story()


@pytest.mark.parametrize("step", ["describe guest", "power off", "return claim", "revert disks", "start guest"])
def test_a_revert_that_was_reset_leaves_record_and_claim_in_agreement(step: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await resized(cloud)
        cloud.at[f"revert-resize/{step}/do/before"] = lambda _p: cloud.wire.spawn(reset(cloud, uuid))
        await done(cloud, uuid, REVERT_RESIZE, RevertResize())
        server, guest = cloud.server(uuid), guest_of(cloud, uuid)
        assert (server.vm_state, server.task_state) == (V.ACTIVE, None)
        assert (guest.kept, guest.sizes.root_gib) == ({}, server.flavor.root_gib)
        assert cloud.held(uuid)[uuid]["VCPU"] == server.flavor.vcpus
        assert list(cloud.held(uuid)) == [uuid]
        assert cloud.migrations(uuid)[0].status in (M.CONFIRMED, M.REVERTED)

    story()


@pytest.mark.parametrize("step", ["describe guest", "power off", "start guest", "drop rescue disk"])
def test_an_unrescue_that_was_reset_leaves_no_disk(step: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await rescued(cloud)
        cloud.at[f"unrescue/{step}/do/before"] = lambda _p: cloud.wire.spawn(reset(cloud, uuid))
        await done(cloud, uuid, UNRESCUE, UnrescueServer())
        assert cloud.server(uuid).rescue is None
        await cloud.reboot(uuid, hard=True)
        await cloud.rest()
        assert guest_of(cloud, uuid).rescue is None

    story()


@in_cloud()
async def test_disks_that_a_failed_revert_may_still_need_are_kept(cloud: SmallCloud) -> None:
    uuid = await resized(cloud)
    cloud.fail("revert_disks", REFUSES)
    await done(cloud, uuid, REVERT_RESIZE, RevertResize())
    assert (cloud.server(uuid).vm_state, cloud.server(uuid).flavor) == (V.ERROR, FLAVOR)
    await cloud.change(uuid, rescue=Rescue(image=RESCUE_IMAGE, since=1.0, vm_state=V.ACTIVE))  # something to tidy
    await reset(cloud, uuid)
    await cloud.rest()
    assert cloud.operation(uuid, "tidy").state is OperationState.SUCCEEDED
    assert guest_of(cloud, uuid).kept != {}


@in_cloud()
async def test_a_delete_takes_the_place_of_a_tidying_that_waits(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.disobedient = {uuid}
    await cloud.stop(uuid)
    await cloud.task(uuid, TaskState.POWERING_OFF)
    await reset(cloud, uuid)
    assert cloud.operation(uuid, "tidy").state is OperationState.QUEUED
    await cloud.delete(uuid)
    assert cloud.operation(uuid, "tidy").state is OperationState.CANCELLED
    await cloud.rest()
    cloud.gone(uuid)
    assert cloud.operation(uuid, "tidy").entries == ()
