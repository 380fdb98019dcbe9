"""The agent that has the routers of this machine, in the network API: which routers it has, giving and taking them.

There is one: the service itself, which wires its own machine. So the record of a router only says whether it is
scheduled. It is, from its gateway or first interface on, until an administrator takes it away; then it does nothing
until an administrator gives it back. An agent that is disabled keeps its routers and gets no more.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kilonova.db.upsert import put
from kilonova.domain.clock import iso_seconds
from kilonova.domain.context import RequestContext
from kilonova.embedded.http import empty_response, json_object, json_response, require_admin
from kilonova.embedded.network import access, listing, routers, schema, views
from kilonova.embedded.network.agent_schema import NONE_DISABLED, agents
from kilonova.embedded.network.bodies import AgentBody, HostedRouterBody, parse, sent
from kilonova.embedded.network.datapath import Effects
from kilonova.embedded.network.errors import (
    AgentNotFound,
    InvalidL3Agent,
    RouterHostedByL3Agent,
    RouterNotHostedByL3Agent,
)
from kilonova.embedded.network.http_api import Records, answering

TYPE = "L3 agent"
_table = schema.routers


def hosted(conn: sa.Connection) -> list[schema.Router]:
    """The routers that are scheduled to the agent, oldest first."""
    query = sa.select(_table).where(_table.c.scheduled == sa.true()).order_by(_table.c.created_at, _table.c.id)
    return [schema.record(schema.Router, row) for row in conn.execute(query)]


def schedule(conn: sa.Connection, router_id: str, agent_id: str) -> None:
    """Give the agent a router. Raises RouterHostedByL3Agent: it has it; InvalidL3Agent: it is disabled."""
    if not conn.execute(sa.select(NONE_DISABLED)).scalar():
        raise InvalidL3Agent(agent_id)
    if not _change(conn, router_id, scheduled=True):
        raise RouterHostedByL3Agent(router_id, agent_id)


def unschedule(conn: sa.Connection, router_id: str, agent_id: str) -> None:
    """Take a router away from the agent. Raises RouterNotHostedByL3Agent: it has not got it."""
    if not _change(conn, router_id, scheduled=False):
        raise RouterNotHostedByL3Agent(router_id, agent_id)


def configure(conn: sa.Connection, agent_id: str, changes: Mapping[str, Any]) -> None:
    """Set what is given of the agent. One that is enabled gets the routers that have waited for it."""
    put(conn, agents, {"id": agent_id, **settings(conn, agent_id), **changes}, ["id"])
    if changes.get("admin_state_up"):
        routers.schedule_waiting(conn)


def forget(conn: sa.Connection, agent_id: str) -> None:
    """Forget what was set of the agent, which is then enabled."""
    conn.execute(sa.delete(agents).where(agents.c.id == agent_id))
    routers.schedule_waiting(conn)


def settings(conn: sa.Connection, agent_id: str) -> dict[str, Any]:
    """What administrators can set of an agent, as it is."""
    row = conn.execute(
        sa.select(agents.c.admin_state_up, agents.c.description).where(agents.c.id == agent_id)
    ).mappings().first()
    return dict(row) if row else {"admin_state_up": True, "description": ""}


def _change(conn: sa.Connection, router_id: str, *, scheduled: bool) -> bool:
    """Whether this changed anything."""
    is_so = sa.func.coalesce(_table.c.scheduled, sa.false())
    changed = conn.execute(
        sa.update(_table).where(_table.c.id == router_id, is_so != scheduled).values(scheduled=scheduled)
    )
    return changed.rowcount == 1


class AgentRoutes:
    """All of it is for administrators.

    Args:
        host: name of this machine. The agent has an id that follows from it.
    """

    def __init__(self, records: Records, host: str) -> None:
        self._records = records
        self._host = host
        self._id = str(uuid.uuid5(schema.NAMESPACE, f"l3-agent/{host}"))
        self._started = records.clock.now()

    def routes(self) -> list[BaseRoute]:
        hosted_by = "/v2.0/agents/{agent}/l3-routers"
        calls = (
            ("/v2.0/agents", "GET", self._list), ("/v2.0/agents/{agent}", "GET", self._show),
            ("/v2.0/agents/{agent}", "PUT", self._update), ("/v2.0/agents/{agent}", "DELETE", self._delete),
            (hosted_by, "GET", self._routers), (hosted_by, "POST", self._add),
            (f"{hosted_by}/{{router}}", "DELETE", self._remove), ("/v2.0/routers/{router}/l3-agents", "GET", self._of),
        )
        return [Route(path + suffix, answering(handler), methods=[method])
                for path, method, handler in calls for suffix in (".json", "")]

    async def _list(self, request: Request) -> Response:
        require_admin(request)
        return json_response(listing.page(request, "agents", [await self._view()]))

    async def _show(self, request: Request) -> Response:
        self._require(request)
        return json_response({"agent": listing.pick(await self._view(), request.query_params.getlist("fields"))})

    async def _update(self, request: Request) -> Response:
        self._require(request)
        changes = sent(parse(AgentBody, (await json_object(request)).get("agent")))

        def unit(conn: sa.Connection, effects: Effects) -> None:
            effects.routers = True
            configure(conn, self._id, changes)

        await self._records.change(unit)
        return json_response({"agent": await self._view()})

    async def _delete(self, request: Request) -> Response:
        """Forget it. As it runs, it reports itself anew at once, and gets its routers again."""
        self._require(request)

        def unit(conn: sa.Connection, effects: Effects) -> None:
            effects.routers = True
            forget(conn, self._id)

        await self._records.change(unit)
        return empty_response()

    async def _routers(self, request: Request) -> Response:
        self._require(request)
        found = await self._records.database.read(
            lambda conn: [views.router(router, routers.gateway_of(conn, router.id)) for router in hosted(conn)]
        )
        return json_response(listing.page(request, "routers", found))

    async def _add(self, request: Request) -> Response:
        who = self._require(request)
        body = parse(HostedRouterBody, await json_object(request))

        def unit(conn: sa.Connection, effects: Effects) -> None:
            effects.routers = True
            access.router(conn, who, body.router_id)
            schedule(conn, body.router_id, self._id)

        return json_response(await self._records.change(unit), 201)

    async def _remove(self, request: Request) -> Response:
        who, router_id = self._require(request), request.path_params["router"]

        def unit(conn: sa.Connection, effects: Effects) -> None:
            effects.routers = True
            access.router(conn, who, router_id)
            unschedule(conn, router_id, self._id)

        await self._records.change(unit)
        return empty_response()

    async def _of(self, request: Request) -> Response:
        """The agents that have a router: this one, or none."""
        who, router_id = require_admin(request), request.path_params["router"]
        router = await self._records.database.read(lambda conn: access.router(conn, who, router_id))
        found = [await self._view() | {"ha_state": None}] if router.scheduled else []
        return json_response(listing.page(request, "agents", found))

    def _require(self, request: Request) -> RequestContext:
        """The caller. Raises Forbidden; AgentNotFound: the path names another agent."""
        who = require_admin(request)
        if request.path_params["agent"] != self._id:
            raise AgentNotFound(request.path_params["agent"])
        return who

    async def _view(self) -> dict[str, Any]:
        set_by_administrators = await self._records.database.read(lambda conn: settings(conn, self._id))
        return set_by_administrators | {
            "id": self._id, "agent_type": TYPE, "binary": "neutron-l3-agent", "topic": "l3_agent", "host": self._host,
            "availability_zone": "nova", "alive": True,
            "configurations": {"agent_mode": "legacy"}, "resources_synced": None,
            "created_at": iso_seconds(self._started), "started_at": iso_seconds(self._started),
            "heartbeat_timestamp": iso_seconds(self._records.clock.now()),
        }
