"""Interfaces that come and go while their guest is there. They are known by their MAC address; those that are whole
cards, of which libvirt knows none, by their PCI address."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import libvirt  # type: ignore[import-untyped]

from kilonova.domain.network import Vif
from kilonova.hypervisor.libvirt.calls.devices import address_in
from kilonova.hypervisor.libvirt.domain.element import Device
from kilonova.hypervisor.libvirt.power import find

LIVE, STORED = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
BEING_UNPLUGGED = frozenset({
    libvirt.VIR_ERR_OPERATION_FAILED, libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_DEVICE_MISSING,
    libvirt.VIR_ERR_OPERATION_INVALID,
})
"""Errors of asking a guest that has been asked already, has just let go, or was just switched off."""


def attach(connection: libvirt.virConnect, uuid: str, device: Device) -> None:
    """Into the running guest first, then into the definition."""
    domain = find(connection, uuid)
    if domain is None:
        return
    element = device.element()
    name, xml = _name(element), ET.tostring(element, encoding="unicode")
    for which in (LIVE, STORED) if domain.isActive() else (STORED,):
        if _in(domain, which, name) is None:
            domain.attachDeviceFlags(xml, which)


def has(connection: libvirt.virConnect, uuid: str, name: str) -> bool:
    """Whether the running guest has the interface."""
    domain = find(connection, uuid)
    return domain is not None and bool(domain.isActive()) and _in(domain, LIVE, name) is not None


def ask_to_let_go(connection: libvirt.virConnect, uuid: str, name: str) -> bool:
    """Ask a running guest to let go of the interface. Returns whether there was anything to let go of."""
    domain = find(connection, uuid)
    if domain is None or not domain.isActive():
        return False
    found = _in(domain, LIVE, name)
    if found is None:
        return False
    try:
        domain.detachDeviceFlags(found, LIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in BEING_UNPLUGGED:
            raise
    return True


def forget(connection: libvirt.virConnect, uuid: str, name: str) -> None:
    """Take the interface out of the definition."""
    domain = find(connection, uuid)
    if domain is not None and (found := _in(domain, STORED, name)) is not None:
        domain.detachDeviceFlags(found, STORED)


def _in(domain: libvirt.virDomain, which: int, name: str) -> str | None:
    """The XML of the interface in the running guest or in the definition."""
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE if which == STORED else 0
    devices = ET.fromstring(domain.XMLDesc(flags)).find("devices")
    for element in devices if devices is not None else ():
        if element.tag in ("interface", "hostdev") and _name(element) == name:
            return ET.tostring(element, encoding="unicode")
    return None


def _name(device: ET.Element) -> str:
    address = device.find("mac")
    return address.get("address", "") if address is not None else address_in(device)


def name_of(vif: Vif) -> str:
    """What its interface is known by."""
    return vif.address if vif.vnic_type == "direct-physical" else vif.mac
