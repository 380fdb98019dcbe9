"""Bindings of a port to further hosts, as live migration uses them. Spec: EMN-32 to EMN-36."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from kilonova.domain.errors import InvalidInput
from kilonova.embedded.network import ports, schema, views
from kilonova.embedded.network.bodies import BindingBody
from kilonova.embedded.network.errors import BindingNotFound, PortBindingAlreadyActive, PortBindingAlreadyExists
from kilonova.embedded.network.port_records import existing_port

View = dict[str, Any]


def find(conn: sa.Connection, port_id: str) -> list[View]:
    """The active binding, if any, and the inactive ones."""
    port = existing_port(conn, port_id)
    found = []
    if port.host:
        found.append(views.binding(port.host, port.vif_type, port.vnic_type, port.profile, active=True,
                                   project_id=port.project_id))
    table = schema.bindings
    for row in conn.execute(sa.select(table).where(table.c.port_id == port_id).order_by(table.c.host)):
        found.append(views.binding(row.host, row.vif_type, row.vnic_type, row.profile, active=False,
                                   project_id=port.project_id))
    return found


def show(conn: sa.Connection, port_id: str, host: str) -> View:
    for view in find(conn, port_id):
        if view["host"] == host:
            return view
    raise BindingNotFound(port_id, host)


def create(conn: sa.Connection, port_id: str, body: BindingBody, now: float, serves: ports.Serves) -> View:
    """Active if the port has none yet, else inactive. Spec: EMN-32, EMN-33."""
    if not isinstance(body.host, str) or not body.host:
        raise InvalidInput("Invalid input: host is required.")
    port = existing_port(conn, port_id)
    if any(view["host"] == body.host for view in find(conn, port_id)):
        raise PortBindingAlreadyExists(port_id, body.host)
    columns = ports.binding(body.host, body.profile, body.vnic_type, serves)
    if port.host:
        conn.execute(sa.insert(schema.bindings).values(port_id=port_id, **columns))
    else:
        schema.touch(conn, schema.ports, port_id, now, **columns)
    return show(conn, port_id, body.host)


def update(conn: sa.Connection, port_id: str, host: str, body: BindingBody, now: float) -> View:
    view = show(conn, port_id, host)
    changes = {"profile": body.profile or {}}
    if view["status"] == "ACTIVE":
        schema.touch(conn, schema.ports, port_id, now, **changes)
    else:
        table = schema.bindings
        conn.execute(sa.update(table).where(table.c.port_id == port_id, table.c.host == host).values(**changes))
    return show(conn, port_id, host)


def activate(conn: sa.Connection, port_id: str, host: str, now: float) -> View:
    """The port moves to that host in one step; where it was becomes inactive. Spec: EMN-34."""
    if show(conn, port_id, host)["status"] == "ACTIVE":
        raise PortBindingAlreadyActive(port_id, host)
    port = existing_port(conn, port_id)
    table = schema.bindings
    chosen = conn.execute(sa.select(table).where(table.c.port_id == port_id, table.c.host == host)).one()
    conn.execute(sa.delete(table).where(table.c.port_id == port_id, table.c.host == host))
    if port.host:
        conn.execute(sa.insert(table).values(
            port_id=port_id, host=port.host, vif_type=port.vif_type, vnic_type=port.vnic_type, profile=port.profile,
        ))
    schema.touch(conn, schema.ports, port_id, now, host=host, vif_type=chosen.vif_type,
                 vnic_type=chosen.vnic_type, profile=chosen.profile)
    return show(conn, port_id, host)


def delete(conn: sa.Connection, port_id: str, host: str, now: float) -> None:
    """Spec: EMN-35."""
    if show(conn, port_id, host)["status"] == "ACTIVE":
        schema.touch(conn, schema.ports, port_id, now, host="", vif_type=ports.UNBOUND, profile={}, status=ports.DOWN)
    else:
        table = schema.bindings
        conn.execute(sa.delete(table).where(table.c.port_id == port_id, table.c.host == host))
