"""Hosts with accelerators, and flavors that ask for them."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from cyborg import DEVICES, FPGA, PROFILES

from kilonova.db.placement.tables import hosts, inventories, touch
from kilonova.domain.flavor import Flavor
from kilonova.shapes.accelerators import DEVICE_PROFILE, with_groups
from kilonova.shapes.pci import PciDevice

PCI_DEVICES = tuple(
    PciDevice(address=f"0000:5e:{n:02x}.0", vendor_id="8086", product_id="09c4") for n in range(DEVICES)
)
"""Those that the stand-in hands out."""


def offer_devices(conn: sa.Connection) -> None:
    """Every host has two of the devices that the profiles ask for. May be repeated."""
    there = sa.select(inventories.c.provider_id).where(inventories.c.resource_class == FPGA)
    query = sa.select(hosts.c.provider_id).where(hosts.c.provider_id.not_in(there))
    providers = list(conn.execute(query).scalars())
    for provider in providers:
        conn.execute(sa.insert(inventories).values(
            provider_id=provider, resource_class=FPGA, total=2, reserved=0, min_unit=1, max_unit=2, step_size=1,
            allocation_ratio=1.0, capacity=2, used=0,
        ))
    touch(conn, providers)


def asks_for(flavor: Flavor, profile: str) -> tuple[Flavor, Flavor]:
    """The flavor with a device profile, and the same as hosts are chosen by it."""
    shown = msgspec.structs.replace(flavor, extra_specs=flavor.extra_specs | {DEVICE_PROFILE: profile})
    return shown, with_groups(shown, PROFILES[profile])
