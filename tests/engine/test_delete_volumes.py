"""Deleting servers with volumes: none stays attached, and those that were to go with the server go."""

from __future__ import annotations

import msgspec
import pytest
from asked_volumes import ROOT, WITHOUT_ID, of_image, of_user
from small_cloud import CONTEXT, OPTIONS, Always, SmallCloud, in_cloud

from kilonova.db import block_devices
from kilonova.domain.block_device import AttachState
from kilonova.domain.errors import KilonovaError, ServiceUnavailable
from kilonova.domain.operation import OperationState
from kilonova.domain.states import VmState
from kilonova.operations.restore import RESTORE, RestoreServer
from kilonova.services.volumes import Snapshot

AWAY = ServiceUnavailable("The volume service does not answer.")


async def booted(cloud: SmallCloud) -> tuple[str, str]:
    """A server whose root volume goes with it, and one that its user brought and that stays."""
    brought = cloud.volumes.add()
    uuid = await cloud.build(
        image=WITHOUT_ID, block_devices=(of_image(delete_on_termination=True), of_user(brought)),
    )
    return uuid, brought


def freed(cloud: SmallCloud, uuid: str, *kept: str) -> None:
    """The server is gone, and these volumes are left and free."""
    cloud.gone(uuid)
    assert cloud.devices(uuid) == []
    assert cloud.volumes.of_server(uuid) == []
    assert set(cloud.volumes.volumes) == set(kept)
    assert {cloud.volumes.find(one).status for one in kept} <= {"available"}


@pytest.mark.spec("DEL-02", "DEL-05", "DEL-13", "DEL-14", "DEL-16", "DEL-23", "DEL-38", "DEL-41")
@in_cloud()
async def test_volumes_are_freed_and_those_that_go_with_the_server_deleted(cloud: SmallCloud) -> None:
    uuid, brought = await booted(cloud)
    late = await cloud.attach(uuid)
    released = len(cloud.volumes.calls)
    await cloud.delete(uuid)
    await cloud.until(lambda: len(cloud.volumes.calls) > released)
    assert cloud.guest(uuid) is None
    assert cloud.ports(uuid) == []
    await cloud.rest(debts=True)
    freed(cloud, uuid, brought, late)
    assert cloud.violations == []


@pytest.mark.spec("DEL-07", "DEL-08", "DEL-09", "DEL-17", "DEL-18", "DEL-19", "DEL-20", "DEL-24")
@pytest.mark.parametrize("call", ["delete_attachment", "discard_attachments", "delete_volume"])
def test_what_the_volume_service_does_not_do_is_owed(call: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid, brought = await booted(cloud)
        cloud.volumes.fail[call] = Always([AWAY])
        await cloud.delete(uuid)
        await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
        failed = cloud.operation(uuid, "delete")
        assert failed.state is OperationState.SUCCEEDED
        (message,) = [e.failure.message for e in failed.entries if e.step == "release volumes" and e.failure]
        missing = [ROOT] if call == "delete_volume" else [ROOT, brought]
        assert message == "; ".join(f"volume {one}: {AWAY.message}" for one in missing)
        assert [one.volume_id for one in cloud.devices(uuid)] == missing
        assert b"connection_info" not in msgspec.json.encode(failed)
        cloud.volumes.fail.clear()
        await cloud.rest(debts=True)
        freed(cloud, uuid, brought)

    story()


@pytest.mark.spec("DEL-18")
@in_cloud()
async def test_a_volume_with_snapshots_goes_when_they_are_gone(cloud: SmallCloud) -> None:
    uuid, brought = await booted(cloud)
    cloud.volumes.snapshots["s"] = Snapshot(id="s", volume_id=ROOT, project_id="project", status="available", size=1)
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
    assert cloud.volumes.find(ROOT).status == "available"
    cloud.volumes.snapshots.clear()
    await cloud.rest(debts=True)
    freed(cloud, uuid, brought)


@pytest.mark.spec("PER-91")
@in_cloud()
async def test_a_volume_that_another_server_has_is_not_deleted(cloud: SmallCloud) -> None:
    shared = cloud.volumes.add(multiattach=True)
    uuids = [await cloud.build(block_devices=(of_user(shared, one, delete_on_termination=True),)) for one in (
        "11111111-1111-4111-8111-1111111111aa", "11111111-1111-4111-8111-1111111111bb")]
    await cloud.delete(uuids[0])
    await cloud.rest(debts=True)
    cloud.gone(uuids[0])
    assert cloud.volumes.find(shared).status == "in-use"
    assert [one.volume_id for one in cloud.devices(uuids[1])] == [shared]
    await cloud.delete(uuids[1])
    await cloud.rest(debts=True)
    freed(cloud, uuids[1])


@pytest.mark.spec("DEL-33", "DEL-36")
@pytest.mark.parametrize("place", ["look/do/committed", "release volumes/do/before", "release volumes/do/answered"])
def test_a_delete_that_is_taken_up_deletes_the_volumes(place: str) -> None:
    @in_cloud(conductors=2)
    async def story(cloud: SmallCloud) -> None:
        uuid, brought = await booted(cloud)
        cloud.at[f"delete/{place}"] = cloud.crash
        await cloud.delete(uuid)
        await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
        await cloud.rest(debts=True)
        freed(cloud, uuid, brought)

    story()


@pytest.mark.spec("DEL-03")
@in_cloud()
async def test_a_guest_that_cannot_be_removed_keeps_its_volumes(cloud: SmallCloud) -> None:
    uuid, brought = await booted(cloud)
    cloud.always_fail("destroy", KilonovaError("the hypervisor hangs"))
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR)
    assert {cloud.volumes.find(one).status for one in (ROOT, brought)} == {"in-use"}
    cloud.heal()
    await cloud.delete(uuid)
    await cloud.rest(debts=True)
    freed(cloud, uuid, brought)


@pytest.mark.spec("DEL-55", "DEL-58")
@in_cloud()
async def test_volumes_are_freed_although_the_host_is_down(cloud: SmallCloud) -> None:
    uuid, brought = await booted(cloud)
    cloud.crash("host0")
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at is not None, within=600)
    assert cloud.devices(uuid) == []
    assert (list(cloud.volumes.volumes), cloud.volumes.held) == ([brought], {})
    await cloud.boot("host0")
    await cloud.rest(debts=True, within=600)
    freed(cloud, uuid, brought)


@pytest.mark.spec("DEL-61")
@pytest.mark.parametrize("how", ["offloaded", "never built"])
def test_reservations_are_released(how: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        brought = cloud.volumes.add()
        if how == "never built":
            cloud.fail("spawn", KilonovaError("no"))
        uuid = await cloud.ask(cloud.new(block_devices=(of_user(brought),)))
        await cloud.until(lambda: cloud.server(uuid).vm_state in (VmState.ERROR, VmState.ACTIVE))
        await cloud.rest(debts=True)
        if how == "offloaded":
            await cloud.change(uuid, host=None, node=None, vm_state=VmState.SHELVED_OFFLOADED)
            guest = cloud.hypervisors["host0"].guests.pop(uuid)
            assert guest.volumes
        await cloud.delete(uuid)
        await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
        assert cloud.devices(uuid) == []
        assert (list(cloud.volumes.volumes), cloud.volumes.held) == ([brought], {})

    story()


@pytest.mark.spec("DEL-06")
@in_cloud()
async def test_attachments_that_no_record_names_are_found(cloud: SmallCloud) -> None:
    """Of a volume that the server has, and of one that it should have got in its place."""
    uuid, brought = await booted(cloud)
    other = cloud.volumes.add()
    cloud.volumes.attach(other, uuid, (), None, read_only=False)
    for device in cloud.devices(uuid):
        await cloud.databases.cell.write(lambda conn, one=device.uuid: block_devices.update(
            conn, one, now=cloud.now, was=tuple(AttachState), attachment_id=None,
        ))
    await cloud.delete(uuid)
    await cloud.rest(debts=True)
    freed(cloud, uuid, brought, other)


@pytest.mark.spec("DEL-10", "DEL-15", "BDM-32")
@in_cloud()
async def test_nothing_is_asked_for_a_volume_that_never_came_into_being(cloud: SmallCloud) -> None:
    cloud.volumes.spoilt.add(ROOT)
    uuid = await cloud.ask(cloud.new(image=WITHOUT_ID, block_devices=(of_image(delete_on_termination=True),)))
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR)
    await cloud.rest(debts=True)
    (device,) = cloud.devices(uuid)
    assert device.volume_id is None
    asked = len(cloud.volumes.calls)
    await cloud.delete(uuid)
    await cloud.rest(debts=True)
    freed(cloud, uuid)
    assert cloud.volumes.calls[asked:] == []


@pytest.mark.spec("DEL-67", "DEL-75")
@in_cloud(options=msgspec.structs.replace(OPTIONS, reclaim_instance_interval=60.0))
async def test_a_soft_deleted_server_keeps_its_volumes_until_it_is_reclaimed(cloud: SmallCloud) -> None:
    uuid, brought = await booted(cloud)
    for restored in (True, False):
        await cloud.compute.delete(CONTEXT, await cloud.located(uuid))
        await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.SOFT_DELETED)
        assert {cloud.volumes.find(one).status for one in (ROOT, brought)} == {"in-use"}
        if restored:
            await cloud.act(uuid, RESTORE, RestoreServer())
            await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ACTIVE)
            guest = cloud.guest(uuid)
            assert guest is not None
            assert set(guest.volumes) == {ROOT, brought}
    await cloud.until(lambda: cloud.server(uuid).deleted_at is not None, within=600)
    await cloud.rest(debts=True)
    freed(cloud, uuid, brought)


@pytest.mark.spec("PER-91")
@in_cloud(options=msgspec.structs.replace(
    OPTIONS, running_deleted_instance_action="reap", running_deleted_instance_poll_interval=30.0,
))
async def test_reaping_a_guest_touches_no_volume_that_somebody_has_by_now(cloud: SmallCloud) -> None:
    """A host that is restored from a backup has a guest that has long been deleted, with volumes of others."""
    uuid, brought = await booted(cloud)
    guest = cloud.hypervisors["host0"].guests[uuid]
    await cloud.delete(uuid)
    await cloud.rest(debts=True)
    other = await cloud.build()
    await cloud.attach(other, brought)
    asked = len(cloud.volumes.calls)
    cloud.hypervisors["host0"].guests[uuid] = guest
    await cloud.until(lambda: uuid not in cloud.hypervisors["host0"].guests)
    await cloud.rest(debts=True)
    assert cloud.volumes.calls[asked:] == []
    assert cloud.volumes.find(brought).status == "in-use"
    assert [one.volume_id for one in cloud.devices(other)] == [brought]
