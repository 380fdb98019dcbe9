"""A guest with an operating system, whose file systems are held still for a copy of its disk."""

from __future__ import annotations

import json
import struct
import subprocess
import uuid
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest
import uvloop
from libvirt_installations import Installation, empty_guest, eventually, make_installation, remove_installation

from kilonova.domain.errors import Conflict, NotSupported
from kilonova.guestimage.build import build
from kilonova.guestimage.disk import DATA_START
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt import agent
from kilonova.hypervisor.libvirt.driver import LibvirtDriver
from kilonova.hypervisor.libvirt.freeze import MARK
from kilonova.shapes.quiesce import Quiesce

BOOT_LIMIT = 240.0
FEATURES = DATA_START + 1024 + 0x60
"""Where an ext4 says what it has that its readers must know."""
NEEDS_RECOVERY = 4


@pytest.mark.timeout(600)
@pytest.mark.spec("QUI-01", "QUI-03", "QUI-08", "QUI-12")
def test_file_systems_are_held_still_for_a_copy(tmp_path: Path) -> None:
    uvloop.run(_in_installation(make_installation(), build(tmp_path / "guest.qcow2"), tmp_path))


async def _in_installation(installation: Installation, image: Path, directory: Path) -> None:
    driver = installation.driver()
    await driver.start(lambda _event: None)
    try:
        guest = empty_guest(image=installation.images.add(image), root_gib=1, memory_mib=128, properties={})
        await driver.create_disks(guest)
        await driver.spawn(guest)
        connection = libvirt.open(installation.daemon().uri)

        async def agent_answers() -> bool:
            try:
                agent.require(connection, guest.uuid)
            except Conflict:
                return False
            return b"LOGIN READY" in await driver.console_output(guest.uuid, 1 << 20)

        await eventually(agent_answers, BOOT_LIMIT)
        assert await _needs_recovery(driver, guest, Quiesce.NO, directory)
        assert not await _needs_recovery(driver, guest, Quiesce.MUST, directory)
        assert _status(connection, guest) == "thawed"
        await driver.close()
        mark = installation.directory / "guests/instances" / guest.uuid / MARK
        assert not mark.exists()

        mark.write_text("99999999999.0")  # as a process does that dies next
        agent.freeze(connection, guest.uuid)
        assert _status(connection, guest) == "frozen"
        driver = installation.driver()
        await driver.start(lambda _event: None)

        async def thawed() -> bool:
            return _status(connection, guest) == "thawed" and not mark.exists()

        await eventually(thawed, 30.0)
        await driver.power_off(guest.uuid, grace=60, interval=5)
        assert not await _needs_recovery(driver, guest, Quiesce.MUST, directory)
        connection.close()
    finally:
        await driver.close()
        await remove_installation(installation)


async def _needs_recovery(driver: LibvirtDriver, guest: Guest, quiesce: Quiesce, directory: Path) -> bool:
    """Whether a file system of a copy was in use."""
    image_id = str(uuid.uuid4())
    await driver.snapshot(guest.uuid, image_id, quiesce=quiesce)
    copy = directory / "copy.qcow2"
    with copy.open("wb") as file:
        async for chunk in driver.snapshot_data(guest.uuid, image_id):
            file.write(chunk)
    await driver.discard_snapshot(guest.uuid, image_id)
    return _was_in_use(copy, directory / "copy.raw")


def _was_in_use(copy: Path, raw: Path) -> bool:
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(copy), str(raw)], check=True)
    with raw.open("rb") as file:
        file.seek(FEATURES)
        (features,) = struct.unpack("<I", file.read(4))
    return bool(features & NEEDS_RECOVERY)


def _status(connection: libvirt.virConnect, guest: Guest) -> str:
    domain = connection.lookupByUUIDString(guest.uuid)
    said = libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": "guest-fsfreeze-status"}), 15, 0)
    return str(json.loads(said)["return"])


async def test_a_guest_that_is_paused_cannot_hold_still(
    driver: LibvirtDriver, shared_installation: Installation, tmp_path: Path
) -> None:
    file = tmp_path / "empty.raw"
    file.write_bytes(bytes(1 << 20))
    guest = empty_guest(image=shared_installation.images.add(file, disk_format="raw"), root_gib=1)
    await driver.create_disks(guest)
    await driver.spawn(guest, paused=True)
    with pytest.raises(NotSupported, match="does not run"):
        await driver.snapshot(guest.uuid, str(uuid.uuid4()), quiesce=Quiesce.MUST)
