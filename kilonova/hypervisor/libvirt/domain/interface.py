"""Network interfaces."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Literal

from kilonova.hypervisor.libvirt.domain.element import add, make

Model = Literal["virtio", "e1000", "e1000e", "rtl8139", "ne2k_pci", "pcnet", "vmxnet3"]


@dataclass(frozen=True, kw_only=True)
class BridgeInterface:
    """An interface whose tap device libvirt makes and puts into a bridge. mtu: bytes."""

    mac: str
    bridge: str
    tap: str
    model: Model = "virtio"
    mtu: int | None = None

    def element(self) -> ET.Element:
        interface = make("interface", type="bridge")
        add(interface, "mac", address=self.mac)
        add(interface, "source", bridge=self.bridge)
        add(interface, "target", dev=self.tap)
        add(interface, "model", type=self.model)
        if self.mtu is not None:
            add(interface, "mtu", size=self.mtu)
        return interface
