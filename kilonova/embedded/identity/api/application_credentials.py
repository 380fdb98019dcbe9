"""Application credentials and their access rules. Spec: EMI-45 to EMI-48."""

from __future__ import annotations

import secrets
import uuid
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kilonova.domain.clock import iso_microseconds
from kilonova.domain.errors import Forbidden, InvalidInput, NotFound
from kilonova.embedded.http import empty_response, json_response
from kilonova.embedded.identity import schema
from kilonova.embedded.identity.api.access import Caller, caller_of
from kilonova.embedded.identity.api.bodies import (
    Attributes,
    Name,
    Secret,
    Text,
    chosen,
    listing,
    parse,
    required,
    self_link,
)
from kilonova.embedded.identity.api.resource import route
from kilonova.embedded.identity.realm import Realm
from kilonova.embedded.identity.records import AccessRule, ApplicationCredential, Role, TargetKind
from kilonova.embedded.identity.store import access_rules, application_credentials, roles, users


class RoleRef(msgspec.Struct, frozen=True):
    id: str | None = None
    name: str | None = None


class RuleBody(msgspec.Struct, frozen=True):
    """A rule that exists, by id, or a new one."""

    id: str | None = None
    service: Name | None = None
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] | None = None
    path: Annotated[str, Meta(max_length=128, pattern="^/")] | None = None


class CredentialBody(msgspec.Struct, frozen=True):
    name: Name | UnsetType = UNSET
    secret: Secret | UnsetType | None = UNSET
    description: Text | UnsetType | None = UNSET
    expires_at: str | UnsetType | None = UNSET
    roles: list[RoleRef] | UnsetType | None = UNSET
    unrestricted: bool | UnsetType | None = UNSET
    access_rules: list[RuleBody] | UnsetType | None = UNSET


class ApplicationCredentials:
    def __init__(self, realm: Realm) -> None:
        self.realm = realm

    def routes(self) -> list[Route]:
        credentials = "/users/{user_id}/application_credentials"
        rules = "/users/{user_id}/access_rules"
        return [
            route(credentials, "POST", self.create),
            route(credentials, "GET", self.list_all),
            route(f"{credentials}/{{id}}", "GET", self.show),
            route(f"{credentials}/{{id}}", "DELETE", self.delete),
            route(rules, "GET", self.list_rules),
            route(f"{rules}/{{id}}", "GET", self.show_rule),
            route(f"{rules}/{{id}}", "DELETE", self.delete_rule),
        ]

    async def create(self, request: Request) -> Response:
        caller = await caller_of(request, self.realm)
        caller.require(request.path_params["user_id"] == caller.user_id)
        caller.require_unrestricted()
        body, _ = await parse(request, "application_credential", CredentialBody)
        secret = chosen(body.secret, None) or secrets.token_urlsafe(64)
        credential = self._credential(caller, body, await self.realm.passwords.hash(secret))
        rule_bodies: list[RuleBody] = chosen(body.access_rules, [])

        def unit(conn: sa.Connection) -> Attributes:
            rule_ids = tuple(_rule_id(conn, caller.user_id, rule) for rule in rule_bodies)
            made = application_credentials.insert(
                conn, msgspec.structs.replace(credential, access_rule_ids=rule_ids)
            )
            return _render(conn, request, made)

        answer = await self.realm.store.write(unit)
        return json_response({"application_credential": {**answer, "secret": secret}}, 201)

    def _credential(self, caller: Caller, body: CredentialBody, secret_hash: str) -> ApplicationCredential:
        required(body, "name")
        project = caller.token.project
        if project is None or caller.token.scope is not TargetKind.PROJECT:
            raise InvalidInput("An application credential is made with a token of the project it is for.")
        return ApplicationCredential(
            id=str(uuid.uuid4()), name=chosen(body.name, ""), user_id=caller.user_id, project_id=project.id,
            secret_hash=secret_hash, description=chosen(body.description, None),
            expires_at=self._expiry(chosen(body.expires_at, None)), unrestricted=chosen(body.unrestricted, False),
            role_ids=_role_ids(caller.token.roles, chosen(body.roles, [])),
        )

    def _expiry(self, text: str | None) -> float | None:
        if text is None:
            return None
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise InvalidInput(f"expires_at is no ISO 8601 time: {text[:64]}") from error
        expires_at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        if expires_at <= self.realm.clock.now():
            raise InvalidInput("expires_at is in the past.")
        return expires_at

    async def list_all(self, request: Request) -> Response:
        user_id = await self._owner(request, change=False)
        where = [schema.application_credentials.c.user_id == user_id]
        if "name" in request.query_params:
            where.append(schema.application_credentials.c.name_key == request.query_params["name"].casefold())

        def unit(conn: sa.Connection) -> list[Attributes]:
            users.get(conn, user_id)
            return [_render(conn, request, each) for each in application_credentials.matching(conn, *where)]

        return json_response(listing(request, "application_credentials", await self.realm.store.read(unit)))

    async def show(self, request: Request) -> Response:
        user_id = await self._owner(request, change=False)
        body = await self.realm.store.read(lambda conn: _render(conn, request, _own(conn, user_id, request)))
        return json_response({"application_credential": body})

    async def delete(self, request: Request) -> Response:
        user_id = await self._owner(request, change=True)
        await self.realm.store.write(
            lambda conn: application_credentials.delete(conn, _own(conn, user_id, request).id)
        )
        return empty_response()

    async def list_rules(self, request: Request) -> Response:
        user_id = await self._owner(request, change=False)
        found = await self.realm.store.read(
            lambda conn: access_rules.matching(conn, schema.access_rules.c.user_id == user_id)
        )
        return json_response(listing(request, "access_rules", [_render_rule(request, rule) for rule in found]))

    async def show_rule(self, request: Request) -> Response:
        user_id = await self._owner(request, change=False)
        rule = await self.realm.store.read(lambda conn: _own_rule(conn, user_id, request.path_params["id"]))
        return json_response({"access_rule": _render_rule(request, rule)})

    async def delete_rule(self, request: Request) -> Response:
        user_id = await self._owner(request, change=True)

        def unit(conn: sa.Connection) -> None:
            rule = _own_rule(conn, user_id, request.path_params["id"])
            owned = application_credentials.matching(conn, schema.application_credentials.c.user_id == user_id)
            if any(rule.id in credential.access_rule_ids for credential in owned):
                raise Forbidden(f"Access rule {rule.id} is in use by an application credential.")
            access_rules.delete(conn, rule.id)

        await self.realm.store.write(unit)
        return empty_response()

    async def _owner(self, request: Request, *, change: bool) -> str:
        """The user of the path, if the caller may see (or change) what it owns. Raises Forbidden."""
        caller = await caller_of(request, self.realm)
        user_id: str = request.path_params["user_id"]
        caller.require(user_id == caller.user_id or caller.is_admin or (caller.reads_all and not change))
        if change:
            caller.require_unrestricted()
        return user_id


def _role_ids(held: tuple[Role, ...], wanted: list[RoleRef]) -> tuple[str, ...]:
    """Spec: EMI-46. Raises InvalidInput for a role that the creating token does not have."""
    if not wanted:
        return tuple(role.id for role in held)
    chosen_ids = []
    for ref in wanted:
        name = ref.name.casefold() if ref.name is not None else None
        match = next((role.id for role in held if ref.id == role.id or name == role.name.casefold()), None)
        if match is None:
            raise InvalidInput(f"The token does not have the role {ref.id or ref.name}.")
        chosen_ids.append(match)
    return tuple(dict.fromkeys(chosen_ids))


def _rule_id(conn: sa.Connection, user_id: str, rule: RuleBody) -> str:
    """The id of the rule, which is made unless the user has the same one."""
    if rule.id is not None:
        return _own_rule(conn, user_id, rule.id).id
    if rule.service is None or rule.method is None or rule.path is None:
        raise InvalidInput("An access rule needs service, method and path.")
    column = schema.access_rules.c
    same = access_rules.matching(conn, column.user_id == user_id, column.service == rule.service,
                                 column.method == rule.method, column.path == rule.path)
    if same:
        return same[0].id
    new = AccessRule(id=str(uuid.uuid4()), user_id=user_id, service=rule.service, method=rule.method, path=rule.path)
    return access_rules.insert(conn, new).id


def _own(conn: sa.Connection, user_id: str, request: Request) -> ApplicationCredential:
    credential = application_credentials.get(conn, request.path_params["id"])
    if credential.user_id != user_id:
        raise NotFound(f"Could not find application credential: {credential.id}.")
    return credential


def _own_rule(conn: sa.Connection, user_id: str, id: str) -> AccessRule:
    rule = access_rules.get(conn, id)
    if rule.user_id != user_id:
        raise NotFound(f"Could not find access rule: {id}.")
    return rule


def _render(conn: sa.Connection, request: Request, record: ApplicationCredential) -> Attributes:
    held = roles.matching(conn, schema.roles.c.id.in_(record.role_ids))
    rules = access_rules.matching(conn, schema.access_rules.c.id.in_(record.access_rule_ids))
    body = {
        "id": record.id, "name": record.name, "description": record.description, "user_id": record.user_id,
        "project_id": record.project_id, "unrestricted": record.unrestricted,
        "expires_at": iso_microseconds(record.expires_at) if record.expires_at is not None else None,
        "roles": [{"id": role.id, "name": role.name, "domain_id": None} for role in held],
        "links": self_link(request, "users", record.user_id, "application_credentials", record.id),
    }
    return body | ({"access_rules": [_render_rule(request, rule) for rule in rules]} if rules else {})


def _render_rule(request: Request, rule: AccessRule) -> Attributes:
    return {
        "id": rule.id, "service": rule.service, "method": rule.method, "path": rule.path,
        "links": self_link(request, "users", rule.user_id, "access_rules", rule.id),
    }
