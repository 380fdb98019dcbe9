"""Security groups of servers, as the compute service asks for them: units of work."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import UNSET

from kilonova.db.prepared import Prepared
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Conflict, InvalidInput, NotFound
from kilonova.embedded.network import access, ports, schema, security
from kilonova.embedded.network.bodies import GroupBody, PortBody, RuleBody
from kilonova.embedded.network.datapath import Effects
from kilonova.embedded.network.port_records import find_port
from kilonova.services.security_groups import GroupRule, GroupSummary, NewRule

_groups = schema.groups.c
_RESOLVE_GROUP = Prepared(sa.select(_groups.id).where(
    _groups.project_id == sa.bindparam("project"),
    sa.or_(_groups.id == sa.bindparam("name"), _groups.name == sa.bindparam("name")),
))
_ORDERED = sa.select(schema.groups).order_by(_groups.project_id, _groups.name, _groups.id)


def resolve(conn: sa.Connection, project_id: str, names: tuple[str, ...], now: float) -> tuple[str, ...]:
    """Ids of groups of the project, given by name or id. Raises InvalidInput. Spec: EMN-45."""
    default = security.ensure_default_group(conn, project_id, now)
    found = []
    for name in names:
        rows = _RESOLVE_GROUP.scalars(conn, project=project_id, name=name)
        if not rows:
            raise InvalidInput(f"Unable to find security_group with name or id '{name}'")
        if len(rows) > 1 and name not in rows:
            raise InvalidInput(f"Multiple security groups matching '{name}'.", hint="use an ID to be more specific")
        found.append(default if name == security.DEFAULT else name if name in rows else rows[0])
    return tuple(dict.fromkeys(found))


def groups_of_ports(conn: sa.Connection, port_ids: tuple[str, ...]) -> list[GroupSummary]:
    """The groups of these ports, each once."""
    members = schema.port_groups
    used = sa.select(members.c.group_id).where(members.c.port_id.in_(port_ids))
    return _summaries(conn, _ORDERED.where(_groups.id.in_(used)))


def listed(conn: sa.Connection, project_id: str | None, offset: int, limit: int) -> list[GroupSummary]:
    """A page of those of a project, None for all."""
    statement = _ORDERED if project_id is None else _ORDERED.where(_groups.project_id == project_id)
    return _summaries(conn, statement.offset(offset).limit(limit))


def shown(conn: sa.Connection, caller: RequestContext, id_: str) -> GroupSummary:
    access.group(conn, caller, id_)
    return _summaries(conn, _ORDERED.where(_groups.id == id_))[0]


def create(conn: sa.Connection, caller: RequestContext, name: str, description: str, now: float) -> GroupSummary:
    made = security.create_group(conn, caller, GroupBody(name=name, description=description), now)
    return shown(conn, caller, made.id)


def update(conn: sa.Connection, caller: RequestContext, id_: str, name: str, description: str | None,
           now: float) -> GroupSummary:
    body = GroupBody(name=name, description=UNSET if description is None else description)
    security.update_group(conn, caller, id_, body, now)
    return shown(conn, caller, id_)


def delete(conn: sa.Connection, caller: RequestContext, id_: str, effects: Effects) -> None:
    effects.groups += [id_, *security.delete_group(conn, caller, id_)]


def create_rule(conn: sa.Connection, caller: RequestContext, group_id: str, rule: NewRule, now: float,
                effects: Effects) -> GroupRule:
    body = RuleBody(
        security_group_id=group_id, direction="ingress", ethertype=f"IPv{rule.version}", protocol=rule.protocol,
        port_range_min=rule.port_min, port_range_max=rule.port_max, remote_ip_prefix=rule.remote_prefix,
        remote_group_id=rule.remote_group,
    )
    made = security.create_rule(conn, caller, body, now)
    effects.groups.append(group_id)
    (found,) = [known for known in shown(conn, caller, group_id).rules if known.id == made.id]
    return found


def delete_rule(conn: sa.Connection, caller: RequestContext, id_: str, effects: Effects) -> None:
    effects.groups.append(security.delete_rule(conn, caller, id_).group_id)


def _summaries(conn: sa.Connection, statement: sa.Select[tuple[Any, ...]]) -> list[GroupSummary]:
    """The selected groups with their rules."""
    found = [schema.record(schema.Group, row) for row in conn.execute(statement)]
    rules = security.rules_of(conn, [group.id for group in found])
    remote = {rule.remote_group_id for listed in rules.values() for rule in listed if rule.remote_group_id}
    named = conn.execute(sa.select(_groups.id, _groups.name).where(_groups.id.in_(remote)))
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
