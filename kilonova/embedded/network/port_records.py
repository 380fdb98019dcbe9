"""Reading ports with their addresses and security groups."""

from __future__ import annotations

from collections import defaultdict

import sqlalchemy as sa

from kilonova.domain.errors import PortNotFound
from kilonova.embedded.network import schema


def ports_where(conn: sa.Connection, *conditions: sa.ColumnElement[bool]) -> list[schema.Port]:
    """The ports that fulfil all conditions (on columns of the ports table), oldest first."""
    ports, addresses, groups = schema.ports, schema.addresses, schema.port_groups
    rows = conn.execute(sa.select(ports).where(*conditions).order_by(ports.c.created_at, ports.c.id)).all()
    if not rows:
        return []
    chosen = [rows[0].id] if len(rows) == 1 else sa.select(ports.c.id).where(*conditions).scalar_subquery()
    held: dict[str, list[schema.Address]] = defaultdict(list)
    for row in conn.execute(
        sa.select(addresses.c.port_id, addresses.c.subnet_id, addresses.c.address)
        .where(addresses.c.port_id.in_(chosen)).order_by(addresses.c.position)
    ):
        held[row.port_id].append(schema.Address(row.subnet_id, row.address))
    member: dict[str, list[str]] = defaultdict(list)
    for row in conn.execute(sa.select(groups).where(groups.c.port_id.in_(chosen)).order_by(groups.c.group_id)):
        member[row.port_id].append(row.group_id)
    return [
        schema.record(schema.Port, row, addresses=tuple(held[row.id]), group_ids=tuple(member[row.id]))
        for row in rows
    ]


def find_port(conn: sa.Connection, id_: str) -> schema.Port | None:
    return next(iter(ports_where(conn, schema.ports.c.id == id_)), None)


def existing_port(conn: sa.Connection, id_: str) -> schema.Port:
    """Raises PortNotFound."""
    port = find_port(conn, id_)
    if port is None:
        raise PortNotFound(id_)
    return port
