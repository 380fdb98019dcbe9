"""Security groups of a server. Spec: API-149, API-150, API-183."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers.networks import SECURITY_GROUPS
from kilonova.api.compute.server_actions import server_action
from kilonova.api.compute.server_lookup import find_server
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.api.schema import Object, Text, required
from kilonova.services.security_groups import GroupRule, GroupSummary

ANY_PORT = {"tcp": (1, 65535), "udp": (1, 65535)}
"""What stands for all ports; -1 and -1 with other protocols."""


def group_view(group: GroupSummary) -> dict[str, Any]:
    """As the network service knows it, in the words of the Compute API, which only knows rules of what comes in."""
    return {
        "id": group.id, "name": group.name, "description": group.description, "tenant_id": group.project_id,
        "rules": [rule_view(group, rule) for rule in group.rules if rule.ingress],
    }


def rule_view(group: GroupSummary, rule: GroupRule) -> dict[str, Any]:
    """A rule of that group."""
    first, last = rule.port_min, rule.port_max
    if rule.protocol is not None and first is None and last is None:
        first, last = ANY_PORT.get(rule.protocol.lower(), (-1, -1))
    anywhere = "0.0.0.0/0" if rule.version == 4 else "::/0"
    return {
        "id": rule.id, "parent_group_id": group.id, "ip_protocol": rule.protocol, "from_port": first, "to_port": last,
        "group": {"name": rule.remote_group, "tenant_id": group.project_id} if rule.remote_group else {},
        "ip_range": {} if rule.remote_group else {"cidr": rule.remote_prefix or anywhere},
    }


async def index(call: Call) -> Any:
    ports = await call.cloud.networks.ports_of(call.server.instance.uuid)
    groups = await call.cloud.networks.groups_of_ports(tuple(port.id for port in ports))
    ordered = sorted(groups, key=lambda group: (group.project_id, group.name))
    return {"security_groups": [group_view(group) for group in ordered]}


async def add(call: Call) -> None:
    await _change(call, call.body["addSecurityGroup"]["name"], member=True)


async def remove(call: Call) -> None:
    await _change(call, call.body["removeSecurityGroup"]["name"], member=False)


async def _change(call: Call, name: str, *, member: bool) -> None:
    ports = await call.cloud.networks.ports_of(call.server.instance.uuid)
    await call.cloud.networks.change_group(call.context, tuple(port.id for port in ports), name, member=member)


_NAMED = Object({"name": required(Text(1, 255))})

ROUTES = [
    Route(method="GET", path="/servers/{server_id}/os-security-groups", handler=index, look_up=find_server,
          rule=Rule("os-security-groups:list", Audience.READER), answer=SECURITY_GROUPS),
    server_action("addSecurityGroup", add, Rule("os-security-groups:add", Audience.MEMBER), _NAMED),
    server_action("removeSecurityGroup", remove, Rule("os-security-groups:remove", Audience.MEMBER), _NAMED),
]
