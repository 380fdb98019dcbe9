"""Volumes of guests as the volume service describes them, and a simulated host that does wrong."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest
from libvirt_installations import empty_guest

from kilonova.domain.block_device import BlockDevice
from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import InvalidInput, KilonovaError, NotSupported, TryElsewhere
from kilonova.hypervisor.fake import FakeDriver, FakeHypervisor
from kilonova.hypervisor.volumes import CopyState, FileSource, GuestVolume, NbdSource, guest_volume
from kilonova.shapes.limits import DiskLimits

NBD = {"driver_volume_type": "nbd", "export": "vol", "socket": "/run/pool/nbd", "access_mode": "rw"}


def device(info: dict[str, object] | None, **changes: object) -> BlockDevice:
    values: dict[str, object] = {
        "uuid": "u", "source_type": "volume", "destination_type": "volume", "volume_id": "v",
        "connection_info": None if info is None else json.dumps(info),
    }
    return BlockDevice(**(values | changes))  # type: ignore[arg-type]


def test_a_volume_is_read_from_flat_and_from_nested_connection_info() -> None:
    nested = {"driver_volume_type": "nbd", "data": {name: NBD[name] for name in NBD if name != "driver_volume_type"}}
    plain = GuestVolume(id="v", source=NbdSource(export="vol", socket="/run/pool/nbd"), write_through=True)
    assert guest_volume(device(NBD)) == guest_volume(device(nested)) == plain


def test_all_of_a_volume_is_read() -> None:
    info = {
        "driver_volume_type": "nbd", "multiattach": True, "data": {
            "export": "vol", "host": "192.0.2.1", "port": 10810, "tls": True, "access_mode": "ro", "discard": True,
            "write_through": False,
            "encrypted": True, "qos_specs": {"read_iops_sec": "5", "other": "x"},
        },
    }
    asked = device(info, device_name="/dev/sdb", device_type="cdrom", disk_bus="scsi", boot_index=1)
    assert guest_volume(asked) == GuestVolume(
        id="v", source=NbdSource(export="vol", host="192.0.2.1", port=10810, tls=True), device_name="/dev/sdb",
        device="cdrom", bus="scsi", boot_index=1, read_only=True, multiattach=True, encrypted=True, discard=True,
        limits=DiskLimits(read_iops_sec=5),
    )
    assert guest_volume(device(NBD, boot_index=-1)).boot_index is None
    local = {"driver_volume_type": "local", "data": {"device_path": "/srv/v.qcow2", "format": "qcow2"}}
    file = GuestVolume(id="v", source=FileSource(path="/srv/v.qcow2", format="qcow2"))
    assert guest_volume(device(local)) == file


@pytest.mark.parametrize("info", [
    None, {"driver_volume_type": "nbd"}, NBD | {"port": "secret", "socket": ""}, NBD | {"qos_specs": {
        "read_iops_sec": "secret"}}, {"export": "secret"},
    NBD | {"qos_specs": "secret"}, {"driver_volume_type": "nbd", "data": "secret"},
])
def test_what_cannot_be_read_is_refused_and_not_told(info: dict[str, object] | None) -> None:
    with pytest.raises(KilonovaError) as refused:
        guest_volume(device(info))
    assert "secret" not in str(refused.value)


def test_what_no_driver_knows_is_refused() -> None:
    with pytest.raises(NotSupported, match="'iscsi'"):
        guest_volume(device({"driver_volume_type": "iscsi", "data": {}}))
    with pytest.raises(InvalidInput, match="'lun'"):
        guest_volume(device(NBD, device_type="lun"))


async def test_a_simulated_host_lies_and_hangs() -> None:
    driver = FakeDriver(FakeHypervisor("host"), SystemClock())
    faults, guest = driver.hypervisor.faults, empty_guest()
    wanted, other = (GuestVolume(id=id_, source=NbdSource(export=id_, socket="/x")) for id_ in ("one", "other"))
    await driver.create_disks(guest)
    await driver.spawn(guest)
    faults.lie = {"attach_volume"}
    await driver.attach_volume(guest, wanted)
    assert await driver.held_volumes() == {}
    faults.lie = {"detach_volume", "start_copy", "extend_volume"}
    await driver.attach_volume(guest, wanted)
    await driver.detach_volume(guest.uuid, "one")
    await driver.start_copy(guest.uuid, "one", other)
    assert (await driver.copy_state(guest.uuid, "one", other)).state is CopyState.NONE
    faults.lie = {"pivot_volume"}
    await driver.start_copy(guest.uuid, "one", other)
    await driver.pivot_volume(guest.uuid, "one", other)
    assert (await driver.copy_state(guest.uuid, "one", other)).state is CopyState.READY
    await driver.abort_copy(guest.uuid, "one")
    faults.hang = {"detach_volume"}
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(driver.detach_volume(guest.uuid, "one"), 0.05)
    faults.hang.clear()
    await driver.detach_volume(guest.uuid, "one")
    assert await driver.held_volumes() == {}


async def test_two_guests_of_a_simulated_host_write_to_one_volume_only_if_it_is_made_for_that() -> None:
    driver = FakeDriver(FakeHypervisor("host"), SystemClock())
    one = GuestVolume(id="one", source=NbdSource(export="one", socket="/x"))
    both = msgspec.structs.replace(one, id="both", multiattach=True)
    first, second = (empty_guest(volumes=(one, both)) for _ in range(2))
    for guest in (first, second):
        await driver.create_disks(guest)
    await driver.spawn(first)
    with pytest.raises(TryElsewhere, match="Volume one"):
        await driver.spawn(second)
    await driver.spawn(msgspec.structs.replace(second, volumes=(both,)))
    with pytest.raises(TryElsewhere, match="Volume one"):
        await driver.attach_volume(second, one)


async def test_the_volumes_of_a_simulated_guest_survive_a_suspend_and_a_new_process(tmp_path: Path) -> None:
    driver = FakeDriver(FakeHypervisor("host", tmp_path), SystemClock())
    guest = empty_guest(volumes=(GuestVolume(id="one", source=NbdSource(export="one", socket="/x")),))
    await driver.create_disks(guest)
    await driver.spawn(guest)
    running = await driver.held_volumes()
    await driver.suspend(guest.uuid)
    assert (await driver.held_volumes())[guest.uuid][0].running is None
    await driver.wake(guest.uuid)
    assert await FakeDriver(FakeHypervisor("host", tmp_path), SystemClock()).held_volumes() == running
