"""Building servers with volumes: reserving them, making them, connecting them to a host, and giving up."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from asked_volumes import ROOT, WITHOUT_ID, of_image, of_user
from small_cloud import CONTEXT, OPTIONS, Always, SmallCloud, in_cloud

from kilonova.db.placement.claims import Claim
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.errors import (
    InvalidVolume,
    KilonovaError,
    OverQuota,
    ServiceUnavailable,
    TryElsewhere,
    VolumeAttachmentNotFound,
)
from kilonova.domain.states import VmState
from kilonova.scheduler import placing

SECOND = "11111111-1111-4111-8111-11111111111c"


def waiting(retries: int, interval: float = 3.0) -> Any:
    return msgspec.structs.replace(
        OPTIONS, block_device_allocate_retries=retries, block_device_allocate_retries_interval=interval
    )


async def failed(cloud: SmallCloud, *devices: BlockDevice, image: Any = WITHOUT_ID, **fields: Any) -> str:
    """A server that could not be built."""
    uuid = await cloud.ask(cloud.new(image=image, block_devices=devices, **fields))
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR, within=600)
    await cloud.rest(debts=True, within=600)
    assert cloud.server(uuid).host is None
    assert cloud.guest(uuid) is None
    assert not {one.id for one in cloud.volumes.of_server(uuid)} & cloud.volumes.hosts.keys()
    return uuid


def told(cloud: SmallCloud, uuid: str) -> str:
    fault = cloud.fault(uuid)
    assert fault is not None
    return fault.message


def looks(cloud: SmallCloud) -> int:
    return cloud.volumes.calls.count(("volume", ROOT))


@pytest.mark.spec("BLD-30")
@in_cloud()
async def test_a_guest_learns_of_its_local_disks_with_tags(cloud: SmallCloud) -> None:
    """By the names that they have beside the volumes."""
    brought = of_user(cloud.volumes.add(), device_name="/dev/vdb", tag="data")
    local = (
        BlockDevice(uuid="1", source_type="image", destination_type="local", boot_index=0, tag="boot"),
        BlockDevice(uuid="2", source_type="blank", destination_type="local", volume_size=1, tag="scratch"),
    )
    await cloud.build(block_devices=(brought, *local))
    assert [(disk.device_name, disk.tag, disk.serial) for disk in cloud.guests_made[-1][2].metadata.disks] == [
        ("/dev/vdb", "data", brought.volume_id), ("/dev/vda", "boot", None), ("/dev/vdc", "scratch", None),
    ]


@pytest.mark.spec("BDM-03", "BDM-15", "BDM-21", "BDM-33")
@in_cloud()
async def test_a_server_boots_from_a_volume_that_is_made_for_it(cloud: SmallCloud) -> None:
    brought = cloud.volumes.add()
    uuid = await cloud.build(image=WITHOUT_ID, block_devices=(of_image(), of_user(brought)))
    root, other = cloud.devices(uuid)
    assert {root.state, other.state} == {AttachState.ATTACHED}
    assert (root.volume_id, other.volume_id) == (ROOT, brought)
    for device in (root, other):
        assert device.attachment_id and device.connection_info and device.volume_id
        assert cloud.volumes.find(device.volume_id).status == "in-use"
    guest = cloud.guest(uuid)
    assert guest is not None
    assert set(guest.volumes) == {ROOT, brought}
    assert cloud.server(uuid).root_device_name == "/dev/vda"
    assert cloud.server(uuid).image_ref == ""
    names = [name for name, about in cloud.volumes.calls if about == brought]
    assert names.index("create_attachment") == 0
    assert cloud.states(uuid)[:3] == [
        ("building", "scheduling"), ("building", "block_device_mapping"), ("building", "networking"),
    ]


@pytest.mark.spec("BDM-01", "BDM-02", "BDM-05", "BDM-07", "BDM-10", "VOL-10")
@pytest.mark.parametrize(("retries", "seen"), [(-1, 1), (0, 1), (2, 3)])
@pytest.mark.parametrize("goes", [True, False])
def test_a_volume_that_does_not_get_ready(retries: int, seen: int, goes: bool) -> None:
    @in_cloud(options=waiting(retries, 5.0))
    async def story(cloud: SmallCloud) -> None:
        cloud.volumes.stuck.add(ROOT)
        uuid = await failed(cloud, of_image(delete_on_termination=goes))
        assert looks(cloud) == seen
        assert f"volume {ROOT} was not made; after {(seen - 1) * 5} s and {seen} looks at it, its status is " \
               "downloading." in told(cloud, uuid)
        (device,) = cloud.devices(uuid)
        assert device.volume_id == (None if goes else ROOT)
        assert list(cloud.volumes.volumes) == ([] if goes else [ROOT])
        assert (f"kept: {ROOT}." in told(cloud, uuid)) is not goes

    story()


@pytest.mark.spec("BDM-04", "BDM-10", "BLD-107", "DEL-21", "VOL-10")
@in_cloud(hosts=2)
async def test_a_volume_that_cannot_be_made_ends_the_build_at_once(cloud: SmallCloud) -> None:
    cloud.volumes.spoilt.add(ROOT)
    uuid = await failed(cloud, of_image(), of_image(SECOND, boot_index=None, device_name="/dev/vdb",
                                                    delete_on_termination=True))
    assert told(cloud, uuid).startswith("Block Device Mapping is Invalid: volume")
    assert "its status is error. Volumes that were made for the server are kept: " + ROOT in told(cloud, uuid)
    assert cloud.calls("create_disks") == []
    assert [(one.uuid, one.volume_id) for one in cloud.devices(uuid)] == [(ROOT, ROOT), (SECOND, None)]
    assert list(cloud.volumes.volumes) == [ROOT]
    await cloud.delete(uuid)
    await cloud.rest(debts=True)
    cloud.gone(uuid)
    assert (cloud.devices(uuid), list(cloud.volumes.volumes), cloud.volumes.held) == ([], [ROOT], {})


@pytest.mark.spec("BDM-06")
@in_cloud()
async def test_an_error_of_the_volume_service_ends_the_wait(cloud: SmallCloud) -> None:
    cloud.volumes.fail["volume"] = [ServiceUnavailable("It does not answer.")]
    uuid = await failed(cloud, of_image(delete_on_termination=True))
    assert (looks(cloud), told(cloud, uuid)) == (1, "It does not answer.")
    assert cloud.volumes.volumes == {}


@pytest.mark.spec("BDM-08", "BDM-26", "DEL-44")
@pytest.mark.parametrize("by", ["delete", "reset"])
def test_nothing_is_waited_for_if_the_server_is_deleted(by: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        cloud.volumes.stuck.add(ROOT)
        uuid = await cloud.ask(cloud.new(image=WITHOUT_ID, block_devices=(of_image(delete_on_termination=True),)))
        await cloud.until(lambda: looks(cloud) == 2)
        if by == "delete":
            await cloud.delete(uuid)
            await cloud.until(lambda: cloud.server(uuid).deleted_at is not None, within=10)
        else:
            await cloud.compute.reset_state(CONTEXT, await cloud.located(uuid), active=False)
        await cloud.rest(debts=True)
        assert looks(cloud) <= 3
        assert cloud.faults(uuid) == 0
        assert (cloud.volumes.volumes, cloud.volumes.held) == ({}, {})
        if by == "delete":
            cloud.gone(uuid)
            assert cloud.devices(uuid) == []

    story()


@pytest.mark.spec("BDM-09", "BLD-73")
@pytest.mark.parametrize("place", [
    "make volumes/do/answered", "wait for volumes/do/answered", "connect volumes/do/answered",
    "complete attachments/do/answered",
])
def test_a_build_that_is_taken_up_makes_nothing_twice(place: str) -> None:
    @in_cloud(conductors=2)
    async def story(cloud: SmallCloud) -> None:
        brought = cloud.volumes.add()
        cloud.at[f"build/{place}"] = cloud.crash
        uuid = await cloud.build(image=WITHOUT_ID, block_devices=(of_image(), of_user(brought)))
        assert set(cloud.volumes.volumes) == {ROOT, brought}
        assert {one.attachment_id for one in cloud.devices(uuid)} == set(cloud.volumes.held)
        assert {cloud.volumes.find(one).status for one in (ROOT, brought)} == {"in-use"}
        guest = cloud.guest(uuid)
        assert guest is not None
        assert set(guest.volumes) == {ROOT, brought}

    story()


@pytest.mark.spec("BDM-22")
@in_cloud(hosts=2)
async def test_a_quota_is_told_as_it_is(cloud: SmallCloud) -> None:
    cloud.volumes.fail["create_volume"] = [OverQuota("No more volumes.")]
    uuid = await failed(cloud, of_image())
    failure = cloud.operation(uuid, "build").failure
    assert failure is not None
    assert (failure.kind, failure.message) == ("OverQuota", "No more volumes.")
    assert cloud.calls("create_disks") == []


@pytest.mark.spec("BDM-23", "BDM-27", "BLD-107")
@pytest.mark.parametrize("error", [KilonovaError("The back end is full."), ValueError("password=secret")])
def test_other_errors_are_those_of_block_devices(error: Exception) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        brought = cloud.volumes.add()
        cloud.volumes.fail["update_attachment"] = [error]
        uuid = await failed(cloud, of_user(brought, boot_index=0))
        assert told(cloud, uuid).startswith("Block Device Mapping is Invalid: ")
        assert "secret" not in told(cloud, uuid)
        assert ("The back end is full." in told(cloud, uuid)) is isinstance(error, KilonovaError)

    story()


@pytest.mark.spec("BDM-28", "BDM-34", "BDM-35")
@in_cloud()
async def test_a_volume_that_somebody_else_has_is_not_touched(cloud: SmallCloud) -> None:
    """The server that cannot have it keeps what was reserved for it until it is deleted."""
    theirs, mine = cloud.volumes.add(), cloud.volumes.add()
    other = await cloud.build()
    await cloud.attach(other, theirs)
    uuid = await failed(
        cloud, of_user(mine), of_user(theirs, SECOND, device_name="/dev/vdc", delete_on_termination=True),
    )
    assert f"{theirs} is in-use" in told(cloud, uuid)
    (device,) = cloud.devices(uuid)
    assert (device.volume_id, device.state) == (mine, AttachState.RESERVED)
    assert [one.id for one in cloud.volumes.of_server(uuid)] == [device.attachment_id]
    await cloud.delete(uuid)
    await cloud.rest(debts=True)
    cloud.gone(uuid)
    assert (cloud.volumes.find(mine).status, cloud.volumes.find(theirs).status) == ("available", "in-use")
    assert [one.volume_id for one in cloud.devices(other)] == [theirs]


@pytest.mark.spec("BDM-28", "BLD-72", "BLD-73")
@pytest.mark.parametrize("step", ["create_disks", "spawn"])
def test_another_host_gets_the_volumes(step: str) -> None:
    @in_cloud(hosts=2)
    async def story(cloud: SmallCloud) -> None:
        brought = cloud.volumes.add()
        cloud.fail(step, TryElsewhere("no"))
        uuid = await cloud.build(image=WITHOUT_ID, block_devices=(of_image(), of_user(brought)))
        host = cloud.server(uuid).host
        assert [name for name, about in cloud.volumes.calls if (name, about) == ("create_volume", ROOT)] == [
            "create_volume"]
        assert set(cloud.volumes.hosts.values()) == {host}
        assert {one.attachment_id for one in cloud.devices(uuid)} == set(cloud.volumes.held)
        assert len(cloud.volumes.held) == 2
        assert cloud.violations == []

    story()


@pytest.mark.spec("BDM-28", "BLD-73", "BLD-74")
def test_what_was_made_to_go_goes_if_no_other_host_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """The build fails before it comes, on the second host, to where volumes are made."""
    @in_cloud(hosts=2)
    async def story(cloud: SmallCloud) -> None:
        cloud.fail("spawn", TryElsewhere("no"))

        def fill(_process: str) -> None:
            monkeypatch.setattr(placing.claims, "claim", lambda *_a, **_k: Claim.GROUP)

        cloud.at["build/start guest/undo/before"] = fill
        uuid = await failed(cloud, of_image(delete_on_termination=True))
        assert "cannot be had" in told(cloud, uuid)
        assert (cloud.volumes.volumes, cloud.volumes.held) == ({}, {})

    story()


@pytest.mark.spec("BLD-72")
@in_cloud(hosts=2)
async def test_a_reservation_that_cannot_be_had_again_ends_the_build(cloud: SmallCloud) -> None:
    brought = cloud.volumes.add()
    cloud.fail("spawn", TryElsewhere("no"))

    def take(_process: str) -> None:
        cloud.volumes.fail["create_attachment"] = [InvalidVolume("Somebody else has it.")] * 2

    cloud.at["build/connect volumes/undo/before"] = take
    uuid = await failed(cloud, of_user(brought))
    assert told(cloud, uuid).endswith("Somebody else has it.")
    assert (cloud.devices(uuid), cloud.volumes.held) == ([], {})


@pytest.mark.spec("BDM-28", "BLD-74", "BLD-78", "DEL-22")
@in_cloud()
async def test_a_build_without_another_host_keeps_reservations_and_deletes_what_was_to_go(cloud: SmallCloud) -> None:
    brought = cloud.volumes.add()
    cloud.fail("spawn", KilonovaError("no"))
    uuid = await failed(cloud, of_image(delete_on_termination=True), of_user(brought))
    root, other = cloud.devices(uuid)
    assert (root.volume_id, root.attachment_id, root.connection_info) == (None, None, None)
    assert (other.state, other.connection_info) == (AttachState.RESERVED, None)
    assert list(cloud.volumes.volumes) == [brought]
    assert cloud.volumes.find(brought).status == "reserved"
    assert [one.id for one in cloud.volumes.held.values()] == [other.attachment_id]
    await cloud.delete(uuid)
    await cloud.rest(debts=True)
    cloud.gone(uuid)
    assert (cloud.devices(uuid), cloud.volumes.held) == ([], {})


@pytest.mark.spec("BDM-36")
@in_cloud()
async def test_what_cannot_be_undone_is_owed_and_the_first_error_told(cloud: SmallCloud) -> None:
    brought = cloud.volumes.add()
    cloud.fail("spawn", KilonovaError("no"))
    cloud.at["build/start guest/undo/before"] = lambda _process: cloud.volumes.fail.update({
        call: Always([ServiceUnavailable("away")]) for call in ("create_attachment", "delete_volume")
    })
    uuid = await cloud.ask(cloud.new(
        image=WITHOUT_ID, block_devices=(of_image(delete_on_termination=True), of_user(brought)),
    ))
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR, within=3600)
    assert told(cloud, uuid) == "no"
    cloud.heal()
    await cloud.rest(debts=True, within=600)
    assert list(cloud.volumes.volumes) == [brought]
    assert cloud.volumes.hosts == {}
    assert cloud.volumes.find(brought).status == "reserved"


@pytest.mark.spec("BDM-26", "BLD-76", "DEL-59")
@pytest.mark.parametrize("place", [
    "make volumes/do/before", "make volumes/do/answered", "wait for volumes/do/before", "connect volumes/do/before",
    "connect volumes/do/answered", "create disks/do/before", "start guest/do/before",
])
def test_a_build_whose_record_is_gone_cleans_up_after_itself(place: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        brought = cloud.volumes.add()
        uuid = cloud.new().instance.uuid
        cloud.at[f"build/{place}"] = lambda _process: cloud.wire.spawn(cloud.erase(uuid))
        await cloud.ask(cloud.new(
            uuid=uuid, image=WITHOUT_ID, block_devices=(of_image(delete_on_termination=True), of_user(brought)),
        ))
        await cloud.until(lambda: cloud.boundaries and cloud.operations(uuid, "build"))
        await cloud.rest(debts=True)
        assert cloud.guest(uuid) is None
        assert cloud.faults(uuid) == 0
        assert (list(cloud.volumes.volumes), cloud.volumes.held) == ([brought], {})
        assert cloud.devices(uuid) == []
        failure = cloud.operation(uuid, "build").failure
        assert failure is not None
        assert failure.kind == "InstanceNotFound"

    story()


@pytest.mark.spec("DEL-50", "DEL-52")
@in_cloud()
async def test_a_server_that_is_deleted_before_it_has_a_cell_leaves_no_reservation(cloud: SmallCloud) -> None:
    brought = cloud.volumes.add()
    uuid = cloud.new().instance.uuid
    cloud.at["place/record in cell/do/answered"] = lambda _process: cloud.wire.spawn(cloud.delete(uuid))
    await cloud.ask(cloud.new(uuid=uuid, block_devices=(of_user(brought, delete_on_termination=True),)))
    await cloud.rest(debts=True)
    cloud.gone(uuid)
    assert (cloud.devices(uuid), cloud.volumes.held) == ([], {})
    assert cloud.volumes.find(brought).status == "available"


@in_cloud()
async def test_a_guest_that_may_be_left_keeps_its_volumes(cloud: SmallCloud) -> None:
    """They go with it, when the host answers again and the server is deleted."""
    brought = cloud.volumes.add()
    cloud.fail("spawn", KilonovaError("no"))
    cloud.hypervisors["host0"].faults.fail["destroy"] = Always([KilonovaError("not now")])
    uuid = await cloud.ask(cloud.new(
        image=WITHOUT_ID, block_devices=(of_image(delete_on_termination=True), of_user(brought)),
    ))
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR, within=600)
    assert cloud.server(uuid).host == "host0"
    assert {one.state for one in cloud.devices(uuid)} == {AttachState.ATTACHED}
    assert {name: one.status for name, one in cloud.volumes.volumes.items()} == {ROOT: "in-use", brought: "in-use"}
    cloud.heal()
    await cloud.delete(uuid)
    await cloud.rest(debts=True, within=600)
    cloud.gone(uuid)
    assert (list(cloud.volumes.volumes), cloud.volumes.held) == ([brought], {})


@in_cloud()
async def test_what_completes_late_is_no_failure_of_the_build(cloud: SmallCloud) -> None:
    brought = cloud.volumes.add()
    cloud.volumes.fail["complete_attachment"] = Always([ServiceUnavailable("no")])
    uuid = await cloud.ask(cloud.new(block_devices=(of_user(brought),)))
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ACTIVE, within=3600)
    assert cloud.server(uuid).task_state is None
    cloud.volumes.fail["complete_attachment"] = [VolumeAttachmentNotFound("x")]
    await cloud.rest(debts=True, within=600)
    assert cloud.devices(uuid)[0].state is AttachState.ATTACHED
