"""A PCI device of the host that the guest has for itself."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add, make


@dataclass(frozen=True, kw_only=True)
class PciHostDevice:
    """Where the device is on the host. libvirt takes it from its driver when the guest starts, and gives it back."""

    domain: int
    bus: int
    slot: int
    function: int

    @classmethod
    def at(cls, address: str) -> PciHostDevice:
        """address: for example `0000:81:00.1`."""
        domain, bus, rest = address.split(":")
        slot, function = rest.split(".")
        return cls(domain=int(domain, 16), bus=int(bus, 16), slot=int(slot, 16), function=int(function, 16))

    def element(self) -> ET.Element:
        device = make("hostdev", mode="subsystem", type="pci", managed=True)
        self.add_to(add(device, "source"))
        return device

    def add_to(self, source: ET.Element, **attributes: str) -> None:
        """Its address, in an element that says where a device comes from."""
        add(
            source, "address", **attributes, domain=f"0x{self.domain:04x}", bus=f"0x{self.bus:02x}",
            slot=f"0x{self.slot:02x}", function=f"0x{self.function:x}",
        )
