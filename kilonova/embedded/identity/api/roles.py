"""Roles, and which roles imply which. Spec: EMI-38, EMI-42."""

from __future__ import annotations

import uuid

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kilonova.domain.errors import Forbidden, NotFound
from kilonova.embedded.http import empty_response, json_response
from kilonova.embedded.identity import schema
from kilonova.embedded.identity.api.access import Caller, caller_of
from kilonova.embedded.identity.api.bodies import (
    Attributes,
    Name,
    Text,
    chosen,
    given,
    listing,
    required,
    self_link,
)
from kilonova.embedded.identity.api.resource import Resource, route
from kilonova.embedded.identity.records import Role
from kilonova.embedded.identity.store import domains, roles

_implied = schema.implied_roles.c


class RoleBody(msgspec.Struct, frozen=True):
    name: Name | UnsetType = UNSET
    domain_id: str | UnsetType | None = UNSET
    description: Text | UnsetType | None = UNSET
    options: Attributes | UnsetType = UNSET


class Roles(Resource[Role, RoleBody]):
    singular, plural = "role", "roles"
    collection = roles
    body = RoleBody
    filters = ("name",)

    def routes(self) -> list[Route]:
        return [
            *super().routes(),
            route("/roles/{id}/implies", "GET", self.list_implied),
            route("/roles/{id}/implies/{implied_id}", "PUT", self.imply),
            route("/roles/{id}/implies/{implied_id}", "GET", self.show_implied),
            route("/roles/{id}/implies/{implied_id}", "DELETE", self.stop_implying),
            route("/role_inferences", "GET", self.list_inferences),
        ]

    async def make(self, caller: Caller, body: RoleBody, extra: Attributes) -> Role:
        required(body, "name")
        return Role(id=uuid.uuid4().hex, name=chosen(body.name, ""), domain_id=chosen(body.domain_id, ""),
                    description=chosen(body.description, None))

    def check(self, conn: sa.Connection, record: Role) -> None:
        if record.domain_id:
            domains.get(conn, record.domain_id)

    async def changes(self, body: RoleBody, extra: Attributes) -> Attributes:
        changes = given(body)
        changes.pop("options", None)
        return changes

    def change(self, conn: sa.Connection, id: str, changes: Attributes) -> Role:
        if changes.pop("domain_id", None) not in (None, roles.get(conn, id).domain_id):
            raise Forbidden("The domain of a role cannot be changed.")
        return super().change(conn, id, changes)

    def render(self, request: Request, record: Role) -> Attributes:
        return {
            "id": record.id, "name": record.name, "domain_id": record.domain_id or None,
            "description": record.description, "options": {}, "links": self.links(request, record),
        }

    def where(self, request: Request) -> list[sa.ColumnElement[bool]]:
        # Without the filter only the roles of the whole cloud are listed.
        domain_id = request.query_params.get("domain_id", "")
        return [*super().where(request), schema.roles.c.domain_id == domain_id]

    async def imply(self, request: Request) -> Response:
        (await caller_of(request, self.realm)).require_admin()

        def unit(conn: sa.Connection) -> tuple[Role, Role]:
            prior, implied = _pair(conn, request)
            if not _implies(conn, prior, implied):
                conn.execute(schema.implied_roles.insert().values(prior_id=prior.id, implied_id=implied.id))
            return prior, implied

        return _inference(request, *await self.realm.store.write(unit), status=201)

    async def show_implied(self, request: Request) -> Response:
        caller = await caller_of(request, self.realm)
        caller.require(caller.reads_all)

        def unit(conn: sa.Connection) -> tuple[Role, Role]:
            pair = _pair(conn, request)
            _require_implied(conn, *pair)
            return pair

        pair = await self.realm.store.read(unit)
        return empty_response() if request.method == "HEAD" else _inference(request, *pair, status=200)

    async def stop_implying(self, request: Request) -> Response:
        (await caller_of(request, self.realm)).require_admin()

        def unit(conn: sa.Connection) -> None:
            prior, implied = _pair(conn, request)
            _require_implied(conn, prior, implied)
            conn.execute(schema.implied_roles.delete().where(
                _implied.prior_id == prior.id, _implied.implied_id == implied.id
            ))

        await self.realm.store.write(unit)
        return empty_response()

    async def list_implied(self, request: Request) -> Response:
        caller = await caller_of(request, self.realm)
        caller.require(caller.reads_all)
        id = request.path_params["id"]

        def unit(conn: sa.Connection) -> tuple[Role, list[Role]]:
            ids = sa.select(_implied.implied_id).where(_implied.prior_id == id)
            return roles.get(conn, id), roles.matching(conn, schema.roles.c.id.in_(ids))

        prior, implied = await self.realm.store.read(unit)
        body = {"prior_role": _brief(request, prior), "implies": [_brief(request, role) for role in implied]}
        return json_response({"role_inference": body, "links": self_link(request, "roles", id, "implies")})

    async def list_inferences(self, request: Request) -> Response:
        caller = await caller_of(request, self.realm)
        caller.require(caller.reads_all)

        def unit(conn: sa.Connection) -> list[tuple[Role, Role]]:
            known = {role.id: role for role in roles.matching(conn)}
            rows = conn.execute(sa.select(_implied.prior_id, _implied.implied_id))
            return [(known[prior_id], known[implied_id]) for prior_id, implied_id in rows]

        implied_by: dict[str, list[Role]] = {}
        priors: dict[str, Role] = {}
        for prior, implied in sorted(await self.realm.store.read(unit), key=lambda pair: (pair[0].name, pair[1].name)):
            priors[prior.id] = prior
            implied_by.setdefault(prior.id, []).append(implied)
        items = [
            {"prior_role": _brief(request, prior), "implies": [_brief(request, role) for role in implied_by[prior.id]]}
            for prior in priors.values()
        ]
        return json_response(listing(request, "role_inferences", items))


def _pair(conn: sa.Connection, request: Request) -> tuple[Role, Role]:
    return roles.get(conn, request.path_params["id"]), roles.get(conn, request.path_params["implied_id"])


def _implies(conn: sa.Connection, prior: Role, implied: Role) -> bool:
    found = sa.select(_implied.prior_id).where(_implied.prior_id == prior.id, _implied.implied_id == implied.id)
    return conn.execute(found).first() is not None


def _require_implied(conn: sa.Connection, prior: Role, implied: Role) -> None:
    if not _implies(conn, prior, implied):
        raise NotFound(f"Role {prior.id} does not imply role {implied.id}.")


def _brief(request: Request, role: Role) -> Attributes:
    return {"id": role.id, "name": role.name, "links": self_link(request, "roles", role.id)}


def _inference(request: Request, prior: Role, implied: Role, *, status: int) -> Response:
    body = {"prior_role": _brief(request, prior), "implies": _brief(request, implied)}
    links = self_link(request, "roles", prior.id, "implies", implied.id)
    return json_response({"role_inference": body, "links": links}, status)
