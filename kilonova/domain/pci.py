"""PCI devices that a server asks for."""

from __future__ import annotations

from typing import Literal

import msgspec

DeviceType = Literal["type-PCI", "type-PF", "type-VF"]
"""A device of one function, one that can be divided into virtual functions, and such a virtual function."""

NumaPolicy = Literal["required", "preferred", "legacy", "socket"]
"""Where devices are beside a guest with NUMA cells: in them; in them if that can be; in them or in none that is known;
on a processor that has one of them."""


class DeviceMatch(msgspec.Struct, frozen=True, kw_only=True):
    """Which devices will do. An empty field allows any value; without a `device_type` a device that can be divided is
    not meant.

    Args:
        vendor_id, product_id: four hexadecimal digits each. traits: the device has all of them.
        physical_network: the one that it leads to; empty for devices that lead to none.
    """

    vendor_id: str = ""
    product_id: str = ""
    device_type: DeviceType | None = None
    resource_class: str = ""
    traits: tuple[str, ...] = ()
    physical_network: str = ""


class DeviceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Devices that were asked for by one alias, as the alias was defined then, or by a port. matches: any of them will
    do."""

    alias: str
    count: int
    matches: tuple[DeviceMatch, ...]
    numa_policy: NumaPolicy = "legacy"
