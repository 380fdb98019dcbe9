"""Interfaces that come and go while their guest is there. They are known by their MAC address; those that are whole
cards, of which libvirt knows none, by their PCI address."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import libvirt  # type: ignore[import-untyped]

from kilonova.domain.network import Vif
from kilonova.hypervisor.libvirt.calls.devices import address_in
from kilonova.hypervisor.libvirt.domain.element import Device
from kilonova.hypervisor.libvirt.hotplug import LIVE, STORED, IsIt, found_in
from kilonova.hypervisor.libvirt.power import find


def attach(connection: libvirt.virConnect, uuid: str, device: Device) -> None:
    """Into the running guest first, then into the definition."""
    domain = find(connection, uuid)
    if domain is None:
        return
    element = device.element()
    is_it, xml = _is_called(_name(element)), ET.tostring(element, encoding="unicode")
    for which in (LIVE, STORED) if domain.isActive() else (STORED,):
        if found_in(domain, which, is_it) is None:
            domain.attachDeviceFlags(xml, which)


def interface_of(vif: Vif) -> IsIt:
    """Finds it in a guest."""
    return _is_called(name_of(vif))


def name_of(vif: Vif) -> str:
    """What its interface is known by."""
    return vif.address if vif.vnic_type == "direct-physical" else vif.mac


def _is_called(name: str) -> IsIt:
    return lambda device: device.tag in ("interface", "hostdev") and _name(device) == name


def _name(device: ET.Element) -> str:
    address = device.find("mac")
    return address.get("address", "") if address is not None else address_in(device)
