"""A guest that starts a kernel directly, from a disk on which there is nothing to boot."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import msgspec
import pytest
import uvloop
from libvirt_installations import Installation, empty_guest, eventually, make_installation, remove_installation

from kilonova.domain.errors import ImageNotFound, InvalidInput
from kilonova.guestimage.build import build
from kilonova.guestimage.disk import BOOT_START
from kilonova.hypervisor.libvirt.driver import LibvirtDriver

BOOT_LIMIT = 240.0


@pytest.mark.timeout(600)
def test_a_guest_starts_its_kernel(tmp_path: Path) -> None:
    image, raw = build(tmp_path / "guest.qcow2"), tmp_path / "guest.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(image), str(raw)], check=True)
    files = _files_of_fat16(raw.read_bytes()[BOOT_START:])
    for name in ("VMLINUZ", "INITRD"):
        (tmp_path / name).write_bytes(files[name])
    (tmp_path / "empty").write_bytes(bytes(1 << 20))
    uvloop.run(_starts(make_installation(), tmp_path))


async def _starts(installation: Installation, directory: Path) -> None:
    images = installation.images
    kernel, ramdisk = (images.add(directory / name, disk_format=form) for name, form in (
        ("VMLINUZ", "aki"), ("INITRD", "ari")))
    disk = images.add(directory / "empty", disk_format="raw")
    driver = installation.driver()
    await driver.start(lambda _event: None)
    try:
        properties = {"kernel_id": kernel.id, "ramdisk_id": ramdisk.id, "hw_video_model": "none"}
        guest = empty_guest(image=disk, root_gib=1, memory_mib=128, properties=properties)
        await driver.create_disks(guest)
        await driver.spawn(guest)
        await _ready(driver, guest.uuid)
        assert b"Command line: root=/dev/vda console=tty0 console=ttyS0\r" in await _console(driver, guest.uuid)
        await driver.power_off(guest.uuid, grace=60, interval=5)

        aged = await driver.age_cache(minimum_age=-60.0)
        assert {kernel.id, ramdisk.id} <= set(aged)
        own = {**properties, "os_command_line": "console=ttyS0 said.by='the image'"}
        told = msgspec.structs.replace(guest, properties=own)
        await driver.hard_reboot(told)
        await _ready(driver, guest.uuid, times=2)
        assert b"Command line: console=ttyS0 said.by='the image'\r" in await _console(driver, guest.uuid)
        await driver.destroy(guest.uuid)
        await driver.delete_disks(guest.uuid)
    finally:
        await driver.close()
        await remove_installation(installation)


async def _ready(driver: LibvirtDriver, uuid: str, *, times: int = 1) -> None:
    async def booted() -> bool:
        return (await _console(driver, uuid)).count(b"LOGIN READY") == times

    await eventually(booted, BOOT_LIMIT)


async def _console(driver: LibvirtDriver, uuid: str) -> bytes:
    return await driver.console_output(uuid, 1 << 20)


def _files_of_fat16(data: bytes) -> dict[str, bytes]:
    """The files in the first directory of a file system."""
    sector, per_cluster, reserved, fats, entries = struct.unpack_from("<HBHBH", data, 11)
    (fat_sectors,) = struct.unpack_from("<H", data, 22)
    root = (reserved + fats * fat_sectors) * sector
    first, cluster = root + entries * 32, per_cluster * sector
    found = {}
    for at in range(root, first, 32):
        name, kind, start, size = data[at:at + 8], data[at + 11], *struct.unpack_from("<HI", data, at + 26)
        if kind & 0x18 or name[0] in (0, 0xE5):
            continue
        content, number = b"", start
        while 2 <= number < 0xFFF8:
            content += data[first + (number - 2) * cluster:first + (number - 1) * cluster]
            (number,) = struct.unpack_from("<H", data, reserved * sector + 2 * number)
        found[name.decode().strip()] = content[:size]
    return found


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    file = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(file), "1M"], check=True)
    return file


@pytest.mark.parametrize(("kernel", "error"), [("nowhere", ImageNotFound), ("disk", InvalidInput)])
async def test_a_kernel_that_is_none(
    driver: LibvirtDriver, shared_installation: Installation, disk: Path, kernel: str, error: type[Exception]
) -> None:
    image = shared_installation.images.add(disk)
    named = {"disk": image.id}.get(kernel, kernel)
    with pytest.raises(error):
        await driver.create_disks(empty_guest(image=image, root_gib=1, properties={"kernel_id": named}))
