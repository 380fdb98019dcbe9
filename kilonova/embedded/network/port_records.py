"""Reading ports with their addresses and security groups."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import sqlalchemy as sa

from kilonova.db.prepared import Prepared
from kilonova.domain.errors import PortNotFound
from kilonova.embedded.network import schema

_ports, _addresses, _groups = schema.ports, schema.addresses, schema.port_groups
_BY_ID = Prepared(sa.select(_ports).where(_ports.c.id == sa.bindparam("id")))
_BY_DEVICE = Prepared(
    sa.select(_ports).where(_ports.c.device_id == sa.bindparam("device"))
    .order_by(sa.func.coalesce(_ports.c.device_since, _ports.c.created_at), _ports.c.id)
)
_ADDRESSES = Prepared(
    sa.select(_addresses.c.subnet_id, _addresses.c.address)
    .where(_addresses.c.port_id == sa.bindparam("port")).order_by(_addresses.c.position)
)
_GROUPS = Prepared(
    sa.select(_groups.c.group_id).where(_groups.c.port_id == sa.bindparam("port")).order_by(_groups.c.group_id)
)


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
    row = _BY_ID.first(conn, id=id_)
    return None if row is None else _complete(conn, row)


def ports_of_device(conn: sa.Connection, device_id: str) -> list[schema.Port]:
    """The ports of a server (or another device), in the order in which it got them."""
    return [_complete(conn, row) for row in _BY_DEVICE.all(conn, device=device_id)]


def _complete(conn: sa.Connection, row: Any) -> schema.Port:
    return schema.record(
        schema.Port, row,
        addresses=tuple(schema.Address(*held) for held in _ADDRESSES.all(conn, port=row.id)),
        group_ids=tuple(_GROUPS.scalars(conn, port=row.id)),
    )


def existing_port(conn: sa.Connection, id_: str) -> schema.Port:
    """Raises PortNotFound."""
    port = find_port(conn, id_)
    if port is None:
        raise PortNotFound(id_)
    return port
