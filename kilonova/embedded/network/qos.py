"""QoS policies and their rules: units of work, and what ports ask of their hosts because of them."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from msgspec import UNSET, UnsetType

from kilonova.db.prepared import Prepared
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Forbidden, InvalidInput
from kilonova.domain.network import PACKET_RATE_TRAITS, PortGroup, PortNeed, bandwidth_traits
from kilonova.embedded.network import access, schema
from kilonova.embedded.network.bodies import BandwidthRuleBody, PacketRateRuleBody, PolicyBody, refuse_read_only, sent
from kilonova.embedded.network.errors import (
    QosPolicyInUse,
    QosPolicyNotFound,
    QosRuleConflict,
    QosRuleNotFound,
)
from kilonova.embedded.network.qos_schema import (
    MINIMUM_BANDWIDTH,
    MINIMUM_PACKET_RATE,
    Policy,
    Rule,
    RuleType,
    policies,
    rules,
    targets,
)

RuleBody = BandwidthRuleBody | PacketRateRuleBody


def find(conn: sa.Connection, caller: RequestContext, *where: sa.ColumnElement[bool]) -> list[Policy]:
    """Those that the caller may use, oldest first."""
    if not access.privileged(caller):
        where = (*where, sa.or_(policies.c.project_id == caller.project_id, policies.c.shared))
    rows = conn.execute(sa.select(policies).where(*where).order_by(policies.c.created_at, policies.c.id))
    return [Policy(**row._asdict()) for row in rows]


def get(conn: sa.Connection, caller: RequestContext, id_: str, *, change: bool = False) -> Policy:
    """Raises QosPolicyNotFound; Forbidden: only administrators make and change policies."""
    if change and not access.privileged(caller):
        raise Forbidden("Only an administrator may change QoS policies.")
    found = find(conn, caller, policies.c.id == id_)
    if not found:
        raise QosPolicyNotFound(id_)
    return found[0]


def create(conn: sa.Connection, caller: RequestContext, body: PolicyBody, now: float) -> Policy:
    if not access.privileged(caller):
        raise Forbidden("Only an administrator may make QoS policies.")
    values = sent(body)
    row = {
        "id": str(uuid.uuid4()), "project_id": access.target_project(caller, body), "name": values.get("name", ""),
        "description": values.get("description", ""), "tags": tuple(values.get("tags", ())),
        "shared": values.get("shared", False), **schema.stamp(now),
    }
    conn.execute(policies.insert().values(row))
    return get(conn, caller, str(row["id"]))


def update(conn: sa.Connection, caller: RequestContext, id_: str, body: PolicyBody, now: float) -> Policy:
    get(conn, caller, id_, change=True)
    refuse_read_only(body, "project_id", "tenant_id", "tags")
    values = sent(body)
    changes = {name: values[name] for name in ("name", "description", "shared") if name in values}
    schema.touch(conn, policies, id_, now, **changes)
    return get(conn, caller, id_)


def delete(conn: sa.Connection, caller: RequestContext, id_: str) -> None:
    """Raises QosPolicyInUse: a network or a port has it."""
    get(conn, caller, id_, change=True)
    if conn.execute(sa.select(targets.c.target_id).where(targets.c.policy_id == id_)).first():
        raise QosPolicyInUse(id_)
    conn.execute(rules.delete().where(rules.c.policy_id == id_))
    conn.execute(policies.delete().where(policies.c.id == id_))


def rules_of(conn: sa.Connection, policy_ids: Sequence[str]) -> dict[str, list[Rule]]:
    found: dict[str, list[Rule]] = defaultdict(list)
    statement = sa.select(rules).where(rules.c.policy_id.in_(policy_ids))
    for row in conn.execute(statement.order_by(rules.c.type, rules.c.direction)):
        found[row.policy_id].append(Rule(**row._asdict()))
    return found


def get_rule(conn: sa.Connection, type_: RuleType, policy_id: str, id_: str) -> Rule:
    """Raises QosRuleNotFound."""
    for rule in rules_of(conn, [policy_id])[policy_id]:
        if (rule.id, rule.type) == (id_, type_.name):
            return rule
    raise QosRuleNotFound(policy_id, id_)


def policy_of_rule(conn: sa.Connection, type_: RuleType, id_: str) -> str:
    """The id of the policy that a rule is of. Raises QosRuleNotFound."""
    found: str | None = conn.execute(
        sa.select(rules.c.policy_id).where(rules.c.id == id_, rules.c.type == type_.name)
    ).scalar()
    if found is None:
        raise QosRuleNotFound(None, id_)
    return found


def create_rule(
    conn: sa.Connection, caller: RequestContext, type_: RuleType, policy_id: str, body: RuleBody
) -> Rule:
    get(conn, caller, policy_id, change=True)
    _refuse_if_bound(conn, policy_id)
    values = {"direction": "egress"} | sent(body)
    _check_rule(conn, type_, policy_id, values)
    id_ = str(uuid.uuid4())
    conn.execute(rules.insert().values(id=id_, policy_id=policy_id, type=type_.name, **values))
    return get_rule(conn, type_, policy_id, id_)


def update_rule(
    conn: sa.Connection, caller: RequestContext, type_: RuleType, policy_id: str, id_: str, body: RuleBody
) -> Rule:
    get(conn, caller, policy_id, change=True)
    before = get_rule(conn, type_, policy_id, id_)
    _refuse_if_bound(conn, policy_id)
    values = {"direction": before.direction, "amount": before.amount} | sent(body)
    _check_rule(conn, type_, policy_id, values, but=id_)
    conn.execute(rules.update().where(rules.c.id == id_).values(values))
    return get_rule(conn, type_, policy_id, id_)


def delete_rule(conn: sa.Connection, caller: RequestContext, type_: RuleType, policy_id: str, id_: str) -> None:
    get(conn, caller, policy_id, change=True)
    get_rule(conn, type_, policy_id, id_)
    _refuse_if_bound(conn, policy_id)
    conn.execute(rules.delete().where(rules.c.id == id_))


def _check_rule(
    conn: sa.Connection, type_: RuleType, policy_id: str, values: dict[str, Any], *, but: str | None = None
) -> None:
    """Raises InvalidInput: a wrong value. QosRuleConflict: another rule of the policy says something else."""
    direction = values["direction"]
    if direction not in type_.classes:
        raise InvalidInput(f"Invalid input for direction: it must be one of {', '.join(sorted(type_.classes))}.")
    if not 0 <= values.get("amount", -1) <= 2**31 - 1:
        raise InvalidInput(f"Invalid input for {type_.amount}: it must be a number of {type_.unit}, 0 or more.")
    for other in rules_of(conn, [policy_id])[policy_id]:
        if other.type != type_.name or other.id == but:
            continue
        if other.direction == direction:
            raise QosRuleConflict(policy_id, f"it has a rule for {direction} already")
        if "any" in (other.direction, direction):
            raise QosRuleConflict(policy_id, f"it has a rule for {other.direction}, beside which there can be none "
                                             f"for {direction}")


def _refuse_if_bound(conn: sa.Connection, policy_id: str) -> None:
    """What is claimed for a port follows no change, so there is none. Raises QosRuleConflict."""
    ports = schema.ports
    having = sa.select(targets.c.target_id).where(targets.c.policy_id == policy_id)
    own = sa.select(targets.c.target_id)
    mine = sa.or_(ports.c.id.in_(having), sa.and_(ports.c.network_id.in_(having), ports.c.id.not_in(own)))
    if conn.execute(sa.select(ports.c.id).where(mine, ports.c.device_owner.startswith("compute:")).limit(1)).first():
        raise QosRuleConflict(policy_id, "servers have ports with it")


# --- which policy a network or a port has ----------------------------------------------------------------


def set_policy(
    conn: sa.Connection, caller: RequestContext, target: str, wanted: str | UnsetType | None, *, bound: bool = False
) -> bool:
    """Give a network or a port a policy, or none. Returns whether it had another.

    Args:
        wanted: id of the policy; UNSET for no change. bound: servers have it, and what it guarantees them stays.

    Raises:
        QosPolicyNotFound; QosRuleConflict: something is guaranteed, before or afterwards, to what is bound.
    """
    if wanted is UNSET or (before := policy_of(conn, target)) == wanted:
        return False
    if wanted is not None:
        get(conn, caller, wanted)
    if bound and any(rules_of(conn, [id_ for id_ in (before, wanted) if id_ is not None]).values()):
        raise QosRuleConflict(wanted or before or "", f"servers are on network {target}")
    forget(conn, target)
    if wanted is not None:
        conn.execute(targets.insert().values(target_id=target, policy_id=wanted))
    return True


def policy_of(conn: sa.Connection, target: str) -> str | None:
    found: str | None = _POLICY.scalar(conn, target=target)
    return found


def forget(conn: sa.Connection, target: str) -> None:
    _FORGET.run(conn, target=target)


def guarantees(conn: sa.Connection, network_id: str) -> bool:
    """Whether ports of a network ask for something unless they have a policy of their own."""
    policy = policy_of(conn, network_id)
    return policy is not None and bool(rules_of(conn, [policy])[policy])


def need_of(conn: sa.Connection, port: schema.Port, physical_network: str) -> PortNeed | None:
    """What a port asks of its host, None for nothing. physical_network: that it is on, "" for none."""
    policy = policy_of(conn, port.id) or policy_of(conn, port.network_id)
    if policy is None:
        return None
    found = rules_of(conn, [policy])[policy]
    groups = (
        _group(MINIMUM_BANDWIDTH, found, bandwidth_traits(physical_network)),
        _group(MINIMUM_PACKET_RATE, found, PACKET_RATE_TRAITS),
    )
    wanted = tuple(group for group in groups if group.resources)
    return PortNeed(port_id=port.id, groups=wanted) if wanted else None


def _group(type_: RuleType, found: Sequence[Rule], traits: tuple[str, ...]) -> PortGroup:
    """What the rules of a type guarantee."""
    amounts = {
        type_.classes[rule.direction]: rule.amount for rule in found if rule.type == type_.name and rule.amount
    }
    return PortGroup(name=type_.group, resources=amounts, traits=traits)


def group_of(port_id: str, name: str) -> str:
    """The id of a group of resources that a port asks for: always the same for the same port."""
    return str(uuid.uuid5(schema.NAMESPACE, f"{name} of port {port_id}"))


def serve(conn: sa.Connection, port: schema.Port, providers: dict[str, str], now: float) -> None:
    """Let the binding of a port name who serves what it asks for. providers: by name of the group. Spec: EMP-08."""
    profile = port.profile | {"allocation": {group_of(port.id, name): uuid_ for name, uuid_ in providers.items()}}
    if profile != port.profile:
        schema.touch(conn, schema.ports, port.id, now, profile=profile)


def forget_provider(conn: sa.Connection, port: schema.Port, now: float) -> None:
    """Let the binding of a port name nobody who serves it."""
    profile = {name: value for name, value in port.profile.items() if name != "allocation"}
    schema.touch(conn, schema.ports, port.id, now, profile=profile)


def of_network(conn: sa.Connection, view: dict[str, Any]) -> dict[str, Any]:
    """The view of a network with its policy."""
    return view | {"qos_policy_id": policy_of(conn, view["id"])}


def of_port(conn: sa.Connection, port: schema.Port, view: dict[str, Any]) -> dict[str, Any]:
    """The view of a port with its policy, and that of its network."""
    return view | {"qos_policy_id": policy_of(conn, port.id), "qos_network_policy_id": policy_of(conn, port.network_id)}


def resource_request(need: PortNeed | None) -> dict[str, Any] | None:
    """What a port asks for, as placement is asked for it; None for nothing."""
    if need is None or not need.groups:
        return None
    groups = [
        {"id": group_of(need.port_id, group.name), "required": list(group.traits), "resources": group.resources}
        for group in need.groups
    ]
    return {"request_groups": groups, "same_subtree": [group["id"] for group in groups]}


_POLICY = Prepared(sa.select(targets.c.policy_id).where(targets.c.target_id == sa.bindparam("target")))
_FORGET = Prepared(targets.delete().where(targets.c.target_id == sa.bindparam("target")))
