"""Networking as the compute service sees it: ports bound to an instance, and what a guest gets from them."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from kilonova.domain.pci import DeviceType, NumaPolicy

DeviceVnic = Literal["direct", "macvtap", "direct-physical"]
"""Types of ports that are a PCI device of the host: a virtual function that the guest has for itself, one behind a
device of its own, and a whole card."""
DEVICE_OF: dict[str, DeviceType] = {"direct": "type-VF", "macvtap": "type-VF", "direct-physical": "type-PF"}
"""What each of them is."""
PCI_SLOT, PCI_VENDOR, PHYSICAL_NETWORK = "pci_slot", "pci_vendor_info", "physical_network"
"""Keys of a binding's profile that tell which device the port is."""
BANDWIDTH, PACKET_RATE = "bandwidth", "packet_rate"
"""Names of the groups of resources that ports ask for."""
BANDWIDTH_CLASSES = {"egress": "NET_BW_EGR_KILOBIT_PER_SEC", "ingress": "NET_BW_IGR_KILOBIT_PER_SEC"}
"""Resource classes of a guaranteed bandwidth, by direction as guests see it."""
PACKET_RATE_CLASSES = {
    "any": "NET_PACKET_RATE_KILOPACKET_PER_SEC", "egress": "NET_PACKET_RATE_EGR_KILOPACKET_PER_SEC",
    "ingress": "NET_PACKET_RATE_IGR_KILOPACKET_PER_SEC",
}
"""Resource classes of a guaranteed packet rate, by direction as guests see it; any: of both together."""
_NORMAL = "CUSTOM_VNIC_TYPE_NORMAL"
PACKET_RATE_TRAITS = (_NORMAL,)
"""The traits of who guarantees a packet rate: it is one for all networks of a host."""
_NOT_OF_TRAITS = re.compile(r"[^A-Z0-9_]")


def physical_network_trait(name: str) -> str:
    """The trait of hosts, and of what is below them, that ports on this physical network find something at."""
    return "CUSTOM_PHYSNET_" + _NOT_OF_TRAITS.sub("_", name.upper())


def bandwidth_traits(physical_network: str) -> tuple[str, ...]:
    """The traits of who guarantees a bandwidth to ports that are no devices. physical_network: "" for the networks of
    this cloud itself."""
    where = physical_network_trait(physical_network) if physical_network else "CUSTOM_NETWORK_LOCAL_PROVIDER"
    return where, _NORMAL


class Route(msgspec.Struct, frozen=True):
    destination: str
    nexthop: str


class Subnet(msgspec.Struct, frozen=True, kw_only=True):
    """version: of IP. address_mode: how guests get IPv6 addresses, None if nobody tells them."""

    id: str
    cidr: str
    version: int = 4
    gateway: str | None = None
    dns: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    dhcp: bool = True
    address_mode: str | None = None


class FixedIp(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    subnet: Subnet
    floating: tuple[str, ...] = ()


class Vif(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of a guest.

    Args:
        id: the port. devname: name of the tap device on the host.
        bridge: the bridge on the host that the tap joins ("" with the fake driver).
        mtu: bytes. active: the network service has wired it.
        vlan: the tag of its frames on the physical network, None for none.
    """

    id: str
    mac: str
    network_id: str
    network_name: str
    devname: str
    bridge: str = ""
    vif_type: str = "bridge"
    vnic_type: str = "normal"
    mtu: int = 1500
    fixed_ips: tuple[FixedIp, ...] = ()
    active: bool = False
    preserve_on_delete: bool = False
    tag: str | None = None
    profile: dict[str, Any] = {}
    vlan: int | None = None

    @property
    def is_device(self) -> bool:
        """Whether it is a PCI device of the host."""
        return self.vnic_type in DEVICE_OF

    @property
    def address(self) -> str:
        """Of its PCI device, for example `0000:81:02.1`; "" without one."""
        return str(self.profile.get(PCI_SLOT, "")) if self.is_device else ""


class PortDevice(msgspec.Struct, frozen=True, kw_only=True):
    """The PCI device that a port is to be. numa_policy: where it is beside the guest, None as flavor and image say."""

    vnic_type: DeviceVnic
    physical_network: str
    numa_policy: NumaPolicy | None = None


class BoundDevice(msgspec.Struct, frozen=True, kw_only=True):
    """The PCI device that a port is. address: for example `0000:81:02.1`. vendor_id, product_id: four hexadecimal
    digits each."""

    address: str
    vendor_id: str
    product_id: str
    physical_network: str


class PortGroup(msgspec.Struct, frozen=True, kw_only=True):
    """What one provider with these traits is to give a port: amounts of resource classes. name: BANDWIDTH or
    PACKET_RATE, each at most once for a port."""

    name: str
    resources: dict[str, int]
    traits: tuple[str, ...] = ()


class PortNeed(msgspec.Struct, frozen=True, kw_only=True):
    """What a port asks of its host: groups of resources, and a device."""

    port_id: str
    groups: tuple[PortGroup, ...] = ()
    device: PortDevice | None = None


class RequestedNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `networks` in POST /servers.

    Args:
        foreign: an administrator asked for a network that the project of the server may not use by itself.
        need: what the port asks for.
    """

    network_id: str | None = None
    port_id: str | None = None
    fixed_ip: str | None = None
    tag: str | None = None
    foreign: bool = False
    need: PortNeed | None = None
