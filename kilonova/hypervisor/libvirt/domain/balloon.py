"""The memory balloon, which also tells what the guest uses."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add, make


@dataclass(frozen=True, kw_only=True)
class Balloon:
    """period: seconds between the guest's reports."""

    period: int = 10

    def element(self) -> ET.Element:
        balloon = make("memballoon", model="virtio")
        add(balloon, "stats", period=self.period)
        return balloon
