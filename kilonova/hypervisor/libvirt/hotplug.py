"""Devices that come and go while their guest is there: into the running guest, and into its definition.

A device is found in the XML of its guest by what it is known by, not by its place.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable

import libvirt  # type: ignore[import-untyped]

from kilonova.domain.clock import Clock
from kilonova.domain.errors import DeviceDetachFailed
from kilonova.hypervisor.libvirt.connection import Connection
from kilonova.hypervisor.libvirt.power import find

LIVE, STORED = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
DETACH_ATTEMPTS, DETACH_WAIT, DETACH_PAUSE = 8, 20.0, 0.1
"""How often a guest is asked to let go of a device, and seconds: for each attempt, and between looks."""
BEING_UNPLUGGED = frozenset({
    libvirt.VIR_ERR_OPERATION_FAILED, libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_DEVICE_MISSING,
    libvirt.VIR_ERR_OPERATION_INVALID,
})
"""Errors of asking a guest that has been asked already, has just let go, or was just switched off."""

IsIt = Callable[[ET.Element], bool]
"""Whether an element below `<devices>` is the device in question."""


def found_in(domain: libvirt.virDomain, which: int, is_it: IsIt) -> ET.Element | None:
    """The device in the running guest or in the definition."""
    return next(filter(is_it, _devices(domain, which)), None)


def disks_in(domain: libvirt.virDomain, which: int) -> list[ET.Element]:
    """All disks in the running guest or in the definition."""
    return [device for device in _devices(domain, which) if device.tag == "disk"]


def _devices(domain: libvirt.virDomain, which: int) -> list[ET.Element]:
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE if which == STORED else 0
    return ET.fromstring(domain.XMLDesc(flags)).findall("devices/*")


def has(connection: libvirt.virConnect, uuid: str, is_it: IsIt) -> bool:
    """Whether the running guest has the device."""
    domain = find(connection, uuid)
    return domain is not None and bool(domain.isActive()) and found_in(domain, LIVE, is_it) is not None


async def taken(connection: Connection, clock: Clock, uuid: str, is_it: IsIt) -> bool:
    """Take a device from a running guest, and once that has let go of it, from its definition.

    A guest that is still starting does not hear that it is to let go of a device: it is told again.

    Returns:
        False if it did not let go of it: both have it still.
    """
    for _ in range(DETACH_ATTEMPTS):
        there = await connection.call(lambda open_: _ask_to_let_go(open_, uuid, is_it), uuid=uuid)
        give_up = clock.monotonic() + DETACH_WAIT
        while there and clock.monotonic() < give_up:
            await clock.sleep(DETACH_PAUSE)
            there = await connection.call(lambda open_: has(open_, uuid, is_it), uuid=uuid)
        if not there:
            await connection.call(lambda open_: _forget(open_, uuid, is_it), uuid=uuid)
            return True
    return False


def not_taken(device: str, uuid: str) -> DeviceDetachFailed:
    """The error of a guest that did not let go of a device."""
    return DeviceDetachFailed(
        device, uuid, f"the guest did not let go of it in {DETACH_ATTEMPTS} attempts of {DETACH_WAIT:.0f} s."
    )


def _ask_to_let_go(connection: libvirt.virConnect, uuid: str, is_it: IsIt) -> bool:
    """Returns whether the guest has it still: most let go within the seconds that libvirt waits for them."""
    domain = find(connection, uuid)
    if domain is None or not domain.isActive():
        return False
    found = found_in(domain, LIVE, is_it)
    if found is None:
        return False
    try:
        domain.detachDeviceFlags(ET.tostring(found, encoding="unicode"), LIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in BEING_UNPLUGGED:
            raise
    return has(connection, uuid, is_it)


def _forget(connection: libvirt.virConnect, uuid: str, is_it: IsIt) -> None:
    """Take the device out of the definition."""
    domain = find(connection, uuid)
    if domain is not None and (found := found_in(domain, STORED, is_it)) is not None:
        domain.detachDeviceFlags(ET.tostring(found, encoding="unicode"), STORED)
