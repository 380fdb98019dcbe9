"""What a host guarantees to ports, as providers below the host's own: one for each physical network, and one for the
networks of the cloud itself."""

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
from kilonova.domain.network import bandwidth_traits
from kilonova.hypervisor.guest import HostInventory, NetworkBandwidth

EGRESS, INGRESS = "NET_BW_EGR_KILOBIT_PER_SEC", "NET_BW_IGR_KILOBIT_PER_SEC"
NAME = "network"
"""What follows the host in the names of the providers."""


def report_bandwidths(connection: sa.Connection, host_provider: str, node: str, inventory: HostInventory,
                      *, now: float) -> None:
    """Record what a host carries. There is a provider for what it tells of, and for what ports still hold something
    of. Spec: EMP-05, EMP-08."""
    told = {_name(node, one.physical_network): one for one in inventory.bandwidths}
    for uuid_, name in _below(connection, host_provider, node):
        if name not in told:
            _report(connection, uuid_, {})
    for name, one in told.items():
        below = provider_of_bandwidth(host_provider, one.physical_network)
        offered = _offered(one)
        known = connection.execute(sa.select(providers.c.id).where(providers.c.uuid == below)).scalar()
        if known is None and offered:
            create_provider(connection, below, name, parent=host_provider, now=now)
        if known is not None or offered:
            _report(connection, below, offered)
        if offered:
            set_traits(connection, below, bandwidth_traits(one.physical_network))


def forget_bandwidths(connection: sa.Connection, host_provider: str, node: str) -> None:
    """Remove all of them. Raises ProviderInUse: ports hold something there."""
    for uuid_, _ in _below(connection, host_provider, node):
        delete_provider(connection, uuid_)


def provider_of_bandwidth(host_provider: str, physical_network: str = "") -> str:
    """The uuid of the provider: always the same for the same host and physical network."""
    return str(uuid.uuid5(uuid.UUID(host_provider), f"{NAME} {physical_network}" if physical_network else NAME))


def _name(node: str, physical_network: str) -> str:
    return f"{node}:{NAME}:{physical_network}" if physical_network else f"{node}:{NAME}"


def _below(connection: sa.Connection, host_provider: str, node: str) -> list[tuple[str, str]]:
    """Uuid and name of those that there are."""
    host = sa.select(providers.c.id).where(providers.c.uuid == host_provider).scalar_subquery()
    rows = connection.execute(sa.select(providers.c.uuid, providers.c.name).where(providers.c.parent_id == host))
    own = _name(node, "")
    return [(row.uuid, row.name) for row in rows if row.name == own or row.name.startswith(f"{own}:")]


def _offered(bandwidth: NetworkBandwidth) -> dict[str, Inventory]:
    told = ((EGRESS, bandwidth.egress_kbps), (INGRESS, bandwidth.ingress_kbps))
    return {name: Inventory(total=kbps, max_unit=kbps) for name, kbps in told if kbps > 0}


def _report(connection: sa.Connection, uuid_: str, offered: dict[str, Inventory]) -> None:
    """Write what a provider offers, and of a direction that it no longer does, as much as ports hold."""
    held = {
        name: int(used) for name, used in connection.execute(
            sa.select(allocations.c.resource_class, sa.func.sum(allocations.c.used))
            .join(providers, providers.c.id == allocations.c.provider_id)
            .where(providers.c.uuid == uuid_).group_by(allocations.c.resource_class)
        ).all()
    }
    if offered:
        kept = {name: Inventory(total=used, max_unit=used) for name, used in held.items()}
        set_inventories(connection, uuid_, kept | offered)
    elif not held:
        delete_provider(connection, uuid_)
