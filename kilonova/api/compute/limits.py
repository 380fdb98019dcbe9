"""The limits of a project and what it uses. Spec: API-105, API-465."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import catalogue as answers
from kilonova.api.compute.stored_quotas import stored_quotas
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Text
from kilonova.db import server_groups

LIMITS = Rule("limits", Audience.ANY)
OTHER_PROJECT = Rule("limits:other_project", Audience.ADMIN)

ALWAYS = 104
_MAXIMA = (
    ("maxTotalInstances", "instances", ALWAYS),
    ("maxTotalCores", "cores", ALWAYS),
    ("maxTotalRAMSize", "ram", ALWAYS),
    ("maxTotalKeypairs", "key_pairs", ALWAYS),
    ("maxServerMeta", "metadata_items", ALWAYS),
    ("maxServerGroups", "server_groups", ALWAYS),
    ("maxServerGroupMembers", "server_group_members", ALWAYS),
    ("maxTotalFloatingIps", "floating_ips", 35),
    ("maxSecurityGroups", "security_groups", 35),
    ("maxSecurityGroupRules", "security_group_rules", 35),
    ("maxImageMeta", "metadata_items", 38),
    ("maxPersonality", "injected_files", 56),
    ("maxPersonalitySize", "injected_file_content_bytes", 56),
)
"""Name, resource, and the last microversion that shows it."""


async def show(call: Call) -> Any:
    project_id = call.context.project_id or ""
    if "tenant_id" in call.query:
        call.require(OTHER_PROJECT)
        project_id = call.query.last("tenant_id")
    values = await stored_quotas(call).values(project_id)
    usage = await call.cloud.quotas.usage(project_id)
    absolute = {name: values[resource] for name, resource, until in _MAXIMA if call.version <= until}
    absolute |= {
        "totalInstancesUsed": usage.instances, "totalCoresUsed": usage.cores, "totalRAMUsed": usage.ram,
        "totalServerGroupsUsed": await call.cloud.cells.api.read(lambda conn: server_groups.count(conn, project_id)),
    }
    if call.version <= 35:
        absolute |= {"totalFloatingIpsUsed": 0, "totalSecurityGroupsUsed": 0}
    return {"limits": {"rate": [], "absolute": absolute}}


ROUTES = [
    Route(method="GET", path="/limits", handler=show, rule=LIMITS, rules=(OTHER_PROJECT,),
          query=Query({"reserved": Param(Text()), "tenant_id": Param(Text())}, strict_since=75),
          answer=answers.LIMITS),
]
