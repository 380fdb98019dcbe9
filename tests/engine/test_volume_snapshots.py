"""Snapshots of volumes in use that the hypervisor takes, and deletes, for a volume service."""

from __future__ import annotations

import json

import pytest
from small_cloud import SmallCloud, in_cloud

from kilonova.db import block_devices
from kilonova.domain.block_device import AttachState
from kilonova.domain.errors import Conflict, InvalidVolume, KilonovaError, VolumeNotAttached
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState
from kilonova.hypervisor.volumes import FileMerge, FileSource
from kilonova.operations.delete_volume_snapshot import DELETE_VOLUME_SNAPSHOT, DeleteVolumeSnapshot
from kilonova.operations.detach_volume import DETACH_VOLUME, DetachVolume
from kilonova.operations.take_volume_snapshot import TAKE_VOLUME_SNAPSHOT, TakeVolumeSnapshot

REFUSES = KilonovaError("the storage refuses")
TAKE, DELETE = "take-volume-snapshot", "delete-volume-snapshot"
ALL = FileMerge(file=None)
"""Into the file that the guest writes to."""


async def with_file(cloud: SmallCloud) -> tuple[str, str]:
    """A server with a volume that is a file."""
    uuid, volume = await cloud.build(), cloud.volumes.add()
    cloud.volumes.files.add(volume)
    await cloud.attach(uuid, volume)
    return uuid, volume


async def take(cloud: SmallCloud, uuid: str, volume: str, name: str = "one") -> str:
    """Returns the id of the snapshot."""
    snapshot = cloud.volumes.have_taken(volume)
    await cloud.act(uuid, TAKE_VOLUME_SNAPSHOT, TakeVolumeSnapshot(
        volume_id=volume, snapshot_id=snapshot, new_file=name,
    ))
    return snapshot


async def delete(cloud: SmallCloud, uuid: str, volume: str, merge: FileMerge | None = ALL) -> str:
    snapshot = cloud.volumes.have_taken(volume, "deleting")
    await cloud.act(uuid, DELETE_VOLUME_SNAPSHOT, DeleteVolumeSnapshot(
        volume_id=volume, snapshot_id=snapshot, merge=merge,
    ))
    return snapshot


def written(cloud: SmallCloud, uuid: str, volume: str) -> FileSource:
    """The file that the guest writes to; it starts from no other."""
    guest = cloud.guest(uuid)
    assert guest is not None
    found = guest.volumes[volume]
    assert isinstance(found.defined, FileSource) and found.running in (found.defined, None)
    return found.defined


def below(cloud: SmallCloud, uuid: str, volume: str) -> tuple[str, ...]:
    guest = cloud.guest(uuid)
    assert guest is not None
    return guest.volumes[volume].backing


def recorded(cloud: SmallCloud, uuid: str) -> tuple[str, str]:
    """The file that the record of the server names, and its format."""
    told = json.loads(cloud.devices(uuid)[0].connection_info or "")
    return told["device_path"], told.get("format", "raw")


def status(cloud: SmallCloud, snapshot: str) -> str:
    """That of a snapshot at the volume service, "" when it is gone."""
    return cloud.volumes.snapshots[snapshot].status if snapshot in cloud.volumes.snapshots else ""


@pytest.mark.spec("SNP-33", "EMV-40")
@in_cloud()
async def test_a_guest_writes_to_a_new_file_and_to_the_same_after_a_reboot(cloud: SmallCloud) -> None:
    """The volume service still tells of the file that there was when the volume was attached: it would lose what the
    guest wrote since. Nobody is told of anything but the volume service."""
    uuid, volume = await with_file(cloud)
    for hypervisor in cloud.hypervisors.values():
        hypervisor.agents = {uuid}
    before = cloud.server(uuid), await cloud.actions(uuid), cloud.fault(uuid)
    snapshot = await take(cloud, uuid, volume)
    await cloud.rest()
    new = FileSource(path=f"/pool/{volume}/one", format="qcow2")
    assert (written(cloud, uuid, volume), below(cloud, uuid, volume)) == (new, ("base",))
    assert (status(cloud, snapshot), recorded(cloud, uuid)) == ("available", (new.path, "qcow2"))
    assert (cloud.server(uuid), await cloud.actions(uuid), cloud.fault(uuid)) == before
    guest = cloud.guest(uuid)
    assert guest is not None and (guest.freezes, guest.frozen) == (1, False)
    for reboots in range(2):
        await cloud.reboot(uuid, hard=True)
        await cloud.rest()
        assert (written(cloud, uuid, volume), recorded(cloud, uuid)) == (new, (new.path, "qcow2")), reboots
    second = await take(cloud, uuid, volume, "two")
    await cloud.rest()
    assert (status(cloud, second), below(cloud, uuid, volume)) == ("available", ("one", "base"))


@pytest.mark.spec("SNP-33", "EMV-40")
@in_cloud()
async def test_a_snapshot_is_deleted_by_merging_files(cloud: SmallCloud) -> None:
    """For as long as that takes."""
    uuid, volume = await with_file(cloud)
    for name in ("one", "two", "three"):
        await take(cloud, uuid, volume, name)
        await cloud.rest()
    before = cloud.server(uuid), await cloud.actions(uuid), cloud.fault(uuid)
    cloud.hypervisors[before[0].host or ""].faults.copying = 1000.0
    snapshot = await delete(cloud, uuid, volume, FileMerge(file="one", into="base"))
    await cloud.until(lambda: cloud.calls("merge_state"))
    assert (status(cloud, snapshot), below(cloud, uuid, volume)) == ("deleting", ("two", "one", "base"))
    await cloud.rest(within=2000.0)
    assert (status(cloud, snapshot), below(cloud, uuid, volume)) == ("", ("two", "base"))
    snapshot = await delete(cloud, uuid, volume)
    await cloud.rest(within=2000.0)
    assert (status(cloud, snapshot), below(cloud, uuid, volume)) == ("", ())
    assert recorded(cloud, uuid) == (f"/pool/{volume}/three", "qcow2")
    assert (cloud.server(uuid), await cloud.actions(uuid), cloud.fault(uuid)) == before


@pytest.mark.spec("SNP-34", "SNP-35")
@pytest.mark.parametrize("why", ["off", "no file", "refused", "given up"])
def test_the_volume_service_hears_of_what_cannot_be_done(why: str) -> None:
    """The guest goes on as before, and the server is not blamed."""
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid, volume = await with_file(cloud)
        if why == "off":
            await cloud.stop(uuid)
            await cloud.rest()
        elif why == "no file":
            volume = await cloud.attach(uuid)
        elif why == "refused":
            cloud.always_fail("put_file_above", REFUSES)
            cloud.always_fail("start_merge", REFUSES)
        guest = cloud.guest(uuid)
        assert guest is not None
        had = guest.power_state, guest.volumes
        taken = await take(cloud, uuid, volume)
        if why == "given up":
            del cloud.volumes.snapshots[taken]
        await cloud.rest(debts=True)
        deleted = await delete(cloud, uuid, volume)
        if why == "given up":
            del cloud.volumes.snapshots[deleted]
        await cloud.rest(debts=True)
        expected = ("", "") if why == "given up" else ("error", "error_deleting")
        assert (status(cloud, taken), status(cloud, deleted)) == expected
        guest = cloud.guest(uuid)
        assert guest is not None and (guest.power_state, guest.volumes, guest.frozen) == (*had, False)
        assert [cloud.operation(uuid, kind).state for kind in (TAKE, DELETE)] == [OperationState.FAILED] * 2
        assert cloud.fault(uuid) is None

    story()


@in_cloud()
async def test_a_service_that_names_no_files_gets_none_merged(cloud: SmallCloud) -> None:
    uuid, volume = await with_file(cloud)
    for merge in (None, FileMerge(file=None, into="base")):
        snapshot = await delete(cloud, uuid, volume, merge)
        await cloud.rest(debts=True)
        assert status(cloud, snapshot) == "error_deleting"
    assert cloud.calls("start_merge") == []


@pytest.mark.spec("SNP-36")
@in_cloud()
async def test_nothing_else_is_done_with_the_server_meanwhile(cloud: SmallCloud) -> None:
    """A volume that is not attached is refused at once."""
    uuid, volume = await with_file(cloud)
    await take(cloud, uuid, volume)
    await cloud.rest()
    cloud.hypervisors[cloud.server(uuid).host or ""].faults.copying = 30.0
    snapshot = await delete(cloud, uuid, volume)
    await cloud.until(lambda: cloud.calls("merge_state"))
    await cloud.act(uuid, DETACH_VOLUME, DetachVolume(volume))  # which waits
    assert status(cloud, snapshot) == ""
    await cloud.rest()
    assert cloud.devices(uuid) == []
    with pytest.raises(VolumeNotAttached):
        await take(cloud, uuid, volume)
    await cloud.attach(uuid, volume)
    (device,) = cloud.devices(uuid)
    await cloud.databases.cell.write(lambda conn: block_devices.update(
        conn, device.uuid, now=cloud.now, was=tuple(AttachState), connection_info=None,
    ))
    with pytest.raises(InvalidVolume):
        await take(cloud, uuid, volume)
    await cloud.change(uuid, task_state=TaskState.REBUILDING)
    with pytest.raises(Conflict):
        await take(cloud, uuid, volume)
    await cloud.change(uuid, task_state=None)


@pytest.mark.spec("SNP-37")
@pytest.mark.parametrize("place", [
    "find snapshot/do/answered", "check guest/do/answered", "put new file above/do/effect",
    "put new file above/do/answered", "tell volume service/do/before",
])
def test_a_snapshot_outlives_the_process_that_takes_it(place: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid, volume = await with_file(cloud)
        died: list[str] = []

        def die(process: str) -> None:
            died.append(process)
            cloud.crash(process)

        cloud.at[place] = die
        snapshot = await take(cloud, uuid, volume)
        await cloud.until(lambda: died)
        await cloud.boot(died[0])
        await cloud.rest()
        assert status(cloud, snapshot) == "available"
        assert (written(cloud, uuid, volume).path, recorded(cloud, uuid)[0]) == (f"/pool/{volume}/one",) * 2

    story()


@pytest.mark.spec("SNP-37")
@in_cloud()
async def test_an_error_after_the_guest_has_changed_over_does_not_take_it_back(cloud: SmallCloud) -> None:
    """The file systems that were held still may have become free only later."""
    uuid, volume = await with_file(cloud)
    for hypervisor in cloud.hypervisors.values():
        hypervisor.agents = {uuid}
    cloud.fail("thaw", *[REFUSES] * 2)
    snapshot = await take(cloud, uuid, volume)
    await cloud.rest(within=1000.0, debts=True)
    assert (status(cloud, snapshot), recorded(cloud, uuid)[0]) == ("available", f"/pool/{volume}/one")
    guest = cloud.guest(uuid)
    assert guest is not None and not guest.frozen


@pytest.mark.spec("SNP-36", "SNP-37")
@in_cloud()
async def test_a_server_is_deleted_while_files_are_merged(cloud: SmallCloud) -> None:
    """The volume service hears that the snapshot is still there."""
    uuid, volume = await with_file(cloud)
    await take(cloud, uuid, volume)
    await cloud.rest()
    cloud.hypervisors[cloud.server(uuid).host or ""].faults.copying = 10_000.0
    snapshot = await delete(cloud, uuid, volume)
    await cloud.until(lambda: cloud.calls("merge_state"))
    await cloud.delete(uuid)
    await cloud.rest(debts=True)
    cloud.gone(uuid)
    assert status(cloud, snapshot) == "error_deleting"
    assert cloud.power(uuid) in (None, PowerState.NOSTATE)
