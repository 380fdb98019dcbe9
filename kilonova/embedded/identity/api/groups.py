"""Groups and who belongs to them."""

from __future__ import annotations

import uuid

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kilonova.domain.errors import Forbidden, NotFound
from kilonova.embedded.http import empty_response
from kilonova.embedded.identity import grants, schema
from kilonova.embedded.identity.api.access import Caller, caller_of
from kilonova.embedded.identity.api.bodies import Attributes, Name, Text, chosen, given, required
from kilonova.embedded.identity.api.resource import Resource, route
from kilonova.embedded.identity.records import DEFAULT_DOMAIN, ActorKind, Group
from kilonova.embedded.identity.store import domains, groups, users

_member = schema.memberships.c


class GroupBody(msgspec.Struct, frozen=True):
    name: Name | UnsetType = UNSET
    domain_id: str | UnsetType | None = UNSET
    description: Text | UnsetType | None = UNSET


class Groups(Resource[Group, GroupBody]):
    singular, plural = "group", "groups"
    collection = groups
    body = GroupBody
    filters = ("name", "domain_id")

    def routes(self) -> list[Route]:
        return [
            *super().routes(),
            route("/groups/{id}/users/{user_id}", "PUT", self.add_member),
            route("/groups/{id}/users/{user_id}", "GET", self.has_member),
            route("/groups/{id}/users/{user_id}", "DELETE", self.remove_member),
        ]

    async def make(self, caller: Caller, body: GroupBody, extra: Attributes) -> Group:
        required(body, "name")
        own_domain = caller.token.domain.id if caller.token.domain else DEFAULT_DOMAIN
        return Group(id=str(uuid.uuid4()), name=chosen(body.name, ""), domain_id=chosen(body.domain_id, own_domain),
                     description=chosen(body.description, ""))

    def check(self, conn: sa.Connection, record: Group) -> None:
        domains.get(conn, record.domain_id)

    async def changes(self, body: GroupBody, extra: Attributes) -> Attributes:
        changes = given(body)
        if "description" in changes:
            changes["description"] = chosen(body.description, "")
        return changes

    def change(self, conn: sa.Connection, id: str, changes: Attributes) -> Group:
        if changes.pop("domain_id", None) not in (None, groups.get(conn, id).domain_id):
            raise Forbidden("The domain of a group cannot be changed.")
        return super().change(conn, id, changes)

    def remove(self, conn: sa.Connection, id: str) -> None:
        grants.forget_actors(conn, ActorKind.GROUP, [id])
        super().remove(conn, id)

    def render(self, request: Request, record: Group) -> Attributes:
        return {
            "id": record.id, "name": record.name, "domain_id": record.domain_id, "description": record.description,
            "links": self.links(request, record),
        }

    def may_read(self, caller: Caller, record: Group) -> bool:
        return caller.reads_domain(record.domain_id)

    def visible(self, caller: Caller) -> list[sa.ColumnElement[bool]]:
        if caller.readable_domain is not None:
            return [schema.groups.c.domain_id == caller.readable_domain]
        return super().visible(caller)

    async def add_member(self, request: Request) -> Response:
        (await caller_of(request, self.realm)).require_admin()
        id, user_id = request.path_params["id"], request.path_params["user_id"]

        def unit(conn: sa.Connection) -> None:
            _require_both(conn, id, user_id)
            if not _is_member(conn, id, user_id):
                conn.execute(schema.memberships.insert().values(group_id=id, user_id=user_id))

        await self.realm.store.write(unit)
        return empty_response()

    async def has_member(self, request: Request) -> Response:
        caller = await caller_of(request, self.realm)
        id, user_id = request.path_params["id"], request.path_params["user_id"]

        def unit(conn: sa.Connection) -> bool:
            caller.require(self.may_read(caller, groups.get(conn, id)))
            _require_both(conn, id, user_id)
            return _is_member(conn, id, user_id)

        if not await self.realm.store.read(unit):
            raise NotFound(f"User {user_id} is not a member of group {id}.")
        return empty_response()

    async def remove_member(self, request: Request) -> Response:
        (await caller_of(request, self.realm)).require_admin()
        id, user_id = request.path_params["id"], request.path_params["user_id"]

        def unit(conn: sa.Connection) -> None:
            _require_both(conn, id, user_id)
            if not _is_member(conn, id, user_id):
                raise NotFound(f"User {user_id} is not a member of group {id}.")
            conn.execute(schema.memberships.delete().where(_member.group_id == id, _member.user_id == user_id))

        await self.realm.store.write(unit)
        return empty_response()


def _require_both(conn: sa.Connection, group_id: str, user_id: str) -> None:
    groups.get(conn, group_id)
    users.get(conn, user_id)


def _is_member(conn: sa.Connection, group_id: str, user_id: str) -> bool:
    found = sa.select(_member.user_id).where(_member.group_id == group_id, _member.user_id == user_id)
    return conn.execute(found).first() is not None
