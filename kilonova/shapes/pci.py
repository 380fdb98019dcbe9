"""PCI devices of hosts, and which of them a guest was given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from kilonova.domain.network import physical_network_trait
from kilonova.domain.pci import DeviceMatch, DeviceRequest, DeviceType


class PciDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device as its host finds it.

    Args:
        address: domain, bus, slot and function in hexadecimal, for example `0000:81:00.1`.
        vendor_id, product_id: four hexadecimal digits each, in small letters.
        parent: of a virtual function, the address of the device that it is a part of.
        numa_cell: the cell of the host that it is near to, None if it is near to none or the host does not tell.
    """

    address: str
    vendor_id: str
    product_id: str
    device_type: DeviceType = "type-PCI"
    parent: str = ""
    numa_cell: int | None = None


class OfferedDevice(PciDevice, frozen=True, kw_only=True):
    """A device that guests may have.

    Args:
        resource_class: what it counts as in placement.
        physical_network: the one that it leads to: it is for ports on that. Empty for one that flavors ask for.
    """

    resource_class: str
    traits: tuple[str, ...] = ()
    physical_network: str = ""

    def is_meant(self, match: DeviceMatch) -> bool:
        """Whether it will do."""
        typed = self.device_type == match.device_type if match.device_type else self.device_type != "type-PF"
        return (
            typed and match.vendor_id in ("", self.vendor_id) and match.product_id in ("", self.product_id)
            and match.resource_class in ("", self.resource_class) and set(match.traits) <= set(self.traits)
            and match.physical_network == self.physical_network
        )


class HeldDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device that belongs to a guest.

    Args:
        alias: by which it was asked for; that of a port tells which (`port_devices.py`).
        vendor_id, product_id, parent: see `PciDevice`. physical_network: see `OfferedDevice`.
    """

    address: str
    alias: str
    resource_class: str
    parent: str = ""
    vendor_id: str = ""
    product_id: str = ""
    physical_network: str = ""


def classes_of(devices: Iterable[OfferedDevice | HeldDevice]) -> dict[str, int]:
    """How many there are of each resource class."""
    return dict(Counter(device.resource_class for device in devices))


def physical_networks(devices: Iterable[OfferedDevice]) -> set[str]:
    """The traits of a host with such devices: that ports on these physical networks may find one there."""
    names = {device.physical_network for device in devices} - {""}
    return {physical_network_trait(name) for name in names}


def with_devices(resources: Mapping[str, int], held: Iterable[HeldDevice]) -> dict[str, int]:
    """Amounts by resource class, and one for each device of its class."""
    amounts = dict(resources)
    for name, count in classes_of(held).items():
        amounts[name] = amounts.get(name, 0) + count
    return amounts


def are_given(requests: Iterable[DeviceRequest], held: Iterable[HeldDevice]) -> bool:
    """Whether these are as many as were asked for, by alias."""
    asked: Counter[str] = Counter()
    for request in requests:
        asked[request.alias] += request.count
    return asked == Counter(device.alias for device in held)
