"""PCI devices of hosts."""

from __future__ import annotations

from typing import Literal

import msgspec

DeviceType = Literal["type-PCI", "type-PF", "type-VF"]
"""A device of one function, one that can be divided into virtual functions, and such a virtual function."""


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
