"""Snapshots of a guest with an operating system, and a guest that boots from one."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from pathlib import Path

import libvirt
import pytest
import uvloop
from libvirt_installations import (
    Installation,
    empty_guest,
    eventually,
    make_installation,
    qemu_pid,
    remove_installation,
)

from kilonova.domain.states import PowerState
from kilonova.guestimage.build import build
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt.description import domain_name
from kilonova.hypervisor.libvirt.driver import LibvirtDriver

READY = b"LOGIN READY"
BOOT_LIMIT = 120.0


@pytest.mark.timeout(400)
@pytest.mark.spec("SNP-13")
def test_a_guest_boots_from_the_snapshot_of_one_that_runs(tmp_path: Path) -> None:
    image = build(tmp_path / "guest.qcow2")
    uvloop.run(_copy_a_guest(make_installation(), image, tmp_path))


async def _copy_a_guest(installation: Installation, image: Path, directory: Path) -> None:
    driver = installation.driver()
    try:
        await driver.start(lambda _event: None)
        guest = empty_guest(image=installation.images.add(image), root_gib=1, memory_mib=128, properties={})
        await _boot(driver, guest)
        process = qemu_pid(installation, domain_name(guest.uuid))
        files = installation.directory / "guests/instances" / guest.uuid
        (files / ".snapshot-of-a-life-before.partial").write_bytes(b"left over")
        for running in (True, False):
            if not running:
                await driver.power_off(guest.uuid, grace=0, interval=0)
            snapshot = directory / f"snapshot-{running}.qcow2"
            await _take(driver, guest, snapshot)
            assert [name for name in files.iterdir() if "snapshot" in name.name] == []
            if running:
                assert await driver.power_state(guest.uuid) is PowerState.RUNNING
                assert qemu_pid(installation, domain_name(guest.uuid)) == process
            second = empty_guest(image=installation.images.add(snapshot), root_gib=1, memory_mib=128, properties={})
            await _boot(driver, second)
            await driver.destroy(second.uuid)
        await driver.close()
    finally:
        await remove_installation(installation)


async def _take(driver: LibvirtDriver, guest: Guest, target: Path) -> None:
    image_id = str(uuid.uuid4())
    await driver.snapshot(guest.uuid, image_id)
    with target.open("wb") as file:
        async for chunk in driver.snapshot_data(guest.uuid, image_id):
            file.write(chunk)
    await driver.discard_snapshot(guest.uuid, image_id)
    _check(target)


def _check(image: Path) -> None:
    """It is sound and depends on no other file."""
    subprocess.run(["qemu-img", "check", "-q", str(image)], check=True)
    info = subprocess.run(["qemu-img", "info", str(image)], check=True, capture_output=True, text=True).stdout
    assert "backing file" not in info


async def _boot(driver: LibvirtDriver, guest: Guest) -> None:
    await driver.create_disks(guest)
    await driver.spawn(guest)

    async def booted() -> bool:
        return READY in await driver.console_output(guest.uuid, 100_000)

    await eventually(booted, BOOT_LIMIT)


async def test_a_copy_that_nobody_waits_for_any_more_is_ended(
    driver: LibvirtDriver, shared_installation: Installation, tmp_path: Path
) -> None:
    file = tmp_path / "full.raw"
    file.write_bytes(b"\1" * (48 << 20))
    guest = empty_guest(image=shared_installation.images.add(file, disk_format="raw"), root_gib=1)
    await driver.create_disks(guest)
    await driver.spawn(guest)
    connection = libvirt.open(shared_installation.daemon().uri)
    domain = connection.lookupByUUIDString(guest.uuid)
    files = shared_installation.directory / "guests/instances" / guest.uuid
    image_id = str(uuid.uuid4())
    for pause in (0.0, 0.05, 0.2):
        copying = asyncio.create_task(driver.snapshot(guest.uuid, image_id))
        await asyncio.sleep(pause)
        copying.cancel()
        await asyncio.gather(copying, return_exceptions=True)
        await driver.discard_snapshot(guest.uuid, image_id)
        assert domain.jobStats(0).get("type") == libvirt.VIR_DOMAIN_JOB_NONE
        assert [name for name in files.iterdir() if "snapshot" in name.name] == []
    assert domain.isActive() == 1
    await driver.snapshot(guest.uuid, image_id)
    assert len([name for name in files.iterdir() if "snapshot" in name.name]) == 1
    connection.close()
