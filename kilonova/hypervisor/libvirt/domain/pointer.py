"""What the user of a screen points with."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import make
from kilonova.shapes.screens import InputBus


@dataclass(frozen=True, kw_only=True)
class Tablet:
    """A pointer that is told where it is, not how far it went."""

    bus: InputBus

    def element(self) -> ET.Element:
        return make("input", type="tablet", bus=self.bus)


@dataclass(frozen=True, kw_only=True)
class RedirectedUsbPort:
    """A port to which a SPICE client may give a device of its own."""

    def element(self) -> ET.Element:
        return make("redirdev", bus="usb", type="spicevmc")
