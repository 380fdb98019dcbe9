"""Ports that are PCI devices: what they ask for, and which of the devices of a guest each of them is."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kilonova.domain.network import DEVICE_OF, PCI_SLOT, PCI_VENDOR, PHYSICAL_NETWORK, BoundDevice, PortNeed, Vif
from kilonova.domain.pci import DeviceMatch, DeviceRequest, NumaPolicy
from kilonova.shapes.pci import HeldDevice

PORT = "port:"
"""With this, which no name of an alias can contain, and the id of the port, begins what a port's device is asked for
by."""
OF_DEVICES = (PCI_SLOT, PCI_VENDOR, PHYSICAL_NETWORK)


def requests_of(needs: Iterable[PortNeed], usual: NumaPolicy | None) -> tuple[DeviceRequest, ...]:
    """One for each port that is a device. usual: the policy of those without one of their own. Spec: IFC-17, IFC-26."""
    return tuple(
        DeviceRequest(
            alias=PORT + need.port_id, count=1, numa_policy=need.device.numa_policy or usual or "legacy",
            matches=(DeviceMatch(
                device_type=DEVICE_OF[need.device.vnic_type], physical_network=need.device.physical_network
            ),),
        )
        for need in needs if need.device is not None
    )


def meaning(request: DeviceRequest) -> str:
    """Which devices would do, for errors."""
    if not request.alias.startswith(PORT):
        return f"that {request.alias} means"
    (match,) = request.matches
    return f"on physical network {match.physical_network} for port {request.alias.removeprefix(PORT)}"


def is_of_port(device: HeldDevice) -> bool:
    return device.alias.startswith(PORT)


def by_port(devices: Iterable[HeldDevice]) -> dict[str, HeldDevice]:
    """Those that ports are, by the id of the port."""
    return {device.alias.removeprefix(PORT): device for device in devices if is_of_port(device)}


def bound_device(device: HeldDevice) -> BoundDevice:
    """As the binding of its port tells it."""
    return BoundDevice(
        address=device.address, vendor_id=device.vendor_id, product_id=device.product_id,
        physical_network=device.physical_network,
    )


def profile_of(device: BoundDevice) -> dict[str, str]:
    """What the profile of a port's binding says of its device."""
    return {
        PCI_SLOT: device.address, PCI_VENDOR: f"{device.vendor_id}:{device.product_id}",
        PHYSICAL_NETWORK: device.physical_network,
    }


def with_own_devices(vifs: Iterable[Vif], devices: Iterable[HeldDevice]) -> tuple[Vif, ...]:
    """Interfaces as they are for a guest that holds these devices, whatever the bindings of their ports say now: those
    of a resized server name the devices of one of its two guests. One whose device is not held has none. Spec: RSZ-24,
    RSZ-25."""
    held = by_port(devices)
    return tuple(_with_device(vif, held.get(vif.id)) if vif.is_device else vif for vif in vifs)


def _with_device(vif: Vif, held: HeldDevice | None) -> Vif:
    profile = {name: value for name, value in vif.profile.items() if name not in OF_DEVICES}
    if held is not None:
        profile |= profile_of(bound_device(held))
    return msgspec.structs.replace(vif, profile=profile)
