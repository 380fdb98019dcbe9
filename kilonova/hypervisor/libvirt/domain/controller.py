"""Controllers that other devices are plugged into."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add, make
from kilonova.shapes.disks import ScsiModel


@dataclass(frozen=True, kw_only=True)
class PcieRootPort:
    """A slot for one PCIe device. Only slots present at the start can take a device later."""

    index: int

    def element(self) -> ET.Element:
        return make("controller", type="pci", index=self.index, model="pcie-root-port")


@dataclass(frozen=True, kw_only=True)
class ScsiController:
    """packed: its rings are packed, for virtio only."""

    model: ScsiModel = "virtio-scsi"
    packed: bool = False

    def element(self) -> ET.Element:
        controller = make("controller", type="scsi", index=0, model=self.model)
        if self.packed:
            add(controller, "driver", packed="on")
        return controller


@dataclass(frozen=True, kw_only=True)
class UsbController:
    """model `none` keeps libvirt from adding one, which would cost an idle guest processor time."""

    model: str = "none"

    def element(self) -> ET.Element:
        return make("controller", type="usb", model=self.model)
