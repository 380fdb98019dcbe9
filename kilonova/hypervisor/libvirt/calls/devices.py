"""Calls about PCI devices of the host."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import libvirt  # type: ignore[import-untyped]

from kilonova.domain.pci import DeviceType
from kilonova.hypervisor.libvirt import power
from kilonova.hypervisor.libvirt.calls.parts import Calls
from kilonova.hypervisor.libvirt.netdevs import address_of
from kilonova.shapes.pci import PciDevice

BRIDGE_CLASS = 0x06
"""The class of devices that lead to others."""


class DeviceCalls(Calls):
    """PCI devices: which there are, and which guests have them."""

    _installation: str

    async def pci_devices(self) -> list[PciDevice]:
        return await self._connection.call(_listed)

    async def held_devices(self) -> dict[str, tuple[str, ...]]:
        return await self._connection.call(self._held)

    def _held(self, connection: libvirt.virConnect) -> dict[str, tuple[str, ...]]:
        held = {}
        for domain in connection.listAllDomains():
            uuid = domain.UUIDString()
            if uuid in self._ours or power.carries_mark(domain, self._installation):
                devices = _held_by(domain.XMLDesc(0))
                if devices:
                    held[uuid] = devices
        return held


def _held_by(described: str) -> tuple[str, ...]:
    """The addresses of the PCI devices in the description of a guest."""
    devices = ET.fromstring(described).find("devices")
    return tuple(address for device in (devices if devices is not None else ()) if (address := address_in(device)))


def address_in(device: ET.Element) -> str:
    """The PCI device of the host that a device of a guest is, "" for none."""
    source = device.find("source")
    if source is None:
        return ""
    if device.tag == "interface" and device.get("type") == "direct":
        return address_of(source.get("dev", ""))
    if (device.tag, device.get("type")) not in (("hostdev", "pci"), ("interface", "hostdev")):
        return ""
    one = source.find("address")
    assert one is not None
    return _address(*(int(one.get(part, "0"), 16) for part in ("domain", "bus", "slot", "function")))


def _listed(connection: libvirt.virConnect) -> list[PciDevice]:
    found = []
    for node in connection.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV):
        try:
            described = node.XMLDesc()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_NODE_DEVICE:  # went since it was listed
                continue
            raise
        device = read_device(described)
        if device is not None:
            found.append(device)
    return sorted(found, key=lambda device: device.address)


def read_device(described: str) -> PciDevice | None:
    """A device as libvirt describes it; None for a bridge."""
    pci = ET.fromstring(described).find("capability[@type='pci']")
    assert pci is not None
    if int(pci.findtext("class") or "0", 16) >> 16 == BRIDGE_CLASS:
        return None
    numa, parent = pci.find("numa"), pci.find("capability[@type='phys_function']/address")
    device_type: DeviceType = "type-PCI"
    if parent is not None:
        device_type = "type-VF"
    elif pci.find("capability[@type='virt_functions']") is not None:
        device_type = "type-PF"
    parts = ("domain", "bus", "slot", "function")
    return PciDevice(
        address=_address(*(int(pci.findtext(part) or "0") for part in parts)),
        vendor_id=_id(pci, "vendor"), product_id=_id(pci, "product"), device_type=device_type,
        parent=_address(*(int(parent.get(part, "0"), 16) for part in parts)) if parent is not None else "",
        numa_cell=int(numa.get("node", "-1")) if numa is not None else None,
    )


def _id(pci: ET.Element, which: str) -> str:
    found = pci.find(which)
    return f"{int(found.get('id', '0'), 16):04x}" if found is not None else "0000"


def _address(domain: int, bus: int, slot: int, function: int) -> str:
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"
