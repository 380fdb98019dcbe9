"""Unified limits: how much of a service's resource a project may have. Spec: EMI-25."""

from __future__ import annotations

import uuid
from typing import Annotated, TypeVar

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kilonova.domain.errors import Conflict, Forbidden, InvalidInput
from kilonova.embedded.http import json_object, json_response
from kilonova.embedded.identity import schema
from kilonova.embedded.identity.api.access import Caller, caller_of
from kilonova.embedded.identity.api.bodies import Attributes, Name, ShortText, Text, chosen, convert, given, required
from kilonova.embedded.identity.api.resource import Resource, route
from kilonova.embedded.identity.records import Limit, RegisteredLimit
from kilonova.embedded.identity.store import domains, limits, projects, regions, registered_limits, services

Amount = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
B = TypeVar("B", bound=msgspec.Struct)


class RegisteredLimitBody(msgspec.Struct, frozen=True):
    service_id: str | UnsetType = UNSET
    region_id: ShortText | UnsetType | None = UNSET
    resource_name: Name | UnsetType = UNSET
    default_limit: Amount | UnsetType = UNSET
    description: Text | UnsetType | None = UNSET


class RegisteredLimits(Resource[RegisteredLimit, RegisteredLimitBody]):
    singular, plural = "registered_limit", "registered_limits"
    collection = registered_limits
    body = RegisteredLimitBody
    filters = ("service_id", "region_id", "resource_name")

    async def make(self, caller: Caller, body: RegisteredLimitBody, extra: Attributes) -> RegisteredLimit:
        required(body, "service_id", "resource_name", "default_limit")
        return RegisteredLimit(
            id=str(uuid.uuid4()), service_id=chosen(body.service_id, ""), region_id=chosen(body.region_id, None),
            resource_name=chosen(body.resource_name, ""), default_limit=chosen(body.default_limit, 0),
            description=chosen(body.description, None),
        )

    def check(self, conn: sa.Connection, record: RegisteredLimit) -> None:
        if services.find(conn, record.service_id) is None:
            raise InvalidInput(f"Could not find service: {record.service_id}.")
        if record.region_id is not None and regions.find(conn, record.region_id) is None:
            raise InvalidInput(f"Could not find region: {record.region_id}.")
        same = _registered(conn, record.service_id, record.region_id, record.resource_name)
        if same is not None and same.id != record.id:
            raise Conflict(f"There is a registered limit for {record.resource_name} of that service and region.")

    async def create(self, request: Request) -> Response:
        """Registers a list, all or none."""
        caller = await caller_of(request, self.realm)
        caller.require_admin()
        new = [await self.make(caller, body, {}) for body in await _bodies(request, self.plural, self.body)]

        def unit(conn: sa.Connection) -> None:
            for record in new:
                self.check(conn, record)
                registered_limits.insert(conn, record)

        await self.realm.store.write(unit)
        return json_response({self.plural: [self.render(request, record) for record in new]}, 201)

    async def changes(self, body: RegisteredLimitBody, extra: Attributes) -> Attributes:
        return given(body)

    def change(self, conn: sa.Connection, id: str, changes: Attributes) -> RegisteredLimit:
        if changes.keys() & {"service_id", "region_id", "resource_name"}:
            _refuse_if_used(conn, id)
        self.check(conn, msgspec.structs.replace(registered_limits.get(conn, id), **changes))
        return super().change(conn, id, changes)

    def remove(self, conn: sa.Connection, id: str) -> None:
        _refuse_if_used(conn, id)
        super().remove(conn, id)

    def render(self, request: Request, record: RegisteredLimit) -> Attributes:
        return {
            "id": record.id, "service_id": record.service_id, "region_id": record.region_id,
            "resource_name": record.resource_name, "default_limit": record.default_limit,
            "description": record.description, "links": self.links(request, record),
        }

    def may_read(self, caller: Caller, record: RegisteredLimit) -> bool:
        return True

    def visible(self, caller: Caller) -> list[sa.ColumnElement[bool]]:
        return []


class LimitBody(msgspec.Struct, frozen=True):
    service_id: str | UnsetType = UNSET
    region_id: ShortText | UnsetType | None = UNSET
    resource_name: Name | UnsetType = UNSET
    resource_limit: Amount | UnsetType = UNSET
    project_id: str | UnsetType | None = UNSET
    domain_id: str | UnsetType | None = UNSET
    description: Text | UnsetType | None = UNSET


class Limits(Resource[Limit, LimitBody]):
    singular, plural = "limit", "limits"
    collection = limits
    body = LimitBody
    filters = ("service_id", "region_id", "resource_name", "project_id", "domain_id")

    def routes(self) -> list[Route]:
        return [route("/limits/model", "GET", self.show_model), *super().routes()]

    async def show_model(self, request: Request) -> Response:
        description = "Limits of projects do not depend on those of the projects above or below them."
        return json_response({"model": {"name": "flat", "description": description}})

    async def create(self, request: Request) -> Response:
        """Sets a list, all or none."""
        (await caller_of(request, self.realm)).require_admin()
        new = await _bodies(request, self.plural, self.body)
        made = await self.realm.store.write(lambda conn: [_insert_limit(conn, body) for body in new])
        return json_response({self.plural: [self.render(request, record) for record in made]}, 201)

    async def changes(self, body: LimitBody, extra: Attributes) -> Attributes:
        return {name: value for name, value in given(body).items() if name in ("resource_limit", "description")}

    def render(self, request: Request, record: Limit) -> Attributes:
        return {
            "id": record.id, "service_id": record.service_id, "region_id": record.region_id,
            "resource_name": record.resource_name, "resource_limit": record.resource_limit,
            "project_id": record.project_id, "domain_id": record.domain_id, "description": record.description,
            "links": self.links(request, record),
        }

    def may_read(self, caller: Caller, record: Limit) -> bool:
        own = caller.token.project is not None and record.project_id == caller.token.project.id
        return own or caller.reads_all or caller.is_service

    def visible(self, caller: Caller) -> list[sa.ColumnElement[bool]]:
        if caller.reads_all or caller.is_service:
            return []
        caller.require(caller.token.project is not None)
        return [schema.limits.c.project_id == (caller.token.project.id if caller.token.project else None)]


async def _bodies(request: Request, key: str, type_: type[B]) -> list[B]:
    items = (await json_object(request)).get(key)
    if not isinstance(items, list) or not items:
        raise InvalidInput(f"The request body must hold a list {key!r}.")
    return [convert(item, type_) for item in items]


def _registered(conn: sa.Connection, service_id: str, region_id: str | None, resource: str) -> RegisteredLimit | None:
    column = schema.registered_limits.c
    found = registered_limits.matching(
        conn, column.service_id == service_id, column.region_id.is_not_distinct_from(region_id),
        column.resource_name == resource,
    )
    return found[0] if found else None


def _refuse_if_used(conn: sa.Connection, id: str) -> None:
    if limits.matching(conn, schema.limits.c.registered_limit_id == id, limit=1):
        raise Forbidden(f"Registered limit {id} has limits that depend on it.")


def _insert_limit(conn: sa.Connection, body: LimitBody) -> Limit:
    required(body, "service_id", "resource_name", "resource_limit")
    project_id, domain_id = chosen(body.project_id, None), chosen(body.domain_id, None)
    if (project_id is None) == (domain_id is None):
        raise InvalidInput("A limit is for a project or for a domain.")
    if project_id is not None:
        projects.get(conn, project_id)
    else:
        domains.get(conn, domain_id)
    service_id, region_id = chosen(body.service_id, ""), chosen(body.region_id, None)
    resource = chosen(body.resource_name, "")
    registered = _registered(conn, service_id, region_id, resource)
    if registered is None:
        raise Forbidden(f"There is no registered limit for {resource} of that service and region.")
    column = schema.limits.c
    if limits.matching(conn, column.registered_limit_id == registered.id,
                       column.project_id.is_not_distinct_from(project_id),
                       column.domain_id.is_not_distinct_from(domain_id), limit=1):
        raise Conflict(f"There is a limit for {resource} already.")
    return limits.insert(conn, Limit(
        id=str(uuid.uuid4()), registered_limit_id=registered.id, project_id=project_id, domain_id=domain_id,
        service_id=service_id, region_id=region_id, resource_name=resource,
        resource_limit=chosen(body.resource_limit, 0), description=chosen(body.description, None),
    ))
