"""A real guest boots from a rescue disk with its own disk beside it, and from its own disk again."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import msgspec
import pytest
import uvloop
from libvirt_installations import Installation, empty_guest, eventually, make_installation, remove_installation

from kilonova.domain.image import Image
from kilonova.guestimage.build import build
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt.driver import LibvirtDriver

READY = b"LOGIN READY"
BOOT_LIMIT = 120.0
SIZES = re.compile(rb"(vd[a-z])=(\d+)MiB")

STABLE = {"hw_rescue_device": "disk", "hw_rescue_bus": "virtio"}


@pytest.mark.timeout(600)
@pytest.mark.spec("RSC-11", "RSC-21")
def test_a_rescued_guest_sees_its_own_disk_as_the_second_one(tmp_path: Path) -> None:
    uvloop.run(_rescue(build(tmp_path / "guest.qcow2"), {}, first="rescue"))


@pytest.mark.timeout(600)
@pytest.mark.spec("RSC-11")
def test_in_a_stable_rescue_the_guests_own_disk_stays_the_first_one(tmp_path: Path) -> None:
    uvloop.run(_rescue(build(tmp_path / "guest.qcow2"), STABLE, first="own"))


async def _rescue(file: Path, properties: dict[str, str], *, first: str) -> None:
    installation = make_installation()
    driver = installation.driver()
    await driver.start(lambda _event: None)
    try:
        image = installation.images.add(file)
        rescue = msgspec.structs.replace(installation.images.add(file), properties=properties)
        guest = empty_guest(image=image, root_gib=1, memory_mib=128, properties={}, config_drive=True)
        await _boots_and_comes_back(installation, driver, guest, rescue, first)
    finally:
        await driver.close()
        await remove_installation(installation)


async def _boots_and_comes_back(
    installation: Installation, driver: LibvirtDriver, guest: Guest, image: Image, first: str
) -> None:
    directory = installation.directory / "guests/instances" / guest.uuid
    await driver.create_disks(guest)
    await driver.spawn(guest)
    (own,) = await _sizes_after_boot(driver, guest, 1)
    assert own == 1024

    rescued = msgspec.structs.replace(guest, rescue=image)
    await driver.prepare_rescue(rescued)
    await driver.power_off(guest.uuid, grace=60, interval=5)
    _blank(directory / "disk")  # so that nothing but the rescue disk can be booted from
    await driver.power_on(rescued)
    sizes = await _sizes_after_boot(driver, guest, 2)
    assert [size == 1024 for size in sizes] == ([False, True] if first == "rescue" else [True, False])
    await driver.power_off(guest.uuid, grace=60, interval=5)
    _fill_again(directory / "disk")
    await driver.drop_rescue(guest.uuid)
    assert not [name for name in _names(directory) if "rescue" in name]
    await driver.power_on(guest)
    assert await _sizes_after_boot(driver, guest, 3) == [1024]


async def _sizes_after_boot(driver: LibvirtDriver, guest: Guest, boots: int) -> list[int]:
    """Sizes of the disks in MiB, in the order of their names, as the guest tells them when it has booted."""

    async def booted() -> bool:
        return (await driver.console_output(guest.uuid, 1 << 20)).count(READY) == boots

    await eventually(booted, BOOT_LIMIT)
    console = await driver.console_output(guest.uuid, 1 << 20)
    last = console.split(READY)[boots - 1]
    return [int(size) for _, size in sorted(SIZES.findall(last))]


def _blank(disk: Path) -> None:
    """Put an empty disk of the same size in place of a guest's own."""
    owner = disk.stat()
    disk.rename(disk.with_suffix(".kept"))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1G"], check=True)
    os.chown(disk, owner.st_uid, owner.st_gid)
    disk.chmod(0o600)


def _fill_again(disk: Path) -> None:
    disk.with_suffix(".kept").rename(disk)


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]
