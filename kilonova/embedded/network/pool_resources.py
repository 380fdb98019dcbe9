"""Subnet pools and the topology made of them, in the network API."""

from __future__ import annotations

import sqlalchemy as sa
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Forbidden, InvalidInput
from kilonova.embedded.http import caller, empty_response, json_response
from kilonova.embedded.network import access, schema, subnet_pools, topology, views
from kilonova.embedded.network.bodies import SubnetPoolBody
from kilonova.embedded.network.datapath import Effects
from kilonova.embedded.network.http_api import Records, answering
from kilonova.embedded.network.resources import View, narrow


class SubnetPools:
    singular, plural, body, table = "subnetpool", "subnetpools", SubnetPoolBody, schema.subnet_pools

    def find(self, conn: sa.Connection, caller: RequestContext, query: QueryParams) -> list[View]:
        where = narrow(self.table, query, name="name", project_id="project_id", tenant_id="project_id")
        return [views.subnet_pool(pool) for pool in subnet_pools.find(conn, caller, *where)]

    def show(self, conn: sa.Connection, caller: RequestContext, id_: str) -> View:
        return views.subnet_pool(subnet_pools.get(conn, caller, id_))

    def create(self, conn: sa.Connection, caller: RequestContext, body: SubnetPoolBody, now: float,
               effects: Effects) -> View:
        return views.subnet_pool(subnet_pools.create(conn, caller, body, now))

    def update(self, conn: sa.Connection, caller: RequestContext, id_: str, body: SubnetPoolBody, now: float,
               effects: Effects) -> View:
        return views.subnet_pool(subnet_pools.update(conn, caller, id_, body, now))

    def delete(self, conn: sa.Connection, caller: RequestContext, id_: str, effects: Effects) -> None:
        subnet_pools.delete(conn, caller, id_)


class TopologyRoutes:
    """What a project has without having made anything. Spec: EMN-15, EMN-16."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def routes(self) -> list[BaseRoute]:
        path = "/v2.0/auto-allocated-topology/{project}"
        return [Route(path, answering(self._get), methods=["GET"]),
                Route(path, answering(self._delete), methods=["DELETE"])]

    async def _get(self, request: Request) -> Response:
        project = self._project(request)
        if "dry-run" in request.query_params.getlist("fields"):
            await self._records.database.read(lambda conn: topology.check(conn, project))
            return json_response({"auto_allocated_topology": {"id": "dry-run=pass", "tenant_id": project}})
        now = self._records.clock.now()
        id_ = await self._records.change(lambda conn, effects: topology.ensure(conn, project, now, effects))
        return json_response({"auto_allocated_topology": {"id": id_, "tenant_id": project}})

    async def _delete(self, request: Request) -> Response:
        project = self._project(request)
        await self._records.change(lambda conn, effects: topology.remove(conn, project, effects))
        return empty_response()

    @staticmethod
    def _project(request: Request) -> str:
        """The project of the path, which may be left to the token. Raises Forbidden for another's."""
        who = caller(request)
        named = request.path_params["project"]
        project = who.project_id if named in ("None", "null") else named
        if not project:
            raise InvalidInput("A project is needed: use a token with project scope, or name one.")
        if project != who.project_id and not access.privileged(who):
            raise Forbidden("Only an administrator may ask for the topology of another project.")
        return str(project)
