"""Security groups of servers, as the compute service asks for them: units of work."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Conflict, NotFound
from kilonova.embedded.network import access, ports, schema, security
from kilonova.embedded.network.bodies import PortBody
from kilonova.embedded.network.datapath import Effects
from kilonova.embedded.network.port_records import find_port
from kilonova.services.network import GroupRule, GroupSummary


def groups_of_ports(conn: sa.Connection, port_ids: tuple[str, ...]) -> list[GroupSummary]:
    """The groups of these ports, each once."""
    table, members = schema.groups, schema.port_groups
    rows = conn.execute(
        sa.select(table).where(table.c.id.in_(sa.select(members.c.group_id).where(members.c.port_id.in_(port_ids))))
        .order_by(table.c.project_id, table.c.name, table.c.id)
    )
    found = [schema.record(schema.Group, row) for row in rows]
    rules = security.rules_of(conn, [group.id for group in found])
    remote = {rule.remote_group_id for listed in rules.values() for rule in listed if rule.remote_group_id}
    named = conn.execute(sa.select(table.c.id, table.c.name).where(table.c.id.in_(remote)))
    names = {row.id: row.name for row in named}
    return [
        GroupSummary(
            id=group.id, name=group.name, description=group.description, project_id=group.project_id,
            rules=tuple(_rule(rule, names) for rule in rules[group.id]),
        ) for group in found
    ]


def change_group(
    conn: sa.Connection, caller: RequestContext, port_ids: tuple[str, ...], name: str, *, member: bool, now: float,
    serves: ports.Serves, effects: Effects,
) -> None:
    """Put ports into a group or take them out, with the full new list for each. Spec: EMN-47."""
    group = _find(conn, caller, name)
    found = [port for id_ in port_ids if (port := find_port(conn, id_)) is not None]
    able = [port for port in found if port.addresses and port.secured]
    if member and not able:
        raise Conflict(f"Security group {name} cannot be applied: the server has no port that takes one.")
    if not member and not any(group.id in port.group_ids for port in able):
        raise NotFound(f"Security group {name} is not associated with the server.")
    service = msgspec.structs.replace(caller, roles=(*caller.roles, "service"))
    for port in able:
        others = [id_ for id_ in port.group_ids if id_ != group.id]
        wanted = [*others, group.id] if member else others
        if set(wanted) != set(port.group_ids):
            body = PortBody(security_groups=wanted)
            effects.ports.append(ports.update_port(conn, service, port.id, body, now, serves))


def _find(conn: sa.Connection, caller: RequestContext, name: str) -> schema.Group:
    """A group of the caller's, by id or name."""
    table = schema.groups
    own = sa.or_(table.c.id == name, sa.and_(table.c.name == name, table.c.project_id == caller.project_id))
    rows = [schema.record(schema.Group, row) for row in conn.execute(sa.select(table).where(own))]
    rows = [group for group in rows if access.owns(caller, group)]
    exact = [group for group in rows if group.id == name]
    if not rows:
        raise NotFound(f"Security group {name} not found.")
    if len(rows) > 1 and not exact:
        raise Conflict(f"Multiple security groups matching '{name}'.", hint="use an ID to be more specific")
    return exact[0] if exact else rows[0]


def _rule(rule: schema.Rule, names: dict[str, str]) -> GroupRule:
    return GroupRule(
        id=rule.id, ingress=rule.direction == "ingress", version=int(rule.ethertype[-1]), protocol=rule.protocol,
        port_min=rule.port_min, port_max=rule.port_max, remote_prefix=rule.remote_prefix,
        remote_group=names.get(rule.remote_group_id or "", ""),
    )
