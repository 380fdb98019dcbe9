"""A real guest mounts a directory of its host."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import pytest
import uvloop
from libvirt_installations import Installation, empty_guest, eventually, make_installation, remove_installation

from kilonova.domain.states import PowerState
from kilonova.guestimage.build import build
from kilonova.hypervisor.guest import Guest, GuestShare
from kilonova.hypervisor.libvirt.driver import LibvirtDriver

BOOT_LIMIT = 240.0
MOUNTS = """#!/bin/sh
mkdir -p /tmp/share
mount -t virtiofs my-data /tmp/share && cat /tmp/share/from-host >/dev/console && cd /tmp/share &&
    echo "written by the guest" >from-guest && sync && echo SHARE WRITTEN >/dev/console
"""


@pytest.mark.timeout(600)
def test_a_guest_and_its_host_see_the_same_files(tmp_path: Path) -> None:
    directory = tmp_path / "share"
    directory.mkdir()
    (directory / "from-host").write_text("written by the host\n")
    uvloop.run(_shares(build(tmp_path / "guest.qcow2"), directory))
    assert (directory / "from-guest").read_text() == "written by the guest\n"


async def _shares(image: Path, directory: Path) -> None:
    installation = make_installation()
    driver = installation.driver()
    await driver.start(lambda _event: None)
    try:
        await _see_the_same(installation, driver, image, directory)
    finally:
        await driver.close()
        await remove_installation(installation)


async def _see_the_same(installation: Installation, driver: LibvirtDriver, image: Path, directory: Path) -> None:
    guest = _guest(installation, image, GuestShare("my-data", str(directory)))
    await driver.create_disks(guest)
    await driver.spawn(guest)

    async def written() -> bool:
        return b"SHARE WRITTEN" in await driver.console_output(guest.uuid, 1 << 20)

    await eventually(written, BOOT_LIMIT)
    assert b"written by the host" in await driver.console_output(guest.uuid, 1 << 20)
    await driver.power_off(guest.uuid, grace=0.0, interval=1.0)
    await driver.power_on(msgspec.structs.replace(guest, shares=()))
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING
    await driver.destroy(guest.uuid)
    await driver.delete_disks(guest.uuid)


def _guest(installation: Installation, image: Path, share: GuestShare) -> Guest:
    guest = empty_guest(
        image=installation.images.add(image), root_gib=1, memory_mib=256, config_drive=True, shares=(share,),
        properties={"hw_video_model": "none"},
    )
    script = base64.b64encode(MOUNTS.encode()).decode()
    return msgspec.structs.replace(guest, metadata=msgspec.structs.replace(guest.metadata, user_data=script))
