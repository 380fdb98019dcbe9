"""Servers keep their volumes while other things are done to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import pytest
from asked_volumes import ROOT, WITHOUT_ID, of_image
from small_cloud import SmallCloud, in_cloud
from test_rebuild import rebuild
from test_rescue import rescue, unrescue
from test_resize import confirm, resize, revert
from test_shelve import shelve, unshelve
from test_soft_delete import KEEPING, restore

from kilonova.domain.block_device import AttachState
from kilonova.domain.errors import InvalidInput
from kilonova.domain.image import Image
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, VmState
from kilonova.hypervisor.volumes import NbdSource
from kilonova.operations.guests import guest_of
from kilonova.operations.pause import PAUSE_SERVER, UNPAUSE_SERVER, PauseServer
from kilonova.operations.rebuild import REBUILD, Origin, RebuildServer
from kilonova.operations.suspend import RESUME_SERVER, SUSPEND_SERVER, ResumeServer, SuspendServer

V = VmState
PORT = 10809


def port(cloud: SmallCloud, uuid: str, volume: str) -> int:
    """The port from which the running guest has a volume, 0 for none."""
    guest = cloud.guest(uuid)
    found = guest.volumes.get(volume) if guest is not None else None
    return found.running.port if found is not None and isinstance(found.running, NbdSource) else 0


def keeps(cloud: SmallCloud, uuid: str, volume: str) -> None:
    """Fail unless the volume is attached as it was, by one attachment."""
    (device,) = cloud.devices(uuid)
    assert (device.state, device.device_name) == (AttachState.ATTACHED, "/dev/vdb")
    assert [one.id for one in cloud.volumes.of_server(uuid)] == [device.attachment_id]
    assert cloud.volumes.find(volume).status == "in-use"


async def start(cloud: SmallCloud, uuid: str) -> None:
    await cloud.stop(uuid)
    await cloud.rest()
    await cloud.start(uuid)


async def soft_reboot(cloud: SmallCloud, uuid: str) -> None:
    await cloud.reboot(uuid)


async def hard_reboot(cloud: SmallCloud, uuid: str) -> None:
    await cloud.reboot(uuid, hard=True)


async def delete_and_restore(cloud: SmallCloud, uuid: str) -> None:
    await cloud.delete(uuid)
    await cloud.rest()
    await restore(cloud, uuid)


async def shelve_and_unshelve(cloud: SmallCloud, uuid: str) -> None:
    await shelve(cloud, uuid)
    await cloud.rest()
    await unshelve(cloud, uuid)


async def rescue_and_unrescue(cloud: SmallCloud, uuid: str) -> None:
    await rescue(cloud, uuid)
    await cloud.rest()
    await unrescue(cloud, uuid)


async def resize_and_confirm(cloud: SmallCloud, uuid: str) -> None:
    await resize(cloud, uuid)
    await cloud.rest()
    await confirm(cloud, uuid)


async def resize_and_revert(cloud: SmallCloud, uuid: str) -> None:
    await resize(cloud, uuid)
    await cloud.rest()
    await revert(cloud, uuid)


async def suspend_and_resume(cloud: SmallCloud, uuid: str) -> None:
    await cloud.act(uuid, SUSPEND_SERVER, SuspendServer())
    await cloud.rest()
    await cloud.act(uuid, RESUME_SERVER, ResumeServer())


Act = Callable[[SmallCloud, str], Awaitable[None]]


@pytest.mark.spec("VOL-11", "BDM-37", "BDM-39", "PWR-17", "PWR-19", "RBT-06", "RBT-12", "RSC-08", "RBD-25", "RBD-42")
@pytest.mark.parametrize("act", [
    start, soft_reboot, hard_reboot, suspend_and_resume, delete_and_restore, shelve_and_unshelve, rescue,
    rescue_and_unrescue, rebuild, resize, resize_and_confirm, resize_and_revert,
])
def test_a_guest_that_starts_again_is_told_how_its_volumes_are_reached_now(act: Act) -> None:
    """By reading the attachment: an update would leave the volume `attaching`."""
    @in_cloud(options=KEEPING)
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        volume = await cloud.attach(uuid)
        assert port(cloud, uuid, volume) == PORT
        cloud.volumes.move(volume, PORT + 1)
        cloud.volumes.calls.clear()
        await act(cloud, uuid)
        await cloud.rest()
        assert cloud.server(uuid).vm_state in (V.ACTIVE, V.RESCUED, V.RESIZED)
        if act not in (soft_reboot, suspend_and_resume):  # these do not make the guest anew
            assert port(cloud, uuid, volume) == PORT + 1
        keeps(cloud, uuid, volume)
        assert {name for name, _ in cloud.volumes.calls} == {"attachment"}
        assert str(PORT + 1) in (cloud.devices(uuid)[0].connection_info or "")

    story()


@pytest.mark.spec("BDM-41", "PWR-18", "RBT-06")
@pytest.mark.parametrize("act", [start, soft_reboot, hard_reboot, rescue, rebuild, resize])
@pytest.mark.parametrize("gone", [True, False])
def test_no_guest_is_started_without_one_of_its_volumes(act: Act, gone: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        volume = await cloud.attach(uuid)
        (attachment,) = cloud.volumes.of_server(uuid)
        if gone:
            del cloud.volumes.held[attachment.id]
        else:
            cloud.volumes.held[attachment.id] = msgspec.structs.replace(attachment, connection_info=None)
        cloud.guests_made.clear()
        await act(cloud, uuid)
        await cloud.rest()
        assert cloud.guests_made == []
        assert cloud.server(uuid).vm_state is (V.STOPPED if act is start else V.ACTIVE)
        fault = cloud.fault(uuid)
        assert fault is not None
        assert f"Volume {volume} of server {uuid} is not connected" in fault.message

    story()


@pytest.mark.spec("BDM-38")
@in_cloud()
async def test_a_description_for_anything_else_leaves_out_what_is_not_connected(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.attach(uuid)
    (device,) = cloud.devices(uuid)
    other = msgspec.structs.replace(device, uuid="other", volume_id="other", connection_info=None)
    guest = guest_of(cloud.server(uuid), (), layout=None, config_drive=False, volumes=(device, other))
    assert [one.id for one in guest.volumes] == [device.volume_id]


@pytest.mark.spec("INI-172")
@in_cloud(resume_guests=True)
async def test_a_guest_that_cannot_be_started_after_its_host_for_want_of_a_volume_is_in_error(
    cloud: SmallCloud,
) -> None:
    uuid, other = await cloud.build(), await cloud.build()
    await cloud.attach(uuid)
    (attachment,) = cloud.volumes.of_server(uuid)
    del cloud.volumes.held[attachment.id]
    cloud.crash("host0")
    for one in (uuid, other):
        cloud.hypervisors["host0"].guests[one].power_state = PowerState.SHUTDOWN
    await cloud.boot("host0")
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.power_state) == (V.ERROR, None, PowerState.SHUTDOWN)
    assert cloud.faults(uuid) == 1
    assert cloud.server(other).vm_state is V.ACTIVE
    assert cloud.power(other) is PowerState.RUNNING


@pytest.mark.spec("RSC-08", "API-587", "RBD-42")
@in_cloud()
async def test_a_server_that_boots_from_a_volume_is_rescued_rebuilt_and_resized_with_it(cloud: SmallCloud) -> None:
    uuid = await cloud.build(image=WITHOUT_ID, block_devices=(of_image(),))
    origin = Origin.of(cloud.server(uuid))
    await rescue(cloud, uuid)
    await cloud.rest()
    guest = cloud.guest(uuid)
    assert guest is not None
    assert (guest.rescued, set(guest.volumes)) == (True, {ROOT})
    await unrescue(cloud, uuid)
    await cloud.rest()
    await cloud.act(uuid, REBUILD, RebuildServer(before=origin, after=origin))
    await cloud.rest()
    await resize_and_confirm(cloud, uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is V.ACTIVE
    assert port(cloud, uuid, ROOT) == PORT
    (device,) = cloud.devices(uuid)
    assert [one.id for one in cloud.volumes.of_server(uuid)] == [device.attachment_id]
    assert cloud.volumes.find(ROOT).status == "in-use"


@in_cloud()
async def test_a_paused_server_keeps_its_volumes_and_nobody_is_asked(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    cloud.volumes.calls.clear()
    await cloud.act(uuid, PAUSE_SERVER, PauseServer())
    await cloud.rest()
    assert port(cloud, uuid, volume) == PORT
    await cloud.act(uuid, UNPAUSE_SERVER, PauseServer())
    await cloud.rest()
    keeps(cloud, uuid, volume)
    assert cloud.volumes.calls == []


@in_cloud()
async def test_a_server_without_volumes_needs_no_volume_service(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    for act in (start, hard_reboot, suspend_and_resume, rescue_and_unrescue, rebuild, resize_and_revert):
        await act(cloud, uuid)
        await cloud.rest()
        assert cloud.server(uuid).vm_state is V.ACTIVE
    assert cloud.volumes.calls == []


@pytest.mark.parametrize("call", ["resize_disks", "power_on"])
def test_a_resize_that_fails_leaves_the_volumes_attached(call: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        volume = await cloud.attach(uuid)
        cloud.fail(call, InvalidInput("the host refuses"))
        await resize(cloud, uuid)
        await cloud.rest()
        assert cloud.operation(uuid, "resize").state is OperationState.FAILED
        assert cloud.server(uuid).vm_state is V.ACTIVE
        assert port(cloud, uuid, volume) == PORT
        keeps(cloud, uuid, volume)

    story()


@pytest.mark.spec("RBD-42")
@in_cloud()
async def test_a_rebuild_that_fails_leaves_the_volumes_attached(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    cloud.fail("spawn", InvalidInput("the host refuses"))
    await rebuild(cloud, uuid, Image(id="44444444-3333-4333-8333-333333333333"))
    await cloud.rest()
    assert cloud.server(uuid).vm_state is V.ERROR
    keeps(cloud, uuid, volume)
    await hard_reboot(cloud, uuid)
    await cloud.rest()
    assert port(cloud, uuid, volume) == PORT
