"""Users: records, passwords, and what one belongs to. Spec: EMI-36, EMI-43, EMI-53."""

from __future__ import annotations

import uuid

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kilonova.domain.errors import Forbidden, Unauthorized
from kilonova.embedded.http import empty_response, json_response
from kilonova.embedded.identity import grants, schema
from kilonova.embedded.identity.api.access import Caller, caller_of
from kilonova.embedded.identity.api.bodies import (
    Attributes,
    Name,
    Secret,
    Text,
    chosen,
    given,
    listing,
    parse,
    required,
)
from kilonova.embedded.identity.api.groups import Groups
from kilonova.embedded.identity.api.projects import Projects
from kilonova.embedded.identity.api.resource import Resource, route
from kilonova.embedded.identity.records import DEFAULT_DOMAIN, ActorKind, User
from kilonova.embedded.identity.store import domains, groups, projects, users

ADMIN_ONLY = ("name", "domain_id", "enabled", "password", "options")
"""What a user may not change of itself; the password has a call of its own, which asks for the old one."""


class UserBody(msgspec.Struct, frozen=True):
    """email and description are kept as extra attributes; they are named here to be checked."""

    name: Name | UnsetType = UNSET
    domain_id: str | UnsetType | None = UNSET
    password: Secret | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET
    default_project_id: str | UnsetType | None = UNSET
    options: Attributes | UnsetType = UNSET
    email: Text | UnsetType | None = UNSET
    description: Text | UnsetType | None = UNSET


class PasswordBody(msgspec.Struct, frozen=True):
    original_password: Secret
    password: Secret


class Users(Resource[User, UserBody]):
    singular, plural = "user", "users"
    collection = users
    body = UserBody
    filters = ("name", "domain_id", "enabled", "default_project_id")

    def routes(self) -> list[Route]:
        return [
            *super().routes(),
            route("/users/{id}/password", "POST", self.change_password),
            route("/users/{id}/projects", "GET", self.list_projects),
            route("/users/{id}/groups", "GET", self.list_groups),
            route("/groups/{id}/users", "GET", self.list_members),
        ]

    async def make(self, caller: Caller, body: UserBody, extra: Attributes) -> User:
        required(body, "name")
        own_domain = caller.token.domain.id if caller.token.domain else DEFAULT_DOMAIN
        password = chosen(body.password, None)
        return User(
            id=uuid.uuid4().hex, name=chosen(body.name, ""), domain_id=chosen(body.domain_id, own_domain),
            password_hash=await self.realm.passwords.hash(password) if password else None,
            enabled=chosen(body.enabled, True), default_project_id=chosen(body.default_project_id, None),
            options=chosen(body.options, {}), extra=_with_extras(body, extra),
        )

    def check(self, conn: sa.Connection, record: User) -> None:
        domains.get(conn, record.domain_id)
        if record.default_project_id is not None:
            projects.get(conn, record.default_project_id)

    async def changes(self, body: UserBody, extra: Attributes) -> Attributes:
        changes = given(body)
        for name in ("email", "description"):
            changes.pop(name, None)
        password = changes.pop("password", None)
        if password is not None:
            changes["password_hash"] = await self.realm.passwords.hash(password)
        return changes | {"extra": _with_extras(body, extra)}

    def change(self, conn: sa.Connection, id: str, changes: Attributes) -> User:
        known = users.get(conn, id)
        if changes.pop("domain_id", None) not in (None, known.domain_id):
            raise Forbidden("The domain of a user cannot be changed.")
        if changes.get("default_project_id") is not None:
            projects.get(conn, changes["default_project_id"])
        if "password_hash" in changes or changes.get("enabled") is False:
            changes["token_epoch"] = schema.users.c.token_epoch + 1
        return super().change(conn, id, changes | {"extra": known.extra | changes["extra"]})

    def remove(self, conn: sa.Connection, id: str) -> None:
        grants.forget_actors(conn, ActorKind.USER, [id])
        super().remove(conn, id)

    def render(self, request: Request, record: User) -> Attributes:
        default_project = {"default_project_id": record.default_project_id} if record.default_project_id else {}
        return record.extra | default_project | {
            "id": record.id, "name": record.name, "domain_id": record.domain_id, "enabled": record.enabled,
            "password_expires_at": None, "options": record.options, "links": self.links(request, record),
        }

    def may_read(self, caller: Caller, record: User) -> bool:
        return record.id == caller.user_id or caller.is_service or caller.reads_domain(record.domain_id)

    def may_change(self, caller: Caller, id: str, body: UserBody) -> bool:
        harmless = all(getattr(body, name) is UNSET for name in ADMIN_ONLY)
        return caller.is_admin or (id == caller.user_id and harmless)

    def visible(self, caller: Caller) -> list[sa.ColumnElement[bool]]:
        if caller.readable_domain is not None:
            return [schema.users.c.domain_id == caller.readable_domain]
        return super().visible(caller)

    async def change_password(self, request: Request) -> Response:
        """A user's own change, which needs the old password and ends all its tokens."""
        caller = await caller_of(request, self.realm)
        id = request.path_params["id"]
        caller.require(id == caller.user_id)
        body, _ = await parse(request, "user", PasswordBody)
        user = caller.token.user
        if not await self.realm.passwords.matches(user.password_hash, body.original_password):
            raise Unauthorized("The original password is wrong.")
        changes = {
            "password_hash": await self.realm.passwords.hash(body.password),
            "token_epoch": schema.users.c.token_epoch + 1,
        }
        await self.realm.store.write(lambda conn: users.update(conn, id, changes))
        return empty_response()

    async def list_projects(self, request: Request) -> Response:
        id = await self._readable(request)
        found = await self.realm.store.read(lambda conn: grants.projects_of(conn, id))
        render = Projects(self.realm).render
        return json_response(listing(request, "projects", [render(request, project) for project in found]))

    async def list_groups(self, request: Request) -> Response:
        id = await self._readable(request)
        found = await self.realm.store.read(lambda conn: grants.groups_of(conn, id))
        render = Groups(self.realm).render
        return json_response(listing(request, "groups", [render(request, group) for group in found]))

    async def list_members(self, request: Request) -> Response:
        """The users of a group."""
        caller = await caller_of(request, self.realm)
        id = request.path_params["id"]

        def unit(conn: sa.Connection) -> list[User]:
            caller.require(caller.reads_domain(groups.get(conn, id).domain_id))
            members = sa.select(schema.memberships.c.user_id).where(schema.memberships.c.group_id == id)
            return users.matching(conn, schema.users.c.id.in_(members))

        found = await self.realm.store.read(unit)
        return json_response(listing(request, "users", [self.render(request, user) for user in found]))

    async def _readable(self, request: Request) -> str:
        caller = await caller_of(request, self.realm)
        user = await self.realm.store.read(lambda conn: users.get(conn, request.path_params["id"]))
        caller.require(self.may_read(caller, user))
        return user.id



def _with_extras(body: UserBody, extra: Attributes) -> Attributes:
    # Attributes that the answer has of its own cannot be stored beside them.
    own = {"password_hash", "token_epoch", "original_password", "password_expires_at"}
    checked = {"email": body.email, "description": body.description}
    sent = {name: value for name, value in checked.items() if value is not UNSET}
    return {name: value for name, value in extra.items() if name not in own} | sent
