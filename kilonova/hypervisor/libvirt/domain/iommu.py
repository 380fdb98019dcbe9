"""The guest's own translation of addresses for devices."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add, make
from kilonova.shapes.machine import Iommu as Model


@dataclass(frozen=True, kw_only=True)
class Iommu:
    model: Model

    def element(self) -> ET.Element:
        return make("iommu", model=self.model)


@dataclass(frozen=True, kw_only=True)
class IntelIommu:
    """remaps: interrupts are remapped, too; only with an I/O APIC that is QEMU's."""

    remaps: bool = False

    def element(self) -> ET.Element:
        iommu = make("iommu", model="intel")
        driver = add(iommu, "driver", caching_mode="on", iotlb="on")
        if self.remaps:
            driver.set("intremap", "on")
        return iommu
