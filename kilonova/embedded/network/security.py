"""Security groups and their rules: units of work. Spec: EMN-39 to EMN-45."""

from __future__ import annotations

import ipaddress
import uuid
from typing import Any

import sqlalchemy as sa
from msgspec import UNSET

from kilonova.db.prepared import Prepared
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InvalidInput
from kilonova.embedded.network import access, quotas, schema
from kilonova.embedded.network.bodies import GroupBody, RuleBody, refuse_read_only, sent
from kilonova.embedded.network.errors import (
    SecurityGroupCannotRemoveDefault,
    SecurityGroupCannotUpdateDefault,
    SecurityGroupDefaultAlreadyExists,
    SecurityGroupInUse,
    SecurityGroupNotFound,
    SecurityGroupRuleExists,
)

DEFAULT = "default"
PROTOCOLS = {
    "ah": 51, "dccp": 33, "egp": 8, "esp": 50, "gre": 47, "icmp": 1, "icmpv6": 58, "igmp": 2, "ipip": 4,
    "ipv6-encap": 41, "ipv6-frag": 44, "ipv6-icmp": 58, "ipv6-nonxt": 59, "ipv6-opts": 60, "ipv6-route": 43,
    "ospf": 89, "pgm": 113, "rsvp": 46, "sctp": 132, "tcp": 6, "udp": 17, "udplite": 136, "vrrp": 112,
}
_WITH_PORTS = {6, 17, 33, 132, 136}
_ICMP = {1, 58}
_HAS_GROUP = Prepared(sa.select(schema.groups.c.id).where(schema.groups.c.id == sa.bindparam("id")))


def default_group_id(project_id: str) -> str:
    """A project has one default group; its id follows from the project, so two first uses make one group."""
    return str(uuid.uuid5(schema.NAMESPACE, f"default-group/{project_id}"))


def has_default_group(conn: sa.Connection, project_id: str) -> bool:
    return _HAS_GROUP.first(conn, id=default_group_id(project_id)) is not None


def ensure_default_group(conn: sa.Connection, project_id: str, now: float) -> str:
    """Make the default group at the project's first use; returns its id. Spec: EMN-39."""
    id_ = default_group_id(project_id)
    if not has_default_group(conn, project_id):
        _insert_group(conn, id_, project_id, DEFAULT, "Default security group", True, (), now)
        for ethertype in ("IPv4", "IPv6"):
            _insert_rule(conn, id_, project_id, now, direction="ingress", ethertype=ethertype, remote_group_id=id_)
    return id_


def create_group(conn: sa.Connection, caller: RequestContext, body: GroupBody, now: float) -> schema.Group:
    """Spec: EMN-39, EMN-45."""
    project_id = access.target_project(caller, body)
    ensure_default_group(conn, project_id, now)
    values = sent(body)
    name = values.get("name", "")
    if name == DEFAULT:
        raise SecurityGroupDefaultAlreadyExists
    quotas.check(conn, project_id, "security_group")
    id_ = str(uuid.uuid4())
    _insert_group(conn, id_, project_id, name, values.get("description", ""), values.get("stateful", True),
                  tuple(values.get("tags", ())), now)
    return access.group(conn, caller, id_)


def update_group(conn: sa.Connection, caller: RequestContext, id_: str, body: GroupBody,
                 now: float) -> schema.Group:
    group = access.group(conn, caller, id_)
    refuse_read_only(body, "project_id", "tenant_id", "tags")
    values = sent(body)
    if "name" in values and values["name"] != group.name and id_ == default_group_id(group.project_id):
        raise SecurityGroupCannotUpdateDefault
    schema.touch(conn, schema.groups, id_, now, **values)
    return access.group(conn, caller, id_)


def delete_group(conn: sa.Connection, caller: RequestContext, id_: str) -> list[str]:
    """Delete a group that no port uses, with the rules that name it. Spec: EMN-40, EMN-44.

    Returns:
        ids of other groups that lost a rule.
    """
    group = access.group(conn, caller, id_)
    if id_ == default_group_id(group.project_id) and not access.privileged(caller):
        raise SecurityGroupCannotRemoveDefault
    members, rules = schema.port_groups, schema.rules
    if conn.execute(sa.select(members.c.port_id).where(members.c.group_id == id_).limit(1)).first():
        raise SecurityGroupInUse(id_)
    others = conn.execute(
        sa.select(rules.c.group_id).distinct().where(rules.c.remote_group_id == id_, rules.c.group_id != id_)
    ).scalars().all()
    conn.execute(sa.delete(rules).where(sa.or_(rules.c.group_id == id_, rules.c.remote_group_id == id_)))
    conn.execute(sa.delete(schema.groups).where(schema.groups.c.id == id_))
    return list(others)


def rules_of(conn: sa.Connection, group_ids: list[str]) -> dict[str, list[schema.Rule]]:
    """The rules of each group, oldest first."""
    table = schema.rules
    found: dict[str, list[schema.Rule]] = {id_: [] for id_ in group_ids}
    for row in conn.execute(
        sa.select(table).where(table.c.group_id.in_(group_ids)).order_by(table.c.created_at, table.c.id)
    ):
        found[row.group_id].append(schema.record(schema.Rule, row))
    return found


def create_rule(conn: sa.Connection, caller: RequestContext, body: RuleBody, now: float) -> schema.Rule:
    """Spec: EMN-41, EMN-42, EMN-43."""
    if body.security_group_id is UNSET:
        raise InvalidInput("Invalid input: security_group_id is required.")
    group = access.group(conn, caller, body.security_group_id)
    quotas.check(conn, group.project_id, "security_group_rule")
    values = checked_rule(sent(body))
    if values["remote_group_id"] is not None and not _group_exists(conn, values["remote_group_id"]):
        raise SecurityGroupNotFound(values["remote_group_id"])
    rules = schema.rules
    same = conn.execute(
        sa.select(rules.c.id).where(rules.c.group_id == group.id, rules.c.fingerprint == fingerprint(values))
    ).scalar()
    if same is not None:
        raise SecurityGroupRuleExists(same)
    id_ = _insert_rule(conn, group.id, group.project_id, now, description=sent(body).get("description", ""), **values)
    return access.rule(conn, caller, id_)


def delete_rule(conn: sa.Connection, caller: RequestContext, id_: str) -> schema.Rule:
    rule = access.rule(conn, caller, id_)
    conn.execute(sa.delete(schema.rules).where(schema.rules.c.id == id_))
    return rule


def checked_rule(values: dict[str, Any]) -> dict[str, Any]:
    """The columns of a rule. Raises InvalidInput for one that contradicts itself. Spec: EMN-42, EMN-43."""
    direction, ethertype = values.get("direction"), values.get("ethertype") or "IPv4"
    if direction not in ("ingress", "egress"):
        raise InvalidInput(f"Invalid input for direction: '{direction}' is not in ['ingress', 'egress'].")
    by_lower = {"ipv4": "IPv4", "ipv6": "IPv6"}
    if ethertype.lower() not in by_lower:
        raise InvalidInput(f"Security group rule for ethertype '{ethertype}' not supported.")
    ethertype = by_lower[ethertype.lower()]
    protocol, number = _protocol(values.get("protocol"))
    low, high = values.get("port_range_min"), values.get("port_range_max")
    _check_ports(number, protocol, low, high)
    prefix, remote = values.get("remote_ip_prefix"), values.get("remote_group_id")
    if prefix is not None and remote is not None:
        raise InvalidInput("Only remote_ip_prefix or remote_group_id may be provided.")
    if prefix is not None:
        try:
            parsed = ipaddress.ip_network(prefix, strict=False)
        except ValueError as error:
            raise InvalidInput(f"Invalid input for remote_ip_prefix: '{prefix}' is not a valid prefix.") from error
        if parsed.version != int(ethertype[-1]):
            raise InvalidInput(f"Conflicting value ethertype {ethertype} for CIDR {prefix}")
    return {
        "direction": direction, "ethertype": ethertype, "protocol": protocol, "port_min": low, "port_max": high,
        "remote_prefix": prefix, "remote_group_id": remote,
    }


def protocol_number(protocol: str) -> int:
    """The IP protocol number of a stored protocol."""
    return PROTOCOLS[protocol] if protocol in PROTOCOLS else int(protocol)


def fingerprint(values: dict[str, Any]) -> str:
    """Equal for two rules of a group that mean the same."""
    protocol = values.get("protocol")
    number = "" if protocol is None else protocol_number(protocol)
    prefix = values.get("remote_prefix")
    network = "" if prefix is None else str(ipaddress.ip_network(prefix, strict=False))
    parts = (values["direction"], values["ethertype"], number, values.get("port_min"), values.get("port_max"),
             network, values.get("remote_group_id") or "")
    return "|".join(str(part) for part in parts)


def _protocol(value: str | int | None) -> tuple[str | None, int | None]:
    """The protocol as stored, and its number (None for any)."""
    if value is None or str(value).lower() in ("any", ""):
        return None, None
    text = str(value).lower()
    if text in PROTOCOLS:
        return text, PROTOCOLS[text]
    if text.isascii() and text.isdigit() and int(text) <= 255:
        return text, int(text)
    raise InvalidInput(f"Security group rule protocol {value} not supported.")


def _check_ports(number: int | None, protocol: str | None, low: int | None, high: int | None) -> None:
    if low is None and high is None:
        return
    if number in _ICMP:
        for field, value in (("port_range_min", low), ("port_range_max", high)):
            if value is not None and not 0 <= value <= 255:
                raise InvalidInput(f"Invalid value for ICMP {field}: {value} is not between 0 and 255.")
        if low is None:
            raise InvalidInput("ICMP code (port-range-max) is provided but ICMP type (port-range-min) is missing.")
        return
    if number is None:
        raise InvalidInput("Must also specify protocol if port range is given.")
    if number not in _WITH_PORTS:
        raise InvalidInput(f"Invalid input: protocol {protocol} has no ports.")
    if low is None or high is None or not 1 <= low <= high <= 65535:
        raise InvalidInput(
            "For TCP/UDP protocols, port_range_min must be <= port_range_max and both between 1 and 65535."
        )


def _group_exists(conn: sa.Connection, id_: str) -> bool:
    return conn.execute(sa.select(schema.groups.c.id).where(schema.groups.c.id == id_)).first() is not None


def _insert_group(conn: sa.Connection, id_: str, project_id: str, name: str, description: str, stateful: bool,
                  tags: tuple[str, ...], now: float) -> None:
    conn.execute(sa.insert(schema.groups).values(
        id=id_, project_id=project_id, name=name, description=description, stateful=stateful, tags=tags,
        **schema.stamp(now),
    ))
    for ethertype in ("IPv4", "IPv6"):
        _insert_rule(conn, id_, project_id, now, direction="egress", ethertype=ethertype)


def _insert_rule(conn: sa.Connection, group_id: str, project_id: str, now: float, *, description: str = "",
                 **values: Any) -> str:
    id_ = str(uuid.uuid4())
    row = {"protocol": None, "port_min": None, "port_max": None, "remote_prefix": None, "remote_group_id": None}
    conn.execute(sa.insert(schema.rules).values(
        id=id_, group_id=group_id, project_id=project_id, description=description, tags=(),
        fingerprint=fingerprint(values), **(row | values), **schema.stamp(now),
    ))
    return id_
