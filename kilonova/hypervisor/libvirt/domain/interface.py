"""Network interfaces."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Literal

from kilonova.hypervisor.libvirt.domain.element import add, make
from kilonova.hypervisor.libvirt.domain.host_device import PciHostDevice
from kilonova.hypervisor.libvirt.domain.limits import Bandwidth

Model = Literal["virtio", "e1000", "e1000e", "rtl8139", "ne2k_pci", "pcnet", "vmxnet3"]


@dataclass(frozen=True, kw_only=True)
class BridgeInterface:
    """An interface whose tap device libvirt makes and puts into a bridge.

    Args:
        mtu: bytes. queues: pairs of them. packed: its rings are packed. Both are for virtio only.
        inbound, outbound: limits, None for none.
    """

    mac: str
    bridge: str
    tap: str
    model: Model = "virtio"
    mtu: int | None = None
    inbound: Bandwidth | None = None
    outbound: Bandwidth | None = None
    queues: int = 1
    packed: bool = False

    def element(self) -> ET.Element:
        interface = make("interface", type="bridge")
        add(interface, "mac", address=self.mac)
        add(interface, "source", bridge=self.bridge)
        add(interface, "target", dev=self.tap)
        add(interface, "model", type=self.model)
        if self.queues > 1 or self.packed:
            driver = add(interface, "driver")
            if self.queues > 1:
                driver.set("queues", str(self.queues))
            if self.packed:
                driver.set("packed", "on")
        if self.mtu is not None:
            add(interface, "mtu", size=self.mtu)
        limits = [limit for limit in (self.inbound, self.outbound) if limit is not None]
        if limits:
            bandwidth = add(interface, "bandwidth")
            for limit in limits:
                limit.add_to(bandwidth)
        return interface


@dataclass(frozen=True, kw_only=True)
class FunctionInterface:
    """A virtual function of a card of the host that the guest has for itself. libvirt sets its MAC address and its VLAN
    when the guest starts. vlan: tag of its frames, None for none."""

    mac: str
    device: PciHostDevice
    vlan: int | None = None

    def element(self) -> ET.Element:
        interface = make("interface", type="hostdev", managed=True)
        add(interface, "mac", address=self.mac)
        self.device.add_to(add(interface, "source"), type="pci")
        _add_vlan(interface, self.vlan)
        return interface


@dataclass(frozen=True, kw_only=True)
class MacvtapInterface:
    """An interface that has a network device of the host for itself, through one that libvirt makes on top of it.

    Args:
        netdev: the host's. vlan: tag of its frames, None for none.
    """

    mac: str
    netdev: str
    model: Model = "virtio"
    vlan: int | None = None

    def element(self) -> ET.Element:
        interface = make("interface", type="direct")
        add(interface, "mac", address=self.mac)
        add(interface, "source", dev=self.netdev, mode="passthrough")
        add(interface, "model", type=self.model)
        _add_vlan(interface, self.vlan)
        return interface


def _add_vlan(interface: ET.Element, vlan: int | None) -> None:
    if vlan is not None:
        add(add(interface, "vlan"), "tag", id=vlan)
