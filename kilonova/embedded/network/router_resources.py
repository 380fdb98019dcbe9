"""Routers and floating IPs as resources of the network API, and what joins routers to networks."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kilonova.domain.context import RequestContext
from kilonova.embedded.http import caller, json_object, json_response
from kilonova.embedded.network import access, floating, routers, schema, views
from kilonova.embedded.network.bodies import FloatingIpBody, InterfaceBody, RouterBody, parse
from kilonova.embedded.network.datapath import Effects
from kilonova.embedded.network.http_api import Records, answering
from kilonova.embedded.network.port_records import find_port
from kilonova.embedded.network.resources import View, narrow


class Routers:
    singular, plural, body, table = "router", "routers", RouterBody, schema.routers

    def find(self, conn: sa.Connection, caller: RequestContext, query: QueryParams) -> list[View]:
        table = schema.routers
        where = narrow(table, query, name="name", project_id="project_id", tenant_id="project_id")
        if not access.privileged(caller):
            where.append(table.c.project_id == caller.project_id)
        rows = conn.execute(sa.select(table).where(*where).order_by(table.c.created_at, table.c.id))
        return [self._view(conn, schema.record(schema.Router, row)) for row in rows]

    def show(self, conn: sa.Connection, caller: RequestContext, id_: str) -> View:
        return self._view(conn, access.router(conn, caller, id_))

    def create(self, conn: sa.Connection, caller: RequestContext, body: RouterBody, now: float,
               effects: Effects) -> View:
        effects.routers = True
        return self._view(conn, routers.create_router(conn, caller, body, now))

    def update(self, conn: sa.Connection, caller: RequestContext, id_: str, body: RouterBody, now: float,
               effects: Effects) -> View:
        effects.routers = True
        return self._view(conn, routers.update_router(conn, caller, id_, body, now))

    def delete(self, conn: sa.Connection, caller: RequestContext, id_: str, effects: Effects) -> None:
        effects.routers = True
        routers.delete_router(conn, caller, id_)

    def _view(self, conn: sa.Connection, router: schema.Router) -> View:
        return views.router(router, routers.gateway_of(conn, router.id))


class FloatingIps:
    singular, plural, body, table = "floatingip", "floatingips", FloatingIpBody, schema.floating_ips

    def find(self, conn: sa.Connection, caller: RequestContext, query: QueryParams) -> list[View]:
        """Spec: EMN-54."""
        table = schema.floating_ips
        where = narrow(
            table, query, floating_ip_address="address", fixed_ip_address="fixed_address", port_id="fixed_port_id",
            floating_network_id="network_id", router_id="router_id", project_id="project_id", tenant_id="project_id",
        )
        if not access.privileged(caller):
            where.append(table.c.project_id == caller.project_id)
        rows = conn.execute(sa.select(table).where(*where).order_by(table.c.created_at, table.c.id))
        return [self._view(conn, schema.record(schema.FloatingIp, row)) for row in rows]

    def show(self, conn: sa.Connection, caller: RequestContext, id_: str) -> View:
        return self._view(conn, access.floating_ip(conn, caller, id_))

    def create(self, conn: sa.Connection, caller: RequestContext, body: FloatingIpBody, now: float,
               effects: Effects) -> View:
        made = floating.create(conn, caller, body, now)
        effects.routers, effects.told = True, floating.ports_behind(conn, made)
        return self._view(conn, made)

    def update(self, conn: sa.Connection, caller: RequestContext, id_: str, body: FloatingIpBody, now: float,
               effects: Effects) -> View:
        """Spec: EMN-55."""
        before, after = floating.update(conn, caller, id_, body, now)
        effects.routers, effects.told = True, floating.ports_behind(conn, before, after)
        return self._view(conn, after)

    def delete(self, conn: sa.Connection, caller: RequestContext, id_: str, effects: Effects) -> None:
        effects.routers, effects.told = True, floating.ports_behind(conn, floating.delete(conn, caller, id_))

    def _view(self, conn: sa.Connection, item: schema.FloatingIp) -> View:
        port = find_port(conn, item.fixed_port_id) if item.fixed_port_id else None
        return views.floating_ip(item, port, item.router_id is not None and routers.works(conn, item.router_id))


class InterfaceRoutes:
    """Joining routers to networks and taking them apart."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def routes(self) -> list[BaseRoute]:
        return [
            Route(f"/v2.0/routers/{{id}}/{name}{suffix}", answering(handler), methods=["PUT"])
            for suffix in ("", ".json")
            for name, handler in (("add_router_interface", self._add), ("remove_router_interface", self._remove))
        ]

    async def _add(self, request: Request) -> Response:
        who, id_, now = caller(request), request.path_params["id"], self._records.clock.now()
        body = parse(InterfaceBody, await json_object(request))

        def unit(conn: sa.Connection, effects: Effects) -> dict[str, Any]:
            effects.routers = True
            port = routers.add_interface(conn, who, id_, body, now)
            return views.router_interface(access.router(conn, who, id_), port)

        return json_response(await self._records.change(unit))

    async def _remove(self, request: Request) -> Response:
        who, id_ = caller(request), request.path_params["id"]
        body = parse(InterfaceBody, await json_object(request))

        def unit(conn: sa.Connection, effects: Effects) -> dict[str, Any]:
            effects.routers = True
            port = routers.remove_interface(conn, who, id_, body)
            return views.router_interface(access.router(conn, who, id_), port)

        return json_response(await self._records.change(unit))
