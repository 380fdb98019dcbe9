"""A guest with an operating system, from its image to its end, on the event loop that the product uses."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import msgspec
import pytest
import uvloop
from domain_cases import vif
from libvirt_installations import (
    Installation,
    Listener,
    empty_guest,
    eventually,
    make_installation,
    qemu_pid,
    remove_installation,
)

from kilonova.domain.states import PowerState
from kilonova.guestimage.build import build
from kilonova.hypervisor.guest import Guest, GuestMetadata
from kilonova.hypervisor.libvirt.description import domain_name
from kilonova.hypervisor.libvirt.driver import LibvirtDriver

READY = b"LOGIN READY"
BOOT_LIMIT = 120.0


@pytest.fixture
def bridge() -> Iterator[str]:
    name = f"kn{secrets.token_hex(4)}"
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    yield name
    subprocess.run(["ip", "link", "del", name], check=True)


@pytest.mark.timeout(400)
@pytest.mark.spec("PWR-06", "PWR-08", "IFC-30")
def test_a_guest_boots_is_rebooted_and_shut_down(tmp_path: Path, bridge: str) -> None:
    image = build(tmp_path / "guest.qcow2")
    uvloop.run(_life_of_a_guest(make_installation(), image, bridge))


async def _life_of_a_guest(installation: Installation, image: Path, bridge: str) -> None:
    try:
        await _boot(installation, image, bridge)
    finally:
        await remove_installation(installation)


async def _boot(installation: Installation, image: Path, bridge: str) -> None:
    listener = Listener()
    driver = installation.driver()
    await driver.start(listener)
    tap = f"kt{secrets.token_hex(4)}"
    guest = empty_guest(
        image=installation.images.add(image), root_gib=1, memory_mib=128, config_drive=True,
        vifs=(vif(1, bridge=bridge, devname=tap),), properties={},
    )
    guest = _named(guest)
    await driver.create_disks(guest)
    await driver.plug(guest)
    await driver.spawn(guest, paused=True)
    assert _bridge_of(tap) == bridge
    await driver.resume(guest.uuid)

    async def booted() -> bool:
        return READY in await driver.console_output(guest.uuid, 100_000)

    await eventually(booted, BOOT_LIMIT)
    console = await driver.console_output(guest.uuid, 100_000)
    assert f"uuid={guest.uuid} hostname=booted".encode() in console
    assert b"vda=1024MiB" in console
    assert len(await driver.console_output(guest.uuid, 10)) == 10

    await _hot_plug(driver, installation, guest, bridge)
    process = qemu_pid(installation, domain_name(guest.uuid))
    assert await driver.soft_reboot(guest, wait=60) is True
    assert qemu_pid(installation, domain_name(guest.uuid)) != process

    async def booted_again() -> bool:
        return (await driver.console_output(guest.uuid, 1 << 20)).count(READY) == 2

    await eventually(booted_again, BOOT_LIMIT)
    listener.events.clear()
    await driver.power_off(guest.uuid, grace=60, interval=5)
    assert await driver.power_state(guest.uuid) is PowerState.SHUTDOWN
    assert _stopped_by_itself(installation, guest.uuid)
    await listener.until(guest.uuid, "stopped")
    await driver.unplug(guest.uuid, (tap,))
    await driver.destroy(guest.uuid)
    await driver.delete_disks(guest.uuid)
    assert _bridge_of(tap) is None
    await driver.close()


async def _hot_plug(driver: LibvirtDriver, installation: Installation, guest: Guest, bridge: str) -> None:
    """A running guest takes an interface and lets go of it, and its definition follows."""
    given = vif(2, bridge=bridge, devname=f"kt{secrets.token_hex(4)}")
    for _ in range(2):
        await driver.attach_interface(guest, given)
        assert _bridge_of(given.devname) == bridge
        assert _defined(installation, guest.uuid).count(given.mac) == 1
    for _ in range(2):
        await driver.detach_interface(guest.uuid, given)
        assert _bridge_of(given.devname) is None
        assert given.mac not in _defined(installation, guest.uuid)
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING


def _defined(installation: Installation, uuid: str) -> str:
    connection = libvirt.open(installation.daemon().uri)
    try:
        found: str = connection.lookupByUUIDString(uuid).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    finally:
        connection.close()
    return found


def _named(guest: Guest) -> Guest:
    metadata: GuestMetadata = msgspec.structs.replace(
        guest.metadata, instance_uuid=guest.uuid, name="booted", hostname="booted"
    )
    return msgspec.structs.replace(guest, metadata=metadata)


def _bridge_of(tap: str) -> str | None:
    """The bridge that an interface is in; None when there is no such interface."""
    device = Path("/sys/class/net") / tap
    return (device / "master").readlink().name if device.exists() else None


def _stopped_by_itself(installation: Installation, uuid: str) -> bool:
    """The guest obeyed the power button: libvirt did not have to destroy it."""
    connection = libvirt.open(installation.daemon().uri)
    try:
        state, reason = connection.lookupByUUIDString(uuid).state()
    finally:
        connection.close()
    return (state, reason) == (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN)
