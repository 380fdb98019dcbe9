"""Exchanging the disks of a guest: what is on them, and that a real guest boots from the new ones."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import msgspec
import pytest
import uvloop
from libvirt_installations import (
    FileImages,
    Installation,
    empty_guest,
    eventually,
    make_installation,
    remove_installation,
)

from kilonova.domain.errors import InvalidInput
from kilonova.domain.image import Image
from kilonova.guestimage.build import build
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt.driver import LibvirtDriver

READY = b"LOGIN READY"
BOOT_LIMIT = 120.0


def add_image(images: FileImages, directory: Path, name: str) -> Image:
    """An image without anything in it."""
    path = directory / f"{name}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "10M"], check=True)
    return images.add(path)


def image_of(disk: Path) -> str:
    """The id of the image that a disk reads through to."""
    said = subprocess.run(
        ["qemu-img", "info", "--output=json", "-U", str(disk)], check=True, capture_output=True, text=True
    )
    backing = Path(json.loads(said.stdout)["full-backing-filename"])
    assert backing.exists()
    return backing.stem


def contents(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.endswith(".sock"))


@pytest.fixture
def two(images: FileImages, tmp_path: Path) -> tuple[Guest, Guest, Path]:
    """A guest as it is and as it is to be, with all kinds of disks; and where images lie."""
    first, second = (add_image(images, tmp_path, name) for name in ("first", "second"))
    before = empty_guest(
        image=first, root_gib=1, ephemeral_gib=1, swap_mib=1, config_drive=True,
        properties={"hw_firmware_type": "uefi", "hw_video_model": "none"},
    )
    return before, msgspec.structs.replace(before, image=second), tmp_path


@pytest.fixture
def directory(shared_installation: Installation, two: tuple[Guest, Guest, Path]) -> Path:
    return shared_installation.directory / "guests/instances" / two[0].uuid


def write_mark(path: Path, mark: bytes) -> None:
    with path.open("r+b") as file:
        file.write(mark)


def has_mark(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(mark)) == mark


@pytest.mark.parametrize("keep", [True, False])
async def test_every_disk_is_new_except_those_to_be_kept(
    driver: LibvirtDriver, two: tuple[Guest, Guest, Path], directory: Path, keep: bool
) -> None:
    before, after, _ = two
    await driver.create_disks(before)
    await driver.spawn(before, paused=True)
    for name in ("disk.ephemeral", "disk.swap"):
        write_mark(directory / name, b"mark")
    await driver.prepare_disks(after, keep_ephemeral=keep)
    assert image_of(directory / "disk") == before.image.id  # type: ignore[union-attr]
    await driver.destroy(before.uuid)
    (directory / "uefi-variables.fd").write_bytes(b"of the old guest")
    for _ in range(2):
        await driver.replace_disks(after)
    assert image_of(directory / "disk") == after.image.id  # type: ignore[union-attr]
    for name in ("disk.ephemeral", "disk.swap"):
        assert has_mark(directory / name, b"mark") is keep
    await driver.spawn(after, paused=True)
    assert not has_mark(directory / "uefi-variables.fd", b"of the old guest")
    await driver.drop_old_disks(after.uuid)
    assert contents(directory) == [
        "console.log", "disk", "disk.config", "disk.ephemeral", "disk.swap", "uefi-variables.fd"]


async def test_old_disks_come_back_with_all_that_was_on_them(
    driver: LibvirtDriver, two: tuple[Guest, Guest, Path], directory: Path
) -> None:
    before, after, _ = two
    await driver.create_disks(before)
    write_mark(directory / "disk.ephemeral", b"mark")
    await driver.prepare_disks(after, keep_ephemeral=False)
    await driver.replace_disks(after)
    await driver.spawn(after, paused=True)
    await driver.destroy(after.uuid)
    await driver.restore_disks(before.uuid)
    assert image_of(directory / "disk") == before.image.id  # type: ignore[union-attr]
    assert has_mark(directory / "disk.ephemeral", b"mark")
    assert not (directory / "old").exists()
    await driver.spawn(before, paused=True)


async def test_an_exchange_that_was_cut_off_half_way_is_completed_or_undone(
    driver: LibvirtDriver, two: tuple[Guest, Guest, Path], directory: Path
) -> None:
    before, after, _ = two
    await driver.create_disks(before)
    for back in (True, False):
        await driver.prepare_disks(after, keep_ephemeral=False)
        (directory / "old").mkdir()
        (directory / "disk").replace(directory / "old/disk")  # and then the power went
        if back:
            await driver.restore_disks(before.uuid)
        else:
            await driver.replace_disks(after)
        wanted = before if back else after
        assert image_of(directory / "disk") == wanted.image.id  # type: ignore[union-attr]
        assert not [name for name in contents(directory) if name.startswith("prepared-")]


async def test_an_image_that_is_no_good_is_found_before_anything_is_touched(
    driver: LibvirtDriver, two: tuple[Guest, Guest, Path], directory: Path, images: FileImages
) -> None:
    before, after, tmp_path = two
    await driver.create_disks(before)
    (tmp_path / "hostile").write_bytes(b"QFI\xfb no image")
    bad = msgspec.structs.replace(after, image=images.add(tmp_path / "hostile"))
    with pytest.raises(InvalidInput):
        await driver.prepare_disks(bad, keep_ephemeral=False)
    await driver.restore_disks(before.uuid)
    assert image_of(directory / "disk") == before.image.id  # type: ignore[union-attr]
    assert contents(directory) == ["disk", "disk.config", "disk.ephemeral", "disk.swap"]


@pytest.mark.timeout(400)
@pytest.mark.spec("RBD-46", "RBD-49")
def test_a_guest_boots_from_its_new_disk(tmp_path: Path) -> None:
    uvloop.run(_rebuilt(make_installation(), build(tmp_path / "guest.qcow2")))


async def _rebuilt(installation: Installation, file: Path) -> None:
    driver = installation.driver()
    await driver.start(lambda _event: None)
    try:
        image, other = installation.images.add(file), installation.images.add(file)
        guest = empty_guest(image=image, root_gib=1, memory_mib=128, properties={})
        await driver.create_disks(guest)
        await driver.spawn(guest)

        async def booted() -> bool:
            return READY in await driver.console_output(guest.uuid, 100_000)

        await eventually(booted, BOOT_LIMIT)
        await driver.prepare_disks(msgspec.structs.replace(guest, image=other), keep_ephemeral=False)
        await driver.power_off(guest.uuid, grace=60, interval=5)
        await driver.destroy(guest.uuid)
        await driver.replace_disks(guest)
        assert image_of(installation.directory / "guests/instances" / guest.uuid / "disk") == other.id
        await driver.spawn(guest)
        assert READY not in await driver.console_output(guest.uuid, 100_000)
        await eventually(booted, BOOT_LIMIT)
    finally:
        await driver.close()
        await remove_installation(installation)
