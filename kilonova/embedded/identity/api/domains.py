"""Domains: what users, groups and projects belong to. Spec: EMI-39, EMI-44."""

from __future__ import annotations

import uuid

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, UnsetType
from starlette.requests import Request

from kilonova.domain.errors import Forbidden
from kilonova.embedded.identity import grants, schema
from kilonova.embedded.identity.api.access import Caller
from kilonova.embedded.identity.api.bodies import Attributes, Name, Text, chosen, given, required
from kilonova.embedded.identity.api.resource import Resource
from kilonova.embedded.identity.records import DEFAULT_DOMAIN, ActorKind, Domain, TargetKind
from kilonova.embedded.identity.store import domains


class DomainBody(msgspec.Struct, frozen=True):
    name: Name | UnsetType = UNSET
    description: Text | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET


class Domains(Resource[Domain, DomainBody]):
    singular, plural = "domain", "domains"
    collection = domains
    body = DomainBody
    filters = ("name", "enabled")

    async def make(self, caller: Caller, body: DomainBody, extra: Attributes) -> Domain:
        required(body, "name")
        return Domain(id=uuid.uuid4().hex, name=chosen(body.name, ""), description=chosen(body.description, ""),
                      enabled=chosen(body.enabled, True))

    async def changes(self, body: DomainBody, extra: Attributes) -> Attributes:
        changes = given(body)
        if "description" in changes:
            changes["description"] = chosen(body.description, "")
        return changes

    def change(self, conn: sa.Connection, id: str, changes: Attributes) -> Domain:
        if id == DEFAULT_DOMAIN and changes.get("enabled") is False:
            raise Forbidden("The default domain cannot be disabled.")
        return super().change(conn, id, changes)

    def remove(self, conn: sa.Connection, id: str) -> None:
        if domains.get(conn, id).enabled:
            raise Forbidden("Cannot delete a domain that is enabled, please disable it first.")
        for table, kind in ((schema.users, ActorKind.USER), (schema.groups, ActorKind.GROUP)):
            grants.forget_actors(conn, kind, _of_domain(conn, table, id))
        grants.forget_targets(conn, TargetKind.PROJECT, _of_domain(conn, schema.projects, id))
        grants.forget_targets(conn, TargetKind.DOMAIN, [id])
        conn.execute(schema.roles.delete().where(schema.roles.c.domain_id == id))
        super().remove(conn, id)

    def render(self, request: Request, record: Domain) -> Attributes:
        return {
            "id": record.id, "name": record.name, "description": record.description, "enabled": record.enabled,
            "tags": [], "options": {}, "links": self.links(request, record),
        }

    def may_read(self, caller: Caller, record: Domain) -> bool:
        own = {caller.token.user_domain.id, caller.token.domain.id if caller.token.domain else None}
        return caller.reads_all or caller.is_service or record.id in own

    def visible(self, caller: Caller) -> list[sa.ColumnElement[bool]]:
        if caller.readable_domain is not None:
            return [schema.domains.c.id == caller.readable_domain]
        return super().visible(caller)


def _of_domain(conn: sa.Connection, table: sa.Table, domain_id: str) -> list[str]:
    return list(conn.execute(sa.select(table.c.id).where(table.c.domain_id == domain_id)).scalars())
