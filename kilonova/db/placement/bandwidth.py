"""The bandwidth of a host's network, as a provider below the host's own."""

from __future__ import annotations

import uuid

import sqlalchemy as sa

from kilonova.db.placement.providers import (
    Inventory,
    create_provider,
    delete_provider,
    set_inventories,
    set_traits,
)
from kilonova.db.placement.tables import allocations, providers
from kilonova.hypervisor.guest import HostInventory

EGRESS, INGRESS = "NET_BW_EGR_KILOBIT_PER_SEC", "NET_BW_IGR_KILOBIT_PER_SEC"
TRAITS = {"CUSTOM_VNIC_TYPE_NORMAL"}
NAME = "network"
"""The last part of the provider's name; the first is the host's."""


def report_bandwidth(connection: sa.Connection, host_provider: str, node: str, inventory: HostInventory,
                     *, now: float) -> None:
    """Record what a host's network carries; a host that tells nothing has no such provider, unless ports still hold
    something of it. Spec: EMP-05, EMP-08."""
    below = provider_of_bandwidth(host_provider)
    known = connection.execute(sa.select(providers.c.id).where(providers.c.uuid == below)).scalar()
    offered = {
        name: Inventory(total=kbps, max_unit=kbps)
        for name, kbps in ((EGRESS, inventory.egress_kbps), (INGRESS, inventory.ingress_kbps)) if kbps > 0
    }
    if known is None and offered:
        create_provider(connection, below, f"{node}:{NAME}", parent=host_provider, now=now)
    elif known is not None and not offered:
        if not connection.execute(sa.select(allocations).where(allocations.c.provider_id == known)).first():
            delete_provider(connection, below)
        return
    if offered:
        set_inventories(connection, below, _kept(connection, known, offered))
        set_traits(connection, below, TRAITS)


def provider_of_bandwidth(host_provider: str) -> str:
    """The uuid of the provider: always the same for the same host."""
    return str(uuid.uuid5(uuid.UUID(host_provider), NAME))


def _kept(connection: sa.Connection, provider_id: int | None, offered: dict[str, Inventory]) -> dict[str, Inventory]:
    """What is offered, and of a direction that no longer is, as much as ports hold."""
    if provider_id is None:
        return offered
    held = connection.execute(
        sa.select(allocations.c.resource_class, sa.func.sum(allocations.c.used))
        .where(allocations.c.provider_id == provider_id).group_by(allocations.c.resource_class)
    ).all()
    return {name: Inventory(total=int(used), max_unit=int(used)) for name, used in held} | offered
