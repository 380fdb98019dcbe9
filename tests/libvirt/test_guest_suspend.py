"""A guest with an operating system is held, put to sleep and woken: what it was doing goes on."""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path

import msgspec
import pytest
import uvloop
from libvirt_installations import Installation, empty_guest, eventually, make_installation, remove_installation

from kilonova.domain.states import PowerState
from kilonova.guestimage.build import build
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt.driver import LibvirtDriver

READY = b"LOGIN READY"
BOOT_LIMIT = 120.0
COUNTER = "#!/bin/sh\nn=0\nwhile :; do n=$((n+1)); echo \"COUNT=$n.\"; usleep 100000; done\n"


@pytest.mark.timeout(400)
@pytest.mark.spec("SUS-01", "SUS-02", "SUS-08", "SUS-11")
def test_a_guest_goes_on_where_it_was(tmp_path: Path) -> None:
    image = build(tmp_path / "guest.qcow2")
    uvloop.run(_count(make_installation(), image))


async def _count(installation: Installation, image: Path) -> None:
    try:
        await _hold_and_wake(installation, image)
    finally:
        await remove_installation(installation)


async def _hold_and_wake(installation: Installation, image: Path) -> None:
    driver = installation.driver()
    await driver.start(lambda _event: None)
    guest = _counting(empty_guest(
        image=installation.images.add(image), root_gib=1, memory_mib=128, config_drive=True, properties={},
    ))
    await driver.create_disks(guest)
    await driver.spawn(guest)
    await _counted_beyond(driver, guest, 3, BOOT_LIMIT)

    await driver.pause(guest.uuid)
    held = await _settled(driver, guest)
    await asyncio.sleep(1.0)
    assert await _counted(driver, guest) == held
    await driver.resume(guest.uuid)
    await _counted_beyond(driver, guest, held + 3)

    await driver.suspend(guest.uuid)
    held = await _settled(driver, guest)
    await driver.close()
    driver = installation.driver()  # another life of the agent
    await driver.start(lambda _event: None)
    assert [found.power_state for found in await driver.guests()] == [PowerState.SUSPENDED]
    await driver.wake(guest.uuid)
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING
    await _counted_beyond(driver, guest, held + 3)
    numbers = _numbers(await driver.console_output(guest.uuid, 1 << 20))
    assert numbers == list(range(1, len(numbers) + 1))
    assert (await driver.console_output(guest.uuid, 1 << 20)).count(READY) == 1

    await driver.suspend(guest.uuid)
    await driver.hard_reboot(guest)
    await eventually(lambda: _booted(driver, guest, 2), BOOT_LIMIT)
    await driver.suspend(guest.uuid)
    await driver.destroy(guest.uuid)
    await driver.delete_disks(guest.uuid)
    saved = [path for path in installation.directory.rglob("*.save") if path.is_file()]
    assert saved == []
    await driver.close()


def _counting(guest: Guest) -> Guest:
    script = base64.b64encode(COUNTER.encode()).decode()
    return msgspec.structs.replace(guest, metadata=msgspec.structs.replace(guest.metadata, user_data=script))


def _numbers(console: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"COUNT=(\d+)\.", console)]


async def _counted(driver: LibvirtDriver, guest: Guest) -> int:
    """The last number that the guest has told."""
    return max(_numbers(await driver.console_output(guest.uuid, 1 << 20)), default=0)


async def _settled(driver: LibvirtDriver, guest: Guest) -> int:
    """The last number, after what is on its way has reached the record of the console."""
    await asyncio.sleep(0.5)
    return await _counted(driver, guest)


async def _counted_beyond(driver: LibvirtDriver, guest: Guest, number: int, limit: float = 30.0) -> None:
    async def reached() -> bool:
        return await _counted(driver, guest) > number

    await eventually(reached, limit)


async def _booted(driver: LibvirtDriver, guest: Guest, times: int) -> bool:
    return (await driver.console_output(guest.uuid, 1 << 20)).count(READY) == times
