"""Volumes of servers that are shelved, taken from their hosts, and started elsewhere."""

from __future__ import annotations

import pytest
from asked_volumes import ROOT, WITHOUT_ID, of_image
from small_cloud import CONTEXT, SmallCloud, in_cloud
from test_shelve import shelve
from test_shelve_offload import offload
from test_unshelve_offloaded import unshelve

from kilonova.domain.block_device import AttachState
from kilonova.domain.errors import InvalidVolume, KilonovaError, ServiceUnavailable, TryElsewhere
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.operations.unshelve_offloaded import UnshelveOffloaded

REFUSES = KilonovaError("the hypervisor refuses")


def reserved(cloud: SmallCloud, uuid: str, *volumes: str) -> None:
    """Fail unless the server is on no host, and has exactly one attachment of each volume, which gives no access."""
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.host) == (VmState.SHELVED_OFFLOADED, None, None)
    assert cloud.guest(uuid) is None
    assert [(one.volume_id, one.state, one.connection_info) for one in cloud.devices(uuid)] == [
        (volume, AttachState.RESERVED, None) for volume in volumes]
    held = {one.id: one for one in cloud.volumes.of_server(uuid)}
    assert list(held) == [one.attachment_id for one in cloud.devices(uuid)]
    assert all(one.status == "reserved" and one.connection_info is None for one in held.values())


def runs(cloud: SmallCloud, uuid: str, host: str, *volumes: str) -> None:
    """Fail unless the server runs there with these volumes."""
    server, guest = cloud.server(uuid), cloud.guest(uuid)
    assert (server.vm_state, server.task_state, server.host) == (VmState.ACTIVE, None, host)
    assert guest is not None
    assert (guest.power_state, set(guest.volumes)) == (PowerState.RUNNING, set(volumes))
    for device in cloud.devices(uuid):
        assert device.state is AttachState.ATTACHED
        assert device.attachment_id is not None
        assert cloud.volumes.hosts[device.attachment_id] == host
    held = [one.id for one in cloud.volumes.of_server(uuid)]
    assert sorted(held) == sorted(str(one.attachment_id) for one in cloud.devices(uuid))
    assert {cloud.volumes.find(volume).status for volume in volumes} == {"in-use"}


@pytest.mark.spec("SHV-17", "SHV-38", "MIG-17", "MIG-22", "MIG-23", "BDM-25", "VOL-41")
@in_cloud(hosts=2)
async def test_volumes_are_kept_for_an_offloaded_server_and_follow_it(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    host = cloud.server(uuid).host
    volumes = [await cloud.attach(uuid) for _ in range(2)]
    await shelve(cloud, uuid)
    await cloud.rest()
    cloud.volumes.calls.clear()
    await offload(cloud, uuid)
    await cloud.rest()
    reserved(cloud, uuid, *volumes)
    done = [name for name, about in cloud.volumes.calls if about == volumes[0]]
    assert done == ["create_attachment", "discard_attachments"]
    third = await cloud.attach(uuid)
    other = next(name for name in cloud.hypervisors if name != host)
    await unshelve(cloud, uuid, UnshelveOffloaded(host=other))
    await cloud.rest()
    runs(cloud, uuid, other, *volumes, third)
    assert [name for name, _ in cloud.volumes.calls].count("complete_attachment") == 4  # one when it was attached


@pytest.mark.spec("MIG-20", "MIG-21", "SHV-26")
@in_cloud(hosts=2)
async def test_a_volume_service_that_is_away_is_told_later_and_only_of_what_was(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    await shelve(cloud, uuid)
    await cloud.rest()
    (old,) = cloud.volumes.of_server(uuid)
    cloud.volumes.fail["create_attachment"] = [ServiceUnavailable("away")] * 12
    await offload(cloud, uuid)
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.host) == (VmState.SHELVED_OFFLOADED, None)
    assert cloud.volumes.of_server(uuid) == [old]
    await cloud.rest(within=900.0, debts=True)
    reserved(cloud, uuid, volume)
    await unshelve(cloud, uuid)
    await cloud.rest()
    host = cloud.server(uuid).host
    assert host is not None
    runs(cloud, uuid, host, volume)


@pytest.mark.spec("SHV-42", "SHV-44", "MIG-24", "BDM-28")
@pytest.mark.parametrize("call", ["create_disks", "spawn"])
def test_an_unshelving_that_fails_leaves_the_volumes_reserved(call: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        volume = await cloud.attach(uuid)
        await shelve(cloud, uuid)
        await cloud.rest()
        await offload(cloud, uuid)
        await cloud.rest()
        cloud.fail(call, REFUSES)
        await unshelve(cloud, uuid)
        await cloud.rest()
        assert cloud.operation(uuid, "unshelve-offloaded").state is OperationState.FAILED
        reserved(cloud, uuid, volume)
        await unshelve(cloud, uuid)
        await cloud.rest()
        runs(cloud, uuid, "host0", volume)

    story()


@pytest.mark.spec("SHV-42", "BDM-25", "BDM-28")
@in_cloud(hosts=2)
async def test_a_server_that_is_unshelved_on_its_second_host_has_left_the_first(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    await shelve(cloud, uuid)
    await cloud.rest()
    await offload(cloud, uuid)
    await cloud.rest()
    cloud.fail("spawn", TryElsewhere("no room"))
    await unshelve(cloud, uuid)
    await cloud.rest()
    host = cloud.server(uuid).host
    assert host is not None
    runs(cloud, uuid, host, volume)


@in_cloud()
async def test_a_volume_that_somebody_has_spoilt_stops_the_unshelving(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    await shelve(cloud, uuid)
    await cloud.rest()
    await offload(cloud, uuid)
    await cloud.rest()
    cloud.volumes.fail["update_attachment"] = [InvalidVolume("not now")]
    await unshelve(cloud, uuid)
    await cloud.rest()
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "not now" in fault.message
    reserved(cloud, uuid, volume)
    assert cloud.claims(uuid) == []


@pytest.mark.spec("SHV-14", "SHV-25", "SHV-29", "SHV-34", "API-133")
@in_cloud(hosts=2)
async def test_a_server_that_boots_from_a_volume_is_shelved_without_an_image(cloud: SmallCloud) -> None:
    uuid = await cloud.build(image=WITHOUT_ID, block_devices=(of_image(),))
    before = cloud.server(uuid)
    cloud.history.clear()
    await shelve(cloud, uuid)
    await cloud.rest()
    assert cloud.states(uuid) == [
        ("active", "shelving"), ("shelved", "shelving_offloading"), ("shelved_offloaded", None)]
    assert cloud.power_offs[0] == (20.0, 5.0)
    assert cloud.images.kept() == []
    reserved(cloud, uuid, ROOT)
    other = next(name for name in cloud.hypervisors if name != before.host)
    await unshelve(cloud, uuid, UnshelveOffloaded(host=other))
    await cloud.rest()
    runs(cloud, uuid, other, ROOT)
    after = cloud.server(uuid)
    assert (after.image_ref, after.image, after.root_device_name) == ("", before.image, before.root_device_name)
    assert not [key for key in after.system_metadata if key.startswith("shelved")]
    assert "delete" not in {name for name, _ in cloud.images.calls}


@pytest.mark.spec("SHV-09", "SHV-10")
@in_cloud()
async def test_such_a_server_that_cannot_be_switched_off_goes_on(cloud: SmallCloud) -> None:
    uuid = await cloud.build(image=WITHOUT_ID, block_devices=(of_image(),))
    cloud.fail("power_off", REFUSES)
    await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))
    await cloud.task(uuid, TaskState.SHELVING)
    await cloud.rest()
    runs(cloud, uuid, "host0", ROOT)
