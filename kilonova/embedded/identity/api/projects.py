"""Projects and their tags. Spec: EMI-40, EMI-43, EMI-52."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Annotated

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kilonova.domain.errors import Forbidden, InvalidInput, NotFound
from kilonova.embedded.http import empty_response, json_object, json_response
from kilonova.embedded.identity import grants, schema
from kilonova.embedded.identity.api import bodies
from kilonova.embedded.identity.api.access import Caller, caller_of
from kilonova.embedded.identity.api.bodies import Attributes, Text, chosen, given, required, self_link
from kilonova.embedded.identity.api.resource import Resource, route
from kilonova.embedded.identity.records import DEFAULT_DOMAIN, Project, TargetKind
from kilonova.embedded.identity.store import domains, projects

ProjectName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\S")]
Tag = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^,/]*$")]
Tags = Annotated[tuple[Tag, ...], Meta(max_length=80)]


class ProjectBody(msgspec.Struct, frozen=True):
    name: ProjectName | UnsetType = UNSET
    domain_id: str | UnsetType | None = UNSET
    parent_id: str | UnsetType | None = UNSET
    description: Text | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET
    is_domain: bool | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    options: Attributes | UnsetType = UNSET


class TagsBody(msgspec.Struct, frozen=True):
    tags: Tags


class Projects(Resource[Project, ProjectBody]):
    singular, plural = "project", "projects"
    collection = projects
    body = ProjectBody
    filters = ("name", "domain_id", "enabled", "parent_id")

    def routes(self) -> list[Route]:
        return [
            *super().routes(),
            route("/projects/{id}/tags", "GET", self.list_tags),
            route("/projects/{id}/tags", "PUT", self.set_tags),
            route("/projects/{id}/tags", "DELETE", self.clear_tags),
            route("/projects/{id}/tags/{tag}", "GET", self.has_tag),
            route("/projects/{id}/tags/{tag}", "PUT", self.add_tag),
            route("/projects/{id}/tags/{tag}", "DELETE", self.remove_tag),
        ]

    async def make(self, caller: Caller, body: ProjectBody, extra: Attributes) -> Project:
        required(body, "name")
        if body.is_domain is True:
            raise InvalidInput("A project that is a domain is made as a domain.")
        own_domain = caller.token.domain.id if caller.token.domain else DEFAULT_DOMAIN
        domain_id = chosen(body.domain_id, own_domain)
        return Project(
            id=uuid.uuid4().hex, name=chosen(body.name, ""), domain_id=domain_id,
            parent_id=chosen(body.parent_id, domain_id), description=chosen(body.description, ""),
            enabled=chosen(body.enabled, True), tags=chosen(body.tags, ()), options=chosen(body.options, {}),
            extra=extra,
        )

    def check(self, conn: sa.Connection, record: Project) -> None:
        domains.get(conn, record.domain_id)
        if record.parent_id != record.domain_id and projects.get(conn, record.parent_id).domain_id != record.domain_id:
            raise InvalidInput("The parent of a project must be in the same domain.")

    async def changes(self, body: ProjectBody, extra: Attributes) -> Attributes:
        changes = given(body)
        changes.pop("is_domain", None)
        if "description" in changes:
            changes["description"] = chosen(body.description, "")
        return changes | {"extra": extra}

    def change(self, conn: sa.Connection, id: str, changes: Attributes) -> Project:
        known = projects.get(conn, id)
        for fixed in ("domain_id", "parent_id"):
            if changes.pop(fixed, None) not in (None, getattr(known, fixed)):
                raise Forbidden(f"The {fixed} of a project cannot be changed.")
        return super().change(conn, id, changes | {"extra": known.extra | changes["extra"]})

    def remove(self, conn: sa.Connection, id: str) -> None:
        if projects.matching(conn, schema.projects.c.parent_id == id, limit=1):
            raise Forbidden("Cannot delete a project that has projects below it.")
        grants.forget_targets(conn, TargetKind.PROJECT, [id])
        conn.execute(schema.users.update().where(schema.users.c.default_project_id == id)
                     .values(default_project_id=None))
        super().remove(conn, id)

    def render(self, request: Request, record: Project) -> Attributes:
        return record.extra | {
            "id": record.id, "name": record.name, "domain_id": record.domain_id, "parent_id": record.parent_id,
            "description": record.description, "enabled": record.enabled, "is_domain": False,
            "tags": record.tags, "options": record.options, "links": self.links(request, record),
        }

    def may_read(self, caller: Caller, record: Project) -> bool:
        own = caller.token.project is not None and caller.token.project.id == record.id
        return own or caller.is_service or caller.reads_domain(record.domain_id)

    def visible(self, caller: Caller) -> list[sa.ColumnElement[bool]]:
        if caller.readable_domain is not None:
            return [schema.projects.c.domain_id == caller.readable_domain]
        return super().visible(caller)

    def where(self, request: Request) -> list[sa.ColumnElement[bool]]:
        conditions = super().where(request)
        if bodies.flag(request, "is_domain"):
            conditions.append(sa.false())  # domains are records of their own here
        for tag in filter(None, request.query_params.get("tags", "").split(",")):
            conditions.append(_has_tag(tag))
        return conditions

    async def list_tags(self, request: Request) -> Response:
        project = await self._readable(request)
        return json_response({"tags": project.tags, "links": self_link(request, "projects", project.id, "tags")})

    async def has_tag(self, request: Request) -> Response:
        project = await self._readable(request)
        if request.path_params["tag"] not in project.tags:
            raise NotFound(f"Could not find project tag: {request.path_params['tag']}.")
        return empty_response()

    async def set_tags(self, request: Request) -> Response:
        tags = bodies.convert(await json_object(request), TagsBody).tags
        project = await self._retag(request, lambda known: tuple(dict.fromkeys(tags)))
        return json_response({"tags": project.tags, "links": self_link(request, "projects", project.id, "tags")})

    async def clear_tags(self, request: Request) -> Response:
        await self._retag(request, lambda known: ())
        return empty_response()

    async def add_tag(self, request: Request) -> Response:
        tag = request.path_params["tag"]
        bodies.convert({"tags": [tag]}, TagsBody)
        await self._retag(request, lambda known: tuple(dict.fromkeys((*known, tag))))
        return empty_response(201)

    async def remove_tag(self, request: Request) -> Response:
        tag = request.path_params["tag"]

        def without(known: tuple[str, ...]) -> tuple[str, ...]:
            if tag not in known:
                raise NotFound(f"Could not find project tag: {tag}.")
            return tuple(each for each in known if each != tag)

        await self._retag(request, without)
        return empty_response()

    async def _readable(self, request: Request) -> Project:
        caller = await caller_of(request, self.realm)
        project = await self.realm.store.read(lambda conn: projects.get(conn, request.path_params["id"]))
        caller.require(self.may_read(caller, project))
        return project

    async def _retag(self, request: Request, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Project:
        (await caller_of(request, self.realm)).require_admin()
        id = request.path_params["id"]
        return await self.realm.store.write(
            lambda conn: projects.update(conn, id, {"tags": change(projects.get(conn, id).tags)})
        )


def _has_tag(tag: str) -> sa.ColumnElement[bool]:
    # Tags are stored as a JSON list; a quoted tag cannot be part of another one. Unlike LIKE, replace() heeds case.
    stored = sa.type_coerce(schema.projects.c.tags, sa.Text)
    return sa.func.replace(stored, msgspec.json.encode(tag).decode(), "") != stored
