"""Giving and taking roles, and listing who has which. Spec: EMI-40, EMI-42."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kilonova.domain.errors import NotFound
from kilonova.embedded.http import empty_response, json_response, root_url
from kilonova.embedded.identity import grants, schema
from kilonova.embedded.identity.api.access import Caller, caller_of
from kilonova.embedded.identity.api.bodies import Attributes, flag, listing
from kilonova.embedded.identity.api.resource import route
from kilonova.embedded.identity.api.roles import Roles
from kilonova.embedded.identity.realm import Realm
from kilonova.embedded.identity.records import SYSTEM, Actor, ActorKind, Assignment, Role, Target, TargetKind
from kilonova.embedded.identity.store import domains, groups, projects, roles, users

_assigned = schema.assignments.c

class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """The conditions of GET /v3/role_assignments.

    Args:
        user_id: with `effective`, also what it has by its groups.
        subtree: include the projects below the one asked for.
    """

    user_id: str | None
    group_id: str | None
    role_id: str | None
    target: Target | None
    effective: bool
    subtree: bool


class Named(msgspec.Struct, frozen=True):
    """Names for the ids in a list of assignments: name and domain by id."""

    names: dict[str, tuple[str, str | None]]
    domains: dict[str, str]


class Assignments:
    def __init__(self, realm: Realm) -> None:
        self.realm = realm

    def routes(self) -> list[Route]:
        result = [route("/role_assignments", "GET", self.list_all)]
        for place in ("projects/{project_id}", "domains/{domain_id}", "system"):
            for holder in ("users/{user_id}", "groups/{group_id}"):
                path = f"/{place}/{holder}/roles"
                result += [
                    route(path, "GET", self.list_granted),
                    route(f"{path}/{{role_id}}", "PUT", self.grant),
                    route(f"{path}/{{role_id}}", "GET", self.show_granted),
                    route(f"{path}/{{role_id}}", "DELETE", self.revoke),
                ]
        return result

    async def grant(self, request: Request) -> Response:
        (await caller_of(request, self.realm)).require_admin()
        assignment = _assignment_of(request)
        await self.realm.store.write(lambda conn: grants.grant(conn, assignment))
        return empty_response()

    async def revoke(self, request: Request) -> Response:
        (await caller_of(request, self.realm)).require_admin()
        assignment = _assignment_of(request)
        await self.realm.store.write(lambda conn: grants.revoke(conn, assignment))
        return empty_response()

    async def show_granted(self, request: Request) -> Response:
        """GET or HEAD: is exactly this assignment made?"""
        caller = await caller_of(request, self.realm)
        caller.require(caller.reads_all)
        assignment = _assignment_of(request)
        if not await self.realm.store.read(lambda conn: grants.is_granted(conn, assignment)):
            raise NotFound(f"Could not find role assignment with role: {assignment.role_id}.")
        return empty_response()

    async def list_granted(self, request: Request) -> Response:
        caller = await caller_of(request, self.realm)
        caller.require(caller.reads_all)
        actor, target = _actor_of(request), _target_of(request)

        def unit(conn: sa.Connection) -> list[Role]:
            grants.require_target(conn, target)
            grants.require_actor(conn, actor)
            return grants.granted_roles(conn, actor, target)

        found = await self.realm.store.read(unit)
        render = Roles(self.realm).render
        return json_response(listing(request, "roles", [render(request, role) for role in found]))

    async def list_all(self, request: Request) -> Response:
        caller = await caller_of(request, self.realm)
        filters = _filters_of(request)
        _require_readable(caller, filters)
        with_names = flag(request, "include_names") or False

        def unit(conn: sa.Connection) -> tuple[list[Assignment], Named | None]:
            found = _select(conn, filters)
            return found, _names(conn) if with_names else None

        found, named = await self.realm.store.read(unit)
        items = [_render(request, assignment, named) for assignment in found]
        return json_response(listing(request, "role_assignments", items))


def _assignment_of(request: Request) -> Assignment:
    return Assignment(_actor_of(request), _target_of(request), request.path_params["role_id"])


def _actor_of(request: Request) -> Actor:
    path = request.path_params
    return Actor(ActorKind.USER, path["user_id"]) if "user_id" in path else Actor(ActorKind.GROUP, path["group_id"])


def _target_of(request: Request) -> Target:
    path = request.path_params
    if "project_id" in path:
        return Target(TargetKind.PROJECT, path["project_id"])
    return Target(TargetKind.DOMAIN, path["domain_id"]) if "domain_id" in path else SYSTEM


def _filters_of(request: Request) -> Filters:
    query = request.query_params
    target = None
    if "scope.project.id" in query:
        target = Target(TargetKind.PROJECT, query["scope.project.id"])
    elif "scope.domain.id" in query:
        target = Target(TargetKind.DOMAIN, query["scope.domain.id"])
    elif "scope.system" in query:
        target = SYSTEM
    return Filters(
        user_id=query.get("user.id"), group_id=query.get("group.id"), role_id=query.get("role.id"), target=target,
        effective=flag(request, "effective") or False, subtree=flag(request, "include_subtree") or False,
    )


def _require_readable(caller: Caller, filters: Filters) -> None:
    """Everyone may ask for its own assignments, and a domain's reader for those on the domain."""
    own = filters.user_id == caller.user_id
    on_domain = filters.target is not None and filters.target.kind is TargetKind.DOMAIN
    domains_own = on_domain and filters.target is not None and caller.reads_domain(filters.target.id)
    caller.require(caller.reads_all or own or domains_own)


def _select(conn: sa.Connection, filters: Filters) -> list[Assignment]:
    where = _on_target(conn, filters) if filters.target else []
    if filters.group_id is not None:
        where += [_assigned.actor_kind == ActorKind.GROUP.value, _assigned.actor_id == filters.group_id]
    if not filters.effective:
        if filters.user_id is not None:
            where += [_assigned.actor_kind == ActorKind.USER.value, _assigned.actor_id == filters.user_id]
        if filters.role_id is not None:
            where.append(_assigned.role_id == filters.role_id)
        return grants.list_assignments(conn, *where)
    # A user may have a role by a group, and a role may be implied: those filters apply to the outcome.
    return [
        each for each in grants.effective(conn, grants.list_assignments(conn, *where))
        if filters.user_id in (None, each.actor.id) and filters.role_id in (None, each.role_id)
    ]


def _on_target(conn: sa.Connection, filters: Filters) -> list[sa.ColumnElement[bool]]:
    assert filters.target is not None
    ids = {filters.target.id}
    if filters.subtree and filters.target.kind is TargetKind.PROJECT:
        level = ids
        while level:
            below = conn.execute(sa.select(schema.projects.c.id).where(schema.projects.c.parent_id.in_(level)))
            level = set(below.scalars()) - ids
            ids |= level
    return [_assigned.target_kind == filters.target.kind.value, _assigned.target_id.in_(ids)]


def _names(conn: sa.Connection) -> Named:
    names: dict[str, tuple[str, str | None]] = {}
    for collection in (users, groups, projects, roles):
        table = collection.table
        for id, name, domain_id in conn.execute(sa.select(table.c.id, table.c.name, table.c.domain_id)):
            names[id] = (name, domain_id or None)
    known_domains = {domain.id: domain.name for domain in domains.matching(conn)}
    return Named(names, known_domains)


def _render(request: Request, assignment: Assignment, named: Named | None) -> Attributes:
    actor, target = assignment.actor, assignment.target

    def entity(id: str) -> Attributes:
        if named is None or id not in named.names:
            return {"id": id}
        name, domain_id = named.names[id]
        domain = {"domain": {"id": domain_id, "name": named.domains.get(domain_id, "")}} if domain_id else {}
        return {"id": id, "name": name, **domain}

    scope: Attributes
    if target.kind is TargetKind.SYSTEM:
        scope, place = {"system": {"all": True}}, "system"
    elif target.kind is TargetKind.PROJECT:
        scope, place = {"project": entity(target.id)}, f"projects/{target.id}"
    else:
        name = {"name": named.domains[target.id]} if named and target.id in named.domains else {}
        scope, place = {"domain": {"id": target.id, **name}}, f"domains/{target.id}"
    link = f"{root_url(request)}/v3/{place}/{actor.kind.value}s/{actor.id}/roles/{assignment.role_id}"
    return {
        "role": entity(assignment.role_id), actor.kind.value: entity(actor.id), "scope": scope,
        "links": {"assignment": link},
    }
