"""A guest that is taken from its host and made anew from the image of its disk: all that it wrote is still there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest
import uvloop
from libvirt_installations import Installation, empty_guest, eventually, make_installation, remove_installation
from test_guest_snapshot import BOOT_LIMIT, READY, _take

from kilonova.domain.states import PowerState
from kilonova.guestimage.build import build
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt.driver import LibvirtDriver

PLACE = "1000M 64k"
"""Where on its disk of 1 GiB the guest has written something."""


@pytest.mark.timeout(400)
@pytest.mark.spec("SHV-33")
def test_what_a_guest_wrote_outlives_its_time_without_a_host(tmp_path: Path) -> None:
    image = build(tmp_path / "guest.qcow2")
    uvloop.run(_shelve_a_guest(make_installation(), image, tmp_path / "shelf.qcow2"))


async def _shelve_a_guest(installation: Installation, image: Path, shelf: Path) -> None:
    driver = installation.driver()
    disk = installation.directory / "guests/instances/{}/disk"
    try:
        await driver.start(lambda _event: None)
        guest = empty_guest(image=installation.images.add(image), root_gib=1, memory_mib=128, properties={})
        await driver.create_disks(guest)
        _qemu_io(Path(str(disk).format(guest.uuid)), f"write -P 0x5a {PLACE}")
        await _start(driver, guest)
        await driver.power_off(guest.uuid, grace=30.0, interval=5.0)
        await _take(driver, guest, shelf)
        await driver.destroy(guest.uuid)
        await driver.delete_disks(guest.uuid)
        assert (await driver.power_state(guest.uuid), await driver.disks()) == (PowerState.NOSTATE, [])
        anew = msgspec.structs.replace(guest, image=installation.images.add(shelf))
        await driver.create_disks(anew)
        await _start(driver, anew)
        await driver.power_off(guest.uuid, grace=0.0, interval=0.0)
        _qemu_io(Path(str(disk).format(guest.uuid)), f"read -P 0x5a {PLACE}")
        await driver.hard_reboot(guest)  # as its record describes it, with the image that it was built from
        await eventually(lambda: _is_ready(driver, guest), BOOT_LIMIT)
        await driver.close()
    finally:
        await remove_installation(installation)


async def _start(driver: LibvirtDriver, guest: Guest) -> None:
    await driver.spawn(guest)
    await eventually(lambda: _is_ready(driver, guest), BOOT_LIMIT)


async def _is_ready(driver: LibvirtDriver, guest: Guest) -> bool:
    return READY in await driver.console_output(guest.uuid, 100_000)


def _qemu_io(disk: Path, command: str) -> None:
    """Fails if a pattern that is read is not there."""
    asked = ["qemu-io", "-f", "qcow2", "-c", command, str(disk)]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert "failed" not in done.stdout
