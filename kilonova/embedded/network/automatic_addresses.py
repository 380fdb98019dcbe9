"""Addresses that guests build themselves, given to and taken from the ports that a network has: units of work.

Spec: EMN-08.
"""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.embedded.network import addresses, schema
from kilonova.embedded.network.port_records import find_port, ports_where

Change = tuple[schema.Port | None, schema.Port | None]


def give(conn: sa.Connection, subnet: schema.Subnet, now: float) -> list[Change]:
    """An address of a new automatic subnet for each port that a guest may have; returns them before and after."""
    owner = schema.ports.c.device_owner
    held = ports_where(conn, schema.ports.c.network_id == subnet.network_id, owner.not_like("network:%"))
    for port in held:
        kept = [addresses.Allocation(subnet.network_id, item.subnet_id, addresses.parse_ip(item.address).packed.hex())
                for item in port.addresses]
        addresses.assign(conn, port.id, [*kept, addresses.allocate(conn, subnet, port.mac)])
        schema.touch(conn, schema.ports, port.id, now)
    return [(port, find_port(conn, port.id)) for port in held]


def take(conn: sa.Connection, subnet: schema.Subnet) -> list[Change]:
    """Take the addresses of an automatic subnet from all ports but those of routers; returns them before and after."""
    table = schema.addresses
    on_it = sa.select(table.c.port_id).where(table.c.subnet_id == subnet.id)
    held = ports_where(conn, schema.ports.c.id.in_(on_it), schema.ports.c.device_owner.not_like("network:%"))
    for port in held:
        conn.execute(sa.delete(table).where(table.c.port_id == port.id, table.c.subnet_id == subnet.id))
    return [(port, find_port(conn, port.id)) for port in held]


def follow_mac(conn: sa.Connection, port: schema.Port, mac: str, subnets: list[schema.Subnet]) -> None:
    """Give a port the addresses that follow from its new MAC."""
    by_id = {subnet.id: subnet for subnet in subnets}
    if not any(by_id[item.subnet_id].automatic for item in port.addresses):
        return
    addresses.assign(conn, port.id, [
        addresses.allocate(conn, by_id[item.subnet_id], mac) if by_id[item.subnet_id].automatic
        else addresses.taken_at(by_id[item.subnet_id], addresses.parse_ip(item.address))
        for item in port.addresses
    ])
