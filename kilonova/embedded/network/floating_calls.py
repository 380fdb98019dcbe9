"""Floating IPs, as the compute service asks for them on behalf of users: units of work."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.embedded.network import access, floating, schema
from kilonova.embedded.network.bodies import FloatingIpBody
from kilonova.embedded.network.datapath import Effects
from kilonova.services.network import FloatingIpSummary

_table = schema.floating_ips


def seen_by(conn: sa.Connection, caller: RequestContext) -> list[FloatingIpSummary]:
    """Those of the caller's project, oldest first."""
    nets, ports = schema.networks, schema.ports
    rows = conn.execute(
        sa.select(_table, nets.c.name.label("pool"), ports.c.device_id)
        .join(nets, nets.c.id == _table.c.network_id).outerjoin(ports, ports.c.id == _table.c.fixed_port_id)
        .where(_table.c.project_id == caller.project_id).order_by(_table.c.created_at, _table.c.id)
    )
    return [
        FloatingIpSummary(
            id=row.id, address=row.address, network_id=row.network_id, pool=row.pool, port_id=row.fixed_port_id,
            fixed_address=row.fixed_address, device_id=row.device_id or "",
        ) for row in rows
    ]


def create(conn: sa.Connection, caller: RequestContext, network_id: str, now: float,
           effects: Effects) -> FloatingIpSummary:
    made = floating.create(conn, caller, FloatingIpBody(floating_network_id=network_id), now)
    effects.routers = True
    (found,) = [item for item in seen_by(conn, caller) if item.id == made.id]
    return found


def delete(conn: sa.Connection, caller: RequestContext, id_: str, effects: Effects) -> None:
    effects.routers, effects.told = True, floating.ports_behind(conn, floating.delete(conn, caller, id_))


def associate(conn: sa.Connection, caller: RequestContext, id_: str, port_id: str | None, fixed_address: str | None,
              now: float, effects: Effects) -> None:
    before = access.floating_ip(conn, caller, id_)
    body = FloatingIpBody(port_id=port_id)
    if fixed_address is not None:
        body.fixed_ip_address = fixed_address
    _, after = floating.update(conn, caller, id_, body, now)
    effects.routers, effects.told = True, floating.ports_behind(conn, before, after)
