"""One server: show, update, delete. Spec: API-110 to API-112."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.api.compute import server_records
from kilonova.api.compute.answers import servers as answers
from kilonova.api.compute.server_extras import extras_for, show_full
from kilonova.api.compute.server_lookup import find_server
from kilonova.api.compute.server_outline import SINCE, outline
from kilonova.api.compute.server_schema import UPDATE
from kilonova.api.compute.server_view import VIEW_RULES, ServerView
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.db import build_requests
from kilonova.domain.errors import Conflict, ServiceUnavailable
from kilonova.domain.instance import Instance

SHOW = Rule("servers:show", Audience.READER)
UPDATE_SERVER = Rule("servers:update", Audience.MEMBER)
DELETE = Rule("servers:delete", Audience.MEMBER)

_FIELDS = {
    "name": "display_name", "accessIPv4": "access_ip_v4", "accessIPv6": "access_ip_v6",
    "description": "display_description", "hostname": "hostname",
}
"""Fields of the body that are fields of the record."""


async def show(call: Call) -> Any:
    try:
        await find_server(call)
    except ServiceUnavailable:
        if call.version < SINCE:
            raise
        return {"server": await outline(call, call.path["server_id"], SHOW)}
    call.require(SHOW)
    return {"server": await show_full(call, call.server.instance, call.server.cell)}


async def update(call: Call) -> Any:
    body: dict[str, Any] = call.body["server"]
    changes: dict[str, Any] = {_FIELDS[name]: value for name, value in body.items() if name in _FIELDS}
    if "OS-DCF:diskConfig" in body:
        changes["auto_disk_config"] = body["OS-DCF:diskConfig"] == "AUTO"
    if "pinned_availability_zone" in body:
        await _pin(call, call.server.instance, body["pinned_availability_zone"])
    instance = await server_records.change(call, call.server, lambda current: changes)
    if call.version >= 75:
        return {"server": await show_full(call, instance, call.server.cell)}
    extras = await extras_for(call, [(instance, call.server.cell)], alone=True)
    return {"server": ServerView(call, extras).reduced(instance)}


async def _pin(call: Call, instance: Instance, zone: str | None) -> None:
    """Pin a server to its zone, or unpin it. Raises Conflict. Spec: API-615."""

    def write(conn: sa.Connection) -> None:
        spec = build_requests.spec_of(conn, instance.uuid)
        if spec is None or spec.availability_zone == zone:
            return
        if zone is not None and spec.availability_zone is not None:
            raise Conflict(f"Instance {instance.uuid} is pinned to availability zone {spec.availability_zone}")
        if zone is not None and zone != instance.availability_zone:
            raise Conflict(f"Instance {instance.uuid} is not in availability zone {zone}")
        build_requests.replace_spec(conn, spec, availability_zone=zone)

    await call.cloud.cells.api.write(write)


async def delete(call: Call) -> None:
    await call.cloud.compute.delete(call.context, call.server)


ROUTES = [
    Route(method="GET", path="/servers/{server_id}", handler=show, rules=(SHOW, *VIEW_RULES), answer=answers.SHOW),
    Route(method="PUT", path="/servers/{server_id}", handler=update, look_up=find_server, rule=UPDATE_SERVER,
          rules=VIEW_RULES, body=UPDATE, answer=answers.UPDATE),
    Route(method="DELETE", path="/servers/{server_id}", handler=delete, look_up=find_server, rule=DELETE, status=204),
]
