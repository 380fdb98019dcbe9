"""Security groups as the Compute API once had them. Spec: API-285 to API-291, API-536."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable
from typing import Any, TypeVar

from kilonova.api.call import Call
from kilonova.api.compute.answers import networks as answers
from kilonova.api.compute.server_lookup import is_uuid
from kilonova.api.compute.server_security_groups import group_view, rule_view
from kilonova.api.paging import LIMIT, effective_limit
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Anything, Integer, Object, Text, nullable, optional, required
from kilonova.domain.errors import Conflict, InvalidInput
from kilonova.services.security_groups import NewRule

T = TypeVar("T")
LAST = 35
"""Microversion after which clients ask the network service itself."""


def _uuid(text: str | None) -> str:
    """Raises InvalidInput: no group or rule can have such an id."""
    if text is None or not is_uuid(text):
        raise InvalidInput(f"Security group id should be uuid: {text}")
    return text


async def _refused(changing: Awaitable[T]) -> T:
    """What the network service calls a conflict is a bad request here."""
    try:
        return await changing
    except Conflict as error:
        raise InvalidInput(error.message, hint=error.hint) from error


async def index(call: Call) -> Any:
    """Administrators may ask for those of all projects; others get their own."""
    limit = effective_limit(call) or call.cloud.options.max_limit
    found = await call.cloud.networks.groups(
        call.context, all_projects="all_tenants" in call.query and call.context.is_admin,
        offset=call.query.last("offset", 0), limit=limit,
    )
    return {"security_groups": [group_view(group) for group in found]}


async def show(call: Call) -> Any:
    return {"security_group": group_view(await call.cloud.networks.group(call.context, _uuid(call.path["id"])))}


async def create(call: Call) -> Any:
    wanted = call.body["security_group"]
    made = await _refused(
        call.cloud.networks.create_group(call.context, wanted["name"], wanted.get("description") or "")
    )
    return {"security_group": group_view(made)}


async def update(call: Call) -> Any:
    wanted = call.body["security_group"]
    changed = await _refused(call.cloud.networks.update_group(
        call.context, _uuid(call.path["id"]), wanted["name"], wanted.get("description")
    ))
    return {"security_group": group_view(changed)}


async def delete(call: Call) -> None:
    await _refused(call.cloud.networks.delete_group(call.context, _uuid(call.path["id"])))


async def create_rule(call: Call) -> Any:
    wanted = call.body["security_group_rule"]
    parent = _uuid(wanted.get("parent_group_id"))
    made = await _refused(call.cloud.networks.create_group_rule(call.context, parent, _new_rule(wanted)))
    group = await call.cloud.networks.group(call.context, parent)
    return {"security_group_rule": rule_view(group, made)}


def _new_rule(wanted: dict[str, Any]) -> NewRule:
    """A rule that names a group may leave the ports open, and the protocol too; one with an address range may not."""
    protocol, group = wanted.get("ip_protocol"), wanted.get("group_id")
    kind = protocol.lower() if protocol else None
    if kind not in ("tcp", "udp", "icmp", None):
        raise InvalidInput(f"Invalid IP protocol {protocol}: tcp, udp and icmp are possible.")
    first, last = wanted.get("from_port"), wanted.get("to_port")
    if group is not None and first is None and last is None:
        return NewRule(protocol=kind, remote_group=_uuid(group))
    if kind is None or first is None or last is None:
        raise InvalidInput("Not enough parameters to build rule: ip_protocol, from_port and to_port are needed.")
    ports = _icmp(first, last) if kind == "icmp" else _ports(first, last)
    if group is not None:
        return NewRule(protocol=kind, port_min=ports[0], port_max=ports[1], remote_group=_uuid(group))
    prefix = _prefix(wanted.get("cidr") or "0.0.0.0/0")
    if (kind, prefix.version) == ("icmp", 6):
        kind = "ipv6-icmp"
    return NewRule(version=prefix.version, protocol=kind, port_min=ports[0], port_max=ports[1],
                   remote_prefix=str(prefix))


def _icmp(type_: int, code: int) -> tuple[int | None, int | None]:
    """Type and code; -1 stands for all."""
    if not (-1 <= type_ <= 255 and -1 <= code <= 255):
        raise InvalidInput(f"Invalid port range {type_}:{code}. For ICMP, type and code are from -1 to 255.")
    return None if type_ == -1 else type_, None if code == -1 else code


def _ports(first: int, last: int) -> tuple[int, int]:
    if not 1 <= first <= last <= 65535:
        raise InvalidInput(f"Invalid port range {first}:{last}. Valid ports are between 1 and 65535, in order.")
    return first, last


def _prefix(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    """An address within the range may stand for it, and is shown as it was given."""
    try:
        return ipaddress.ip_interface(text)
    except ValueError as error:
        raise InvalidInput(f"Invalid cidr {text}: {error}.") from error


async def delete_rule(call: Call) -> None:
    await call.cloud.networks.delete_group_rule(call.context, _uuid(call.path["id"]))


def _rule(name: str, audience: Audience) -> Rule:
    return Rule(f"os-security-groups:{name}", audience)


_DESCRIBED = {"name": required(Text(0, 255)), "description": optional(nullable(Text(0, 255)))}
_GROUP = Object({"security_group": required(Object(_DESCRIBED, others=Anything()))}, others=Anything())
_PORT, _TEXT = optional(nullable(Integer(None))), optional(nullable(Text(0, 255)))
_RULE = Object({"security_group_rule": required(Object({
    "parent_group_id": _TEXT, "group_id": _TEXT, "cidr": _TEXT, "ip_protocol": _TEXT, "from_port": _PORT,
    "to_port": _PORT,
}, others=Anything()))}, others=Anything())
_LIST = Query({"limit": LIMIT, "offset": Param(Integer(0)), "all_tenants": Param(Anything())})

_ALL, _ONE, _RULES = "/os-security-groups", "/os-security-groups/{id}", "/os-security-group-rules"
ROUTES = [
    Route(method="GET", path=_ALL, handler=index, rule=_rule("get", Audience.READER), query=_LIST, until=LAST,
          answer=answers.SECURITY_GROUPS),
    Route(method="POST", path=_ALL, handler=create, rule=_rule("create", Audience.MEMBER), body=_GROUP, until=LAST,
          answer=answers.SECURITY_GROUP),
    Route(method="GET", path=_ONE, handler=show, rule=_rule("show", Audience.READER), until=LAST,
          answer=answers.SECURITY_GROUP),
    Route(method="PUT", path=_ONE, handler=update, rule=_rule("update", Audience.MEMBER), body=_GROUP, until=LAST,
          answer=answers.SECURITY_GROUP),
    Route(method="DELETE", path=_ONE, handler=delete, rule=_rule("delete", Audience.MEMBER), status=202, until=LAST),
    Route(method="POST", path=_RULES, handler=create_rule, rule=_rule("rule:create", Audience.MEMBER), body=_RULE,
          until=LAST, answer=answers.SECURITY_GROUP_RULE),
    Route(method="DELETE", path=f"{_RULES}/{{id}}", handler=delete_rule, rule=_rule("rule:delete", Audience.MEMBER),
          status=202, until=LAST),
]
