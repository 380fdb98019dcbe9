"""The HTTP side of the network service: networks, subnets, ports, security groups and rules.

Spec: section 4.1; EMI-01 to EMI-16.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Conflict, InvalidInput, KilonovaError
from kilonova.embedded.http import caller, empty_response, json_object, json_response, root_url
from kilonova.embedded.network import listing, quotas, security
from kilonova.embedded.network.bodies import parse
from kilonova.embedded.network.datapath import Datapath, Effects
from kilonova.embedded.network.errors import TYPE_NAMES
from kilonova.embedded.network.resources import Resource

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")
_BY_STATUS = {401: "Unauthorized", 404: "HTTPNotFound", 503: "ServiceUnavailable"}


def error_body(status: int, title: str, message: str, type_: str | None = None) -> dict[str, Any]:
    """Spec: EMI-06."""
    return {"NeutronError": {"type": type_ or _BY_STATUS.get(status, "HTTPError"), "message": message, "detail": ""}}


def answering(handler: Handler) -> Handler:
    """The handler, with errors that carry the type clients match on. Spec: EMN-20."""

    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except sa.exc.IntegrityError:
            return _error(Conflict("The change collides with another made at the same time.", hint="try again"))
        except KilonovaError as error:
            return _error(error)

    return answered


def _error(error: KilonovaError) -> Response:
    name = type(error).__name__
    return json_response(error_body(error.status, "", str(error), TYPE_NAMES.get(name, name)), error.status)


class Records:
    """Runs units of work for HTTP handlers and lets their effects follow."""

    def __init__(self, database: Database, clock: Clock, datapath: Datapath) -> None:
        self.database = database
        self.clock = clock
        self._datapath = datapath

    async def change(self, unit: Callable[[sa.Connection, Effects], T]) -> T:
        """Run a unit of work that notes its effects, then apply those."""
        def run(conn: sa.Connection) -> tuple[T, Effects]:
            effects = Effects()
            return unit(conn, effects), effects

        result, effects = await self.database.write(run)
        await self._datapath.apply(effects)
        return result

    async def meet(self, who: RequestContext) -> None:
        """Give a project its default security group at its first use. Spec: EMN-39."""
        project_id = who.project_id
        if project_id and not await self.database.read(lambda conn: security.has_default_group(conn, project_id)):
            await self.database.write(lambda conn: security.ensure_default_group(conn, project_id, self.clock.now()))


class ResourceRoutes:
    """The five calls of one resource. below: the path under which its collection is."""

    def __init__(self, resource: Resource, records: Records, below: str = "/v2.0") -> None:
        self._resource = resource
        self._records = records
        self._below = below

    def routes(self) -> list[BaseRoute]:
        path = f"{self._below}/{self._resource.plural.replace('_', '-')}"
        calls: list[tuple[str, str, Handler]] = [
            (path, "GET", self._list), (path, "POST", self._create), (f"{path}/{{id}}", "GET", self._show),
            (f"{path}/{{id}}", "PUT", self._update), (f"{path}/{{id}}", "DELETE", self._delete),
        ]
        return [Route(where + suffix, answering(handler), methods=[method])
                for where, method, handler in calls for suffix in ("", ".json")]

    async def _list(self, request: Request) -> Response:
        await self._records.meet(caller(request))
        who, query = caller(request), request.query_params
        found = await self._records.database.read(lambda conn: self._resource.find(conn, who, query))
        return json_response(listing.page(request, self._resource.plural, found))

    async def _show(self, request: Request) -> Response:
        who, id_ = caller(request), request.path_params["id"]
        view = await self._records.database.read(lambda conn: self._resource.show(conn, who, id_))
        return json_response({self._resource.singular: listing.pick(view, request.query_params.getlist("fields"))})

    async def _create(self, request: Request) -> Response:
        """One, or several of which all or none are made. Spec: EMN-31."""
        document = await json_object(request)
        resource, who, now = self._resource, caller(request), self._records.clock.now()
        many = resource.plural in document
        entries = document[resource.plural] if many else [document.get(resource.singular)]
        if not isinstance(entries, list) or not entries:
            raise InvalidInput(f"Body must contain '{resource.singular}' or a list of '{resource.plural}'.")
        bodies = [parse(resource.body, entry) for entry in entries]
        views = await self._records.change(
            lambda conn, effects: [resource.create(conn, who, body, now, effects) for body in bodies]
        )
        return json_response({resource.plural: views} if many else {resource.singular: views[0]}, 201)

    async def _update(self, request: Request) -> Response:
        document = await json_object(request)
        resource, who, id_ = self._resource, caller(request), request.path_params["id"]
        body, now = parse(resource.body, document.get(resource.singular)), self._records.clock.now()
        view = await self._records.change(
            lambda conn, effects: resource.update(conn, who, id_, body, now, effects)
        )
        return json_response({resource.singular: view})

    async def _delete(self, request: Request) -> Response:
        resource, who, id_ = self._resource, caller(request), request.path_params["id"]
        await self._records.change(lambda conn, effects: resource.delete(conn, who, id_, effects))
        return empty_response()


async def versions(request: Request) -> Response:
    """Spec: EMI-15, section 1.2."""
    link = {"href": f"{root_url(request)}/v2.0/", "rel": "self"}
    return json_response({"versions": [{"id": "v2.0", "status": "CURRENT", "links": [link]}]})


def api_index(resources: list[Resource]) -> Handler:
    """The document at `/v2.0/`: what collections there are."""

    async def index(request: Request) -> Response:
        root = root_url(request)
        return json_response({"resources": [
            {"name": resource.singular, "collection": resource.plural,
             "links": [{"rel": "self", "href": f"{root}/v2.0/{resource.plural.replace('_', '-')}"}]}
            for resource in resources
        ]})

    return index


def quota_view(limits: dict[str, int]) -> dict[str, Any]:
    return {"quota": {key: limits[key] for key in quotas.DEFAULTS}}
