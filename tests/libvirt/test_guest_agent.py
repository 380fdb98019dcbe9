"""What a real guest is asked for through its agent and told from outside, and guests that have no agent."""

from __future__ import annotations

import base64
import re
import subprocess
from pathlib import Path

import msgspec
import pytest
import uvloop
from libvirt_installations import Installation, empty_guest, eventually, make_installation, remove_installation

from kilonova.domain.errors import Conflict, GuestAgentAway
from kilonova.guestimage.build import build
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt.driver import LibvirtDriver

SECRET = "correct horse battery"
BOOT_LIMIT = 120.0
TELLS = """#!/bin/sh
while :; do
    echo "SHADOW=$(head -n 1 /etc/shadow)."
    grep -q '^root:[$]' /etc/shadow && rm -f /usr/sbin/chpasswd && echo NO MORE
    usleep 300000
done
"""
"""What the guest runs: it tells the hash of its password, and sets it only once."""


@pytest.mark.timeout(400)
@pytest.mark.spec("PWD-04", "DIA-01", "PWR-26")
def test_what_a_guest_is_asked_and_told(tmp_path: Path) -> None:
    image = build(tmp_path / "guest.qcow2")
    uvloop.run(_ask(make_installation(), image))


async def _ask(installation: Installation, image: Path) -> None:
    try:
        await _set_password(installation, image)
    finally:
        await remove_installation(installation)


async def _set_password(installation: Installation, image: Path) -> None:
    driver = installation.driver()
    await driver.start(lambda _event: None)
    guest = empty_guest(
        image=installation.images.add(image), root_gib=1, memory_mib=128, config_drive=True, properties={},
    )
    script = base64.b64encode(TELLS.encode()).decode()
    guest = msgspec.structs.replace(guest, metadata=msgspec.structs.replace(guest.metadata, user_data=script))
    await driver.create_disks(guest)
    await driver.spawn(guest)
    with pytest.raises(GuestAgentAway):  # it is still booting
        await driver.set_password(guest.uuid, "root", "too early")

    async def hashed() -> str:
        console = await driver.console_output(guest.uuid, 1 << 20)
        found: list[bytes] = re.findall(rb"SHADOW=root:([^:]*):", console)
        return found[-1].decode() if found else ""

    async def is_set() -> bool:
        stored = await hashed()
        return stored.startswith("$6$") and _hash_of(SECRET, salt=stored.split("$")[2]) == stored

    async def sets_no_more() -> bool:
        return b"NO MORE" in await driver.console_output(guest.uuid, 1 << 20)

    async def tells() -> bool:
        return await hashed() != ""

    await eventually(tells, BOOT_LIMIT)
    assert not await is_set()
    await driver.set_password(guest.uuid, "root", SECRET)
    await eventually(is_set, 30.0)
    await eventually(sets_no_more, 30.0)
    with pytest.raises(Conflict, match="refused to set the password") as caught:
        await driver.set_password(guest.uuid, "root", SECRET)
    assert SECRET not in str(caught.value)
    await _look_inside(driver, guest)
    await driver.destroy(guest.uuid)
    await driver.delete_disks(guest.uuid)
    await driver.close()


async def _look_inside(driver: LibvirtDriver, guest: Guest) -> None:
    """Real numbers of the guest, and an interrupt that its kernel notices."""
    before = await driver.diagnostics(guest.uuid)
    assert before.memory.maximum == guest.memory_mib
    assert before.cpus[0].time
    (root, _config_drive) = before.disks
    assert root.read_bytes
    assert root.read_requests
    own = await driver.own_diagnostics(guest.uuid)
    assert own["vda_read"] >= root.read_bytes
    assert own["memory"] == guest.memory_mib * 1024
    await driver.inject_nmi(guest.uuid)

    async def noticed() -> bool:
        return b"NMI received" in await driver.console_output(guest.uuid, 1 << 20)

    await eventually(noticed, 30.0)
    first = before.cpus[0].time

    async def counted() -> bool:  # in steps of 10 ms
        time = (await driver.diagnostics(guest.uuid)).cpus[0].time
        return time is not None and time > first

    await eventually(counted, 30.0)


def _hash_of(password: str, *, salt: str) -> str:
    command = ["openssl", "passwd", "-6", "-salt", salt, password]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


async def test_a_guest_that_cannot_have_an_agent_is_told_as_such(driver: LibvirtDriver) -> None:
    guest = empty_guest(properties={"hw_video_model": "none", "hw_qemu_guest_agent": "no"})
    await driver.create_disks(guest)
    await driver.spawn(guest)
    with pytest.raises(Conflict, match="QEMU guest agent is not enabled") as caught:
        await driver.set_password(guest.uuid, "root", SECRET)
    assert not isinstance(caught.value, GuestAgentAway)
