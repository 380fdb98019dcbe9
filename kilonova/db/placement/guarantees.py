"""What a host guarantees to ports, as providers below the host's own: one for its network, with the packet rate of the
host and the bandwidth of the networks of the cloud itself, and below that one for each physical network."""

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
from kilonova.domain.network import BANDWIDTH_CLASSES, PACKET_RATE_CLASSES, bandwidth_traits
from kilonova.hypervisor.guest import HostInventory, NetworkBandwidth, PacketRate

NAME = "network"
"""What follows the host in the names of the providers."""


def report_guarantees(connection: sa.Connection, host_provider: str, node: str, inventory: HostInventory,
                      *, now: float) -> None:
    """Record what a host carries. There is a provider for what it tells of, and for what ports still hold something
    of. Spec: EMP-05, EMP-08."""
    offered = {one.physical_network: _of_bandwidth(one) for one in inventory.bandwidths}
    offered[""] = offered.get("", {}) | _of_packet_rate(inventory.packet_rate)
    told = {network: inventories for network, inventories in offered.items() if inventories}
    known = _below(connection, host_provider, node)
    for network in known.keys() - told.keys() - {""}:
        _withdraw(connection, known[network])
    for network in sorted({"", *told}) if told else ():  # "" comes first: the others are below it
        uuid_ = provider_of_network(host_provider, network)
        if network not in known:
            parent = provider_of_network(host_provider) if network else host_provider
            create_provider(connection, uuid_, _name(node, network), parent=parent, now=now)
        _offer(connection, uuid_, told.get(network, {}))
        set_traits(connection, uuid_, bandwidth_traits(network))
    if not told and _below(connection, host_provider, node).keys() == {""}:
        _withdraw(connection, known[""])


def forget_guarantees(connection: sa.Connection, host_provider: str, node: str) -> None:
    """Remove all of them. Raises ProviderInUse: ports hold something there."""
    for _, uuid_ in sorted(_below(connection, host_provider, node).items(), reverse=True):
        delete_provider(connection, uuid_)


def provider_of_network(host_provider: str, physical_network: str = "") -> str:
    """The uuid of the provider: always the same for the same host and physical network."""
    return str(uuid.uuid5(uuid.UUID(host_provider), f"{NAME} {physical_network}" if physical_network else NAME))


def _name(node: str, physical_network: str) -> str:
    return f"{node}:{NAME}:{physical_network}" if physical_network else f"{node}:{NAME}"


def _below(connection: sa.Connection, host_provider: str, node: str) -> dict[str, str]:
    """The uuids of those that there are, by physical network."""
    root = sa.select(providers.c.id).where(providers.c.uuid == host_provider).scalar_subquery()
    rows = connection.execute(sa.select(providers.c.uuid, providers.c.name).where(providers.c.root_id == root))
    own = _name(node, "")
    return {
        row.name.removeprefix(own).removeprefix(":"): row.uuid for row in rows
        if row.name == own or row.name.startswith(f"{own}:")
    }


def _of_bandwidth(bandwidth: NetworkBandwidth) -> dict[str, Inventory]:
    return _inventories(BANDWIDTH_CLASSES, egress=bandwidth.egress_kbps, ingress=bandwidth.ingress_kbps)


def _of_packet_rate(rate: PacketRate) -> dict[str, Inventory]:
    return _inventories(PACKET_RATE_CLASSES, any=rate.kpps, egress=rate.egress_kpps, ingress=rate.ingress_kpps)


def _inventories(classes: dict[str, str], **totals: int) -> dict[str, Inventory]:
    return {classes[way]: Inventory(total=total, max_unit=total) for way, total in totals.items() if total > 0}


def _held(connection: sa.Connection, uuid_: str) -> dict[str, int]:
    """How much ports hold of a provider, by resource class."""
    rows = connection.execute(
        sa.select(allocations.c.resource_class, sa.func.sum(allocations.c.used))
        .join(providers, providers.c.id == allocations.c.provider_id)
        .where(providers.c.uuid == uuid_).group_by(allocations.c.resource_class)
    )
    return {name: int(used) for name, used in rows.all()}


def _offer(connection: sa.Connection, uuid_: str, offered: dict[str, Inventory]) -> None:
    """Write what a provider offers, and of a class that it no longer does, as much as ports hold."""
    held = _held(connection, uuid_)
    kept = {name: Inventory(total=used, max_unit=used) for name, used in held.items()}
    set_inventories(connection, uuid_, kept | offered)


def _withdraw(connection: sa.Connection, uuid_: str) -> None:
    """Remove a provider, unless ports hold something of it."""
    if not _held(connection, uuid_):
        delete_provider(connection, uuid_)
