"""Attaching volumes to servers, and detaching them."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from simulation.world import IMAGE
from small_cloud import CONTEXT, OPTIONS, Always, SmallCloud, in_cloud
from test_shelve_offload import offloaded

from kilonova.db import block_devices
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.errors import (
    Conflict,
    Forbidden,
    InstanceInvalidState,
    InvalidInput,
    InvalidVolume,
    KilonovaError,
    ServiceUnavailable,
    TryElsewhere,
    VolumeNotAttached,
    VolumeNotFound,
)
from kilonova.domain.flavor import Flavor
from kilonova.domain.operation import EntryState, OperationState
from kilonova.domain.states import TaskState, VmState
from kilonova.hypervisor.volumes import NbdSource
from kilonova.operations.attach_volume import ATTACH_VOLUME, CONNECT, AttachVolume
from kilonova.operations.detach_volume import BEGIN_DETACHING, DETACH_VOLUME, DetachVolume
from kilonova.operations.pause import PAUSE_SERVER, PauseServer

REFUSES = KilonovaError("the hypervisor refuses")
AWAY = ServiceUnavailable("The volume service does not answer.")


async def detach(cloud: SmallCloud, uuid: str, volume: str) -> None:
    await cloud.compute.ask_and_wait(CONTEXT, await cloud.located(uuid), DETACH_VOLUME, DetachVolume(volume))


def agrees(cloud: SmallCloud, uuid: str, *volumes: str) -> None:
    """Record, volume service and guest know these volumes of the server, in this order, and no others."""
    devices, guest = cloud.devices(uuid), cloud.guest(uuid)
    assert [one.volume_id for one in devices] == list(volumes)
    assert {one.attachment_id for one in devices} == {one.id for one in cloud.volumes.of_server(uuid)}
    assert guest is not None
    assert {id_: one.device_name for id_, one in guest.volumes.items()} == {
        one.volume_id: one.device_name for one in devices}
    for device in devices:
        assert device.volume_id is not None
        held = guest.volumes[device.volume_id]
        assert isinstance(held.defined, NbdSource)
        assert held.defined.export == device.attachment_id
        assert device.state is AttachState.ATTACHED
        assert cloud.volumes.find(device.volume_id).status == "in-use"
    assert cloud.violations == []


def kept(cloud: SmallCloud, uuid: str) -> tuple[Any, ...]:
    """What of a server no operation on its volumes changes."""
    record = cloud.server(uuid)
    return record.vm_state, record.task_state, record.power_state, record.launched_at, record.terminated_at


async def crash_at(cloud: SmallCloud, place: str, work: Any) -> None:
    """Do something, and kill whoever gets to a boundary of the journal."""
    crashed: list[str] = []

    def die(process: str) -> None:
        crashed.append(process)
        cloud.crash(process)

    cloud.at[place] = die
    doing = asyncio.ensure_future(work)
    await cloud.until(lambda: crashed)
    await cloud.restart(*crashed)
    await asyncio.gather(doing, return_exceptions=True)
    await cloud.rest(debts=True)


# --- attach -----------------------------------------------------------------------------------------


@pytest.mark.spec("VOL-01", "VOL-14", "VOL-17", "VOL-18", "VOL-29", "RBN-03", "RBN-05")
@pytest.mark.parametrize("state", [VmState.ACTIVE, VmState.PAUSED, VmState.STOPPED])
def test_a_volume_is_reserved_connected_given_and_completed(state: VmState) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await (cloud.stopped() if state is VmState.STOPPED else cloud.build())
        if state is VmState.PAUSED:
            await cloud.act(uuid, PAUSE_SERVER, PauseServer())
            await cloud.rest()
        before = kept(cloud, uuid)
        first = await cloud.attach(uuid, tag="data", delete_on_termination=True)
        asked = [name for name, _ in cloud.volumes.calls]
        assert asked.index("create_attachment") < asked.index("complete_attachment")
        second = await cloud.attach(uuid)
        agrees(cloud, uuid, first, second)
        one, other = cloud.devices(uuid)
        assert (one.source_type, one.destination_type, one.boot_index, one.guest_format) == (
            "volume", "volume", None, None)
        assert (one.device_name, one.tag, one.delete_on_termination) == ("/dev/vdb", "data", True)
        assert (other.device_name, other.tag, other.delete_on_termination) == ("/dev/vdc", None, False)
        info = msgspec.json.decode(one.connection_info or "")
        assert (info["serial"], info["data"]["export"]) == (first, one.attachment_id)
        assert kept(cloud, uuid) == before
        journal = msgspec.json.encode(cloud.operations(uuid, "attach-volume"))
        assert b"10809" in journal  # where the volume is, but never what the service told of it
        assert b"driver_volume_type" not in journal
        assert [(a.action, a.message) for a in await cloud.actions(uuid)][-1] == ("attach_volume", None)
        guest = cloud.guest(uuid)
        assert guest is not None
        running = {id_ for id_, held in guest.volumes.items() if held.running is not None}
        assert running == (set() if state is VmState.STOPPED else {first, second})

    story()


@pytest.mark.spec("VOL-06", "VOL-07", "VOL-08", "RBN-02", "RBN-08")
@in_cloud(hosts=2)
async def test_of_two_servers_that_want_a_volume_one_gets_it(cloud: SmallCloud) -> None:
    one, two = await cloud.build(), await cloud.build()
    volume = cloud.volumes.add()
    results = await asyncio.gather(
        cloud.attach(one, volume), cloud.attach(two, volume), cloud.attach(one, volume), return_exceptions=True
    )
    assert sorted(isinstance(result, InvalidInput) for result in results) == [False, True, True]
    winner, loser = (one, two) if cloud.devices(one) else (two, one)
    agrees(cloud, winner, volume)
    agrees(cloud, loser)
    with pytest.raises(InvalidInput, match="attached to instance"):
        await cloud.attach(winner, volume)
    agrees(cloud, winner, volume)
    shared = cloud.volumes.add(multiattach=True)
    for hypervisor in cloud.hypervisors.values():
        hypervisor.traits = tuple(t for t in hypervisor.traits if t != "COMPUTE_VOLUME_MULTI_ATTACH")
    with pytest.raises(InvalidInput, match="several servers"):
        await cloud.attach(loser, shared, multiattach=True)
    agrees(cloud, loser)
    for hypervisor in cloud.hypervisors.values():
        hypervisor.traits = (*hypervisor.traits, "COMPUTE_VOLUME_MULTI_ATTACH")
    for uuid in (one, two):
        await cloud.attach(uuid, shared, multiattach=True)
    agrees(cloud, winner, volume, shared)
    agrees(cloud, loser, shared)
    guest = cloud.guest(loser)
    assert guest is not None
    assert guest.volumes[shared].multiattach
    await detach(cloud, loser, shared)
    agrees(cloud, winner, volume, shared)


@pytest.mark.spec("RBN-01", "VOL-22")
@in_cloud()
async def test_a_host_that_tells_no_tags_gets_no_volumes_with_tags(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    hypervisor = cloud.hypervisors["host0"]
    traits, hypervisor.traits = hypervisor.traits, ()
    volume = cloud.volumes.add()
    with pytest.raises(InvalidInput, match="tags"):
        await cloud.attach(uuid, volume, tag="data")
    agrees(cloud, uuid)
    assert cloud.volumes.calls == []
    await cloud.attach(uuid, volume)
    hypervisor.traits = (*traits, "COMPUTE_VOLUME_ATTACH_WITH_TAG")
    tagged = await cloud.attach(uuid, tag="data")
    agrees(cloud, uuid, volume, tagged)


@pytest.mark.spec("RBN-04", "RBN-06", "RBN-10", "BDM-13", "BDM-14")
@in_cloud()
async def test_names_of_devices(cloud: SmallCloud) -> None:
    """Those that are asked for, if disks of the bus are called so; what another disk is called is refused."""
    swap = BlockDevice(
        uuid="99999999-9999-4999-8999-999999999999", source_type="blank", destination_type="local", guest_format="swap"
    )
    flavor = Flavor(flavor_id="1", name="small", vcpus=1, memory_mib=512, root_gib=1, swap_mib=64)
    uuid = await cloud.build(flavor=flavor, block_devices=(swap,))
    volumes = [
        await cloud.attach(uuid, device_name=asked) for asked in ("/dev/vdf", None, "/dev/sdx", "/dev/xvdb", "/dev/vdz")
    ]
    assert [one.device_name for one in cloud.devices(uuid)] == [
        "/dev/vdf", "/dev/vdc", "/dev/vdd", "/dev/vde", "/dev/vdz"]
    for taken in ("/dev/vda", "/dev/vdb", "/dev/vdc", "/dev/vdz"):
        with pytest.raises(Conflict, match=taken):
            await cloud.attach(uuid, device_name=taken)
    results = await asyncio.gather(
        *(cloud.attach(uuid, device_name="/dev/vdk") for _ in range(2)), *(cloud.attach(uuid) for _ in range(3)),
        return_exceptions=True,
    )
    assert [isinstance(result, Conflict) for result in results].count(True) == 1
    agrees(cloud, uuid, *volumes, *(one.volume_id or "" for one in cloud.devices(uuid)[5:]))
    assert len(cloud.devices(uuid)) == 9
    while len(cloud.devices(uuid)) < 24:
        await cloud.attach(uuid)
    with pytest.raises(Forbidden, match="26 disks"):
        await cloud.attach(uuid)
    assert len(cloud.devices(uuid)) == 24


@pytest.mark.spec("RBN-04", "BDM-14")
@in_cloud()
async def test_a_volume_is_not_called_like_the_config_drive(cloud: SmallCloud) -> None:
    """That is a disk of the same kind, which comes after those that are no volumes."""
    scsi = msgspec.structs.replace(IMAGE, properties={"hw_disk_bus": "scsi"})
    uuid = await cloud.build(image=scsi)
    await cloud.change(uuid, config_drive="True")
    volumes = [await cloud.attach(uuid), await cloud.attach(uuid)]
    assert [one.device_name for one in cloud.devices(uuid)] == ["/dev/sdc", "/dev/sdd"]
    agrees(cloud, uuid, *volumes)


@pytest.mark.spec("RBN-06")
@in_cloud(options=msgspec.structs.replace(OPTIONS, max_disk_devices_to_attach=3))
async def test_a_server_has_no_more_disks_than_it_may_have(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volumes = [await cloud.attach(uuid), await cloud.attach(uuid)]
    with pytest.raises(Forbidden, match=r"disk devices \(3\)"):
        await cloud.attach(uuid)
    agrees(cloud, uuid, *volumes)


@pytest.mark.spec("VOL-02", "VOL-03", "VOL-04", "VOL-36", "RBN-07", "BDM-32")
@in_cloud()
async def test_states_in_which_volumes_are_neither_attached_nor_detached(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    for changes in (
        {"vm_state": VmState.ERROR}, {"vm_state": VmState.SUSPENDED}, {"vm_state": VmState.RESCUED},
        {"task_state": TaskState.MIGRATING},
    ):
        before = cloud.server(uuid)
        await cloud.change(uuid, **changes)
        with pytest.raises(InstanceInvalidState, match="attach_volume"):
            await cloud.attach(uuid)
        with pytest.raises(InstanceInvalidState, match="detach_volume"):
            await detach(cloud, uuid, volume)
        assert cloud.server(uuid).task_state is changes.get("task_state")
        await cloud.change(uuid, vm_state=before.vm_state, task_state=before.task_state)
    with pytest.raises(VolumeNotAttached):
        await detach(cloud, uuid, cloud.volumes.add())
    agrees(cloud, uuid, volume)


@pytest.mark.spec("VOL-02", "VOL-20", "VOL-22", "VOL-24", "RBN-09")
@pytest.mark.parametrize(
    ("call", "error", "raised"),
    [
        ("create_attachment", InvalidVolume("somebody else has it"), InvalidInput),
        ("create_attachment", VolumeNotFound("x"), KilonovaError),
        ("attach_volume", REFUSES, KilonovaError),
        ("attach_volume", TryElsewhere("no slot is free"), KilonovaError),
        ("attach_volume", RuntimeError("a mistake"), KilonovaError),
        ("complete_attachment", KilonovaError("cannot complete"), KilonovaError),
    ],
)
def test_an_attach_that_fails_leaves_nothing(call: str, error: Exception, raised: type[Exception]) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid, volume = await cloud.build(), cloud.volumes.add()
        before = kept(cloud, uuid)
        if call == "attach_volume":
            cloud.fail(call, error)
        else:
            cloud.volumes.fail[call] = [error]
        with pytest.raises(raised):
            await cloud.attach(uuid, volume)
        agrees(cloud, uuid)
        assert cloud.volumes.find(volume).status == "available"
        assert kept(cloud, uuid) == before
        assert cloud.fault(uuid) is not None
        assert [(a.action, a.message is None) for a in await cloud.actions(uuid)][-1] == ("attach_volume", False)
        await cloud.attach(uuid, volume)
        agrees(cloud, uuid, volume)

    story()


@pytest.mark.spec("VOL-09", "VOL-23", "VOL-25")
@in_cloud()
async def test_the_first_error_is_told_and_what_cannot_be_released_is_owed(cloud: SmallCloud) -> None:
    uuid, volume = await cloud.build(), cloud.volumes.add()
    cloud.fail("attach_volume", REFUSES)
    cloud.volumes.fail["discard_attachments"] = Always([AWAY])
    with pytest.raises(KilonovaError, match="the hypervisor refuses"):
        await cloud.attach(uuid, volume)
    assert cloud.devices(uuid) == []
    assert [one.kind for one in cloud.active()] == ["debt"]
    assert cloud.volumes.find(volume).status == "attaching"
    cloud.heal()
    await cloud.rest(debts=True)
    agrees(cloud, uuid)
    assert cloud.volumes.find(volume).status == "available"


@pytest.mark.spec("VOL-25", "VOL-28")
@in_cloud()
async def test_completing_is_tried_again_before_the_guest_loses_the_volume(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.volumes.fail["complete_attachment"] = [AWAY] * 5
    agrees(cloud, uuid, await cloud.attach(uuid))
    cloud.volumes.fail["complete_attachment"] = Always([AWAY])
    with pytest.raises(KilonovaError, match="does not answer"):
        await cloud.attach(uuid)
    cloud.heal()
    agrees(cloud, uuid, *(one.volume_id or "" for one in cloud.devices(uuid)[:1]))


@pytest.mark.spec("VOL-25")
@in_cloud()
async def test_a_volume_is_not_released_while_the_guest_keeps_it(cloud: SmallCloud) -> None:
    uuid, volume = await cloud.build(), cloud.volumes.add()
    cloud.volumes.fail["complete_attachment"] = [KilonovaError("cannot complete")]
    cloud.hypervisors["host0"].faults.disobedient.add(uuid)
    with pytest.raises(KilonovaError, match="cannot complete"):
        await cloud.attach(uuid, volume)
    assert cloud.volumes.find(volume).status == "attaching"
    guest = cloud.guest(uuid)
    assert guest is not None
    assert volume in guest.volumes
    cloud.heal()
    await cloud.rest(debts=True)
    agrees(cloud, uuid)
    assert cloud.volumes.find(volume).status == "available"


@pytest.mark.spec("VOL-26", "VOL-27", "VOL-28", "VOL-29", "RBN-11")
@pytest.mark.parametrize(
    "place", ["check host", "connect volume", "describe guest", "attach volume", "complete attachment"]
)
def test_an_attach_goes_on_after_a_crash(place: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid, volume = await cloud.build(), cloud.volumes.add()
        await crash_at(cloud, place, cloud.attach(uuid, volume))
        agrees(cloud, uuid, volume)

    story()


@pytest.mark.spec("VOL-03", "VOL-04")
@in_cloud()
async def test_others_wait_for_an_attach_and_a_delete_ends_it(cloud: SmallCloud) -> None:
    uuid, volume = await cloud.build(), cloud.volumes.add()
    cloud.hypervisors["host0"].faults.latency = 2.0
    attaching = asyncio.ensure_future(cloud.attach(uuid, volume))
    await cloud.until(lambda: cloud.calls("attach_volume"))
    await cloud.stop(uuid)
    assert cloud.operation(uuid, "attach-volume").state is OperationState.SUCCEEDED
    await attaching
    await cloud.rest()
    agrees(cloud, uuid, volume)
    second = cloud.volumes.add()
    cloud.effects.clear()
    attaching = asyncio.ensure_future(cloud.attach(uuid, second))
    await cloud.until(lambda: cloud.calls("attach_volume"))
    await detach(cloud, uuid, volume)
    await attaching
    agrees(cloud, uuid, second)
    await detach(cloud, uuid, second)
    cloud.effects.clear()
    attaching = asyncio.ensure_future(cloud.attach(uuid, volume))
    await cloud.until(lambda: cloud.calls("attach_volume"))
    await cloud.delete(uuid)
    await asyncio.gather(attaching, return_exceptions=True)
    await cloud.rest(debts=True)
    cloud.gone(uuid)
    assert cloud.volumes.held == {}


@in_cloud()
async def test_who_asks_hears_when_the_volume_is_the_servers(cloud: SmallCloud) -> None:
    """And when nobody else can detach it; the guest may take longer."""
    uuid, volume = await cloud.build(), cloud.volumes.add()
    located = await cloud.located(uuid)
    cloud.hypervisors["host0"].faults.latency = 5.0
    compute, request = cloud.compute, AttachVolume(volume_id=volume)
    accepted = await compute.ask_and_wait_for(CONTEXT, located, ATTACH_VOLUME, request, CONNECT)
    (device,) = cloud.devices(uuid)
    assert (device.uuid, device.state, cloud.volumes.find(volume).status) == (
        accepted.id, AttachState.ATTACHING, "attaching")
    await cloud.rest()
    agrees(cloud, uuid, volume)
    await compute.ask_and_wait_for(CONTEXT, located, DETACH_VOLUME, DetachVolume(volume), BEGIN_DETACHING)
    assert cloud.volumes.find(volume).status == "detaching"
    await cloud.rest()
    agrees(cloud, uuid)
    cloud.volumes.fail["create_attachment"] = [InvalidVolume("somebody else has it")]
    with pytest.raises(InvalidInput, match="somebody else"):
        await compute.ask_and_wait_for(CONTEXT, located, ATTACH_VOLUME, request, CONNECT)


# --- servers without a host -------------------------------------------------------------------------


@pytest.mark.spec("VOL-01", "VOL-14", "EMV-17")
@in_cloud()
async def test_a_server_without_a_host_has_its_volumes_reserved(cloud: SmallCloud) -> None:
    """They are in use for who waits for that, and on no host."""
    uuid = await offloaded(cloud)
    before = kept(cloud, uuid)
    cloud.effects.clear()
    volume = await cloud.attach(uuid)
    (device,) = cloud.devices(uuid)
    assert (device.state, device.connection_info, device.device_name) == (AttachState.RESERVED, None, "/dev/vdb")
    (held,) = cloud.volumes.of_server(uuid)
    assert (held.id, held.status, held.connection_info) == (device.attachment_id, "attached", None)
    assert cloud.volumes.find(volume).status == "in-use"
    for refused in ({"tag": "data"}, {"multiattach": True}):
        with pytest.raises(InvalidInput, match="has no host"):
            await cloud.attach(uuid, **refused)
    cloud.volumes.fail["complete_attachment"] = [KilonovaError("cannot complete")]
    with pytest.raises(KilonovaError, match="cannot complete"):
        await cloud.attach(uuid)
    assert [one.volume_id for one in cloud.devices(uuid)] == [volume]
    assert kept(cloud, uuid) == before
    await detach(cloud, uuid, volume)
    assert cloud.devices(uuid) == []
    assert cloud.volumes.held == {}
    assert cloud.volumes.find(volume).status == "available"
    assert [where for where, _ in cloud.calls() if where != "network"] == []
    told = [(a.action, a.message is None) for a in await cloud.actions(uuid)][-3:]
    assert told == [("attach_volume", True), ("attach_volume", False), ("detach_volume", True)]


@in_cloud()
async def test_what_is_owed_to_a_server_without_a_host_is_done_before_it_gets_the_volume_again(
    cloud: SmallCloud,
) -> None:
    uuid = await offloaded(cloud)
    volume = await cloud.attach(uuid)
    cloud.volumes.fail["delete_attachment"] = Always([AWAY])
    await detach(cloud, uuid, volume)
    assert cloud.devices(uuid) == []
    again = asyncio.ensure_future(cloud.attach(uuid, volume))
    await cloud.until(lambda: cloud.devices(uuid))
    await asyncio.sleep(3.0)
    assert not again.done()
    cloud.heal()
    await again
    await cloud.rest(debts=True)
    (device,) = cloud.devices(uuid)
    assert [one.id for one in cloud.volumes.of_server(uuid)] == [device.attachment_id]


# --- detach -----------------------------------------------------------------------------------------


@pytest.mark.spec("VOL-01", "VOL-36", "VOL-38", "VOL-40", "VOL-44", "VOL-48", "VOL-49")
@pytest.mark.parametrize("state", [VmState.ACTIVE, VmState.STOPPED])
def test_the_guest_lets_go_before_the_volume_is_released(state: VmState) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await (cloud.stopped() if state is VmState.STOPPED else cloud.build())
        stays, volume = await cloud.attach(uuid), await cloud.attach(uuid, tag="data")
        before = kept(cloud, uuid)
        cloud.volumes.calls.clear()
        await detach(cloud, uuid, volume)
        assert [name for name, _ in cloud.volumes.calls] == [
            "begin_detaching", "delete_attachment", "discard_attachments"]
        agrees(cloud, uuid, stays)
        assert cloud.volumes.find(volume).status == "available"
        assert kept(cloud, uuid) == before
        assert [(a.action, a.message) for a in await cloud.actions(uuid)][-1] == ("detach_volume", None)
        with pytest.raises(VolumeNotAttached):
            await detach(cloud, uuid, volume)
        assert cloud.fault(uuid) is None
        again = await cloud.attach(uuid, volume)
        agrees(cloud, uuid, stays, again)

    story()


@pytest.mark.spec("VOL-40", "VOL-46", "VOL-47", "VOL-48", "VOL-49")
@in_cloud()
async def test_what_a_guest_learns_of_its_volumes_with_tags(cloud: SmallCloud) -> None:
    """It follows the records of the volumes: there is no list of its own that could be wrong."""
    uuid = await cloud.stopped()
    first = await cloud.attach(uuid, tag="data")
    await cloud.attach(uuid)
    second = await cloud.attach(uuid, tag="logs")

    async def learnt() -> list[tuple[str | None, str, str]]:
        await cloud.start(uuid)
        await cloud.rest()
        await cloud.stop(uuid)
        await cloud.rest()
        return [(one.serial, one.device_name, one.tag) for one in cloud.guests_made[-1][2].metadata.disks]

    assert await learnt() == [(first, "/dev/vdb", "data"), (second, "/dev/vdd", "logs")]
    await detach(cloud, uuid, first)
    assert await learnt() == [(second, "/dev/vdd", "logs")]


@pytest.mark.spec("VOL-36")
@in_cloud()
async def test_a_volume_is_detached_once(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    results = await asyncio.gather(*(detach(cloud, uuid, volume) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results].count(VolumeNotAttached) == 2
    agrees(cloud, uuid)


@pytest.mark.spec("VOL-02", "VOL-42", "VOL-43")
@pytest.mark.parametrize("why", ["ignores", "stands still", "refuses"])
def test_a_guest_that_does_not_let_go_keeps_the_volume(why: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        volume = await cloud.attach(uuid, tag="data")
        if why == "ignores":
            cloud.hypervisors["host0"].faults.disobedient.add(uuid)
        elif why == "refuses":
            cloud.always_fail("detach_volume", REFUSES)
        else:
            await cloud.act(uuid, PAUSE_SERVER, PauseServer())
            await cloud.rest()
        before = cloud.devices(uuid)
        with pytest.raises(KilonovaError):
            await detach(cloud, uuid, volume)
        assert cloud.devices(uuid) == before
        agrees(cloud, uuid, volume)
        assert cloud.fault(uuid) is not None
        cloud.heal()
        if why != "stands still":
            await detach(cloud, uuid, volume)
            agrees(cloud, uuid)

    story()


@pytest.mark.spec("VOL-09", "VOL-43")
@in_cloud()
async def test_a_volume_that_another_is_detaching_is_not_touched(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    cloud.volumes.fail["begin_detaching"] = [InvalidVolume("it is in error")]
    with pytest.raises(InvalidInput, match="in error"):
        await detach(cloud, uuid, volume)
    assert cloud.calls("detach_volume") == []
    agrees(cloud, uuid, volume)


@pytest.mark.spec("VOL-43")
@in_cloud()
async def test_the_host_of_a_detach_is_away(cloud: SmallCloud) -> None:
    """The server keeps the volume, whatever the host has done of it: it gets it back when the host returns."""
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    cloud.crash("host0")
    detaching = asyncio.ensure_future(detach(cloud, uuid, volume))
    failed = OperationState.FAILED
    await cloud.until(lambda: failed in [one.state for one in cloud.operations(uuid, "detach-volume")], within=900)
    await asyncio.gather(detaching, return_exceptions=True)
    await cloud.boot("host0")
    await cloud.rest(debts=True)
    agrees(cloud, uuid, volume)


@pytest.mark.spec("VOL-38", "VOL-44", "VOL-54")
@in_cloud()
async def test_the_volume_service_is_away_when_the_guest_has_let_go(cloud: SmallCloud) -> None:
    """The volume is gone for the user; its attachment goes later."""
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    cloud.volumes.fail["delete_attachment"] = Always([AWAY])
    await detach(cloud, uuid, volume)
    assert cloud.devices(uuid) == []
    entry = cloud.operation(uuid, "detach-volume").entries[-1]
    assert (entry.step, entry.state) == ("release volume", EntryState.OWED)
    cloud.heal()
    await cloud.rest(debts=True)
    agrees(cloud, uuid)
    assert cloud.volumes.find(volume).status == "available"


@pytest.mark.spec("VOL-45", "VOL-54")
@in_cloud()
async def test_a_volume_of_which_only_the_record_is_left_is_detached(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    guest = cloud.guest(uuid)
    assert guest is not None
    guest.volumes.clear()
    cloud.volumes.held.clear()
    del cloud.volumes.volumes[volume]
    await detach(cloud, uuid, volume)
    agrees(cloud, uuid)


@pytest.mark.spec("VOL-45")
@pytest.mark.parametrize("place", ["begin detaching", "detach volume", "release volume"])
def test_a_detach_goes_on_after_a_crash(place: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        volume = await cloud.attach(uuid)
        await crash_at(cloud, place, detach(cloud, uuid, volume))
        agrees(cloud, uuid)
        assert cloud.volumes.find(volume).status == "available"

    story()


@pytest.mark.spec("VOL-36")
@in_cloud()
async def test_the_volume_that_a_server_boots_from_stays(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    (device,) = cloud.devices(uuid)
    await cloud.databases.cell.write(
        lambda conn: block_devices.update(conn, device.uuid, now=1.0, was=tuple(AttachState), boot_index=0)
    )
    with pytest.raises(InvalidInput, match="root device"):
        await detach(cloud, uuid, volume)
    assert cloud.devices(uuid)[0].state is AttachState.ATTACHED
