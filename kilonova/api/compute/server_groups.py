"""Server groups. Spec: API-218 to API-221, API-462."""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.api.compute.answers import catalogue as answers
from kilonova.api.compute.quota_check import UNLIMITED
from kilonova.api.paging import effective_limit
from kilonova.api.policy import Audience, Rule, Target
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Anything, Enum, Integer, ListOf, Object, Text, optional, required
from kilonova.api.telling import tell_change
from kilonova.db import server_groups as records
from kilonova.db.server_groups import GroupRecord
from kilonova.domain.errors import InvalidInput, NotFound, OverQuota
from kilonova.domain.grouping import GroupPolicy
from kilonova.notifications import payloads

INDEX = Rule("os-server-groups:index", Audience.READER)
ALL_PROJECTS = Rule("os-server-groups:index:all_projects", Audience.ADMIN)
CREATE = Rule("os-server-groups:create", Audience.MEMBER)
SHOW = Rule("os-server-groups:show", Audience.READER)
DELETE = Rule("os-server-groups:delete", Audience.MEMBER)

_HARD, _ALL_POLICIES = Enum("anti-affinity", "affinity"), Enum(*(policy.value for policy in GroupPolicy))
CREATE_BODY = Object({"server_group": required(Object({
    "name": required(Text(1, 255, r"(?! )[^\0-\x1f\x7f]+(?<! )", trimmed_when_lenient=True)),
    "policies": (
        required(ListOf(_HARD, 1, 1), until=14), required(ListOf(_ALL_POLICIES, 1, 1), since=15, until=63),
    ),
    "policy": required(_ALL_POLICIES, since=64),
    "rules": optional(Object({"max_server_per_host": optional(Integer(1))}), since=64),
}))})
LIST_QUERY = Query(
    {"all_projects": Param(Anything()), "limit": Param(Integer(0)), "offset": Param(Integer(0))}, strict_since=75
)


def view(group: GroupRecord, version: int) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": group.uuid, "name": group.name, "members": list(group.members)}
    if version >= 13:
        shown |= {"project_id": group.project_id, "user_id": group.user_id}
    if version < 64:
        return shown | {"policies": [group.policy.value], "metadata": {}}
    rules = {} if group.max_per_host is None else {"max_server_per_host": group.max_per_host}
    return shown | {"policy": group.policy.value, "rules": rules}


async def index(call: Call) -> Any:
    """A caller who may not see all projects sees the own. Spec: API-218."""
    project: str | None = call.context.project_id
    if "all_projects" in call.query and call.context.is_admin:
        call.require(ALL_PROJECTS)
        project = None
    offset, limit = call.query.last("offset", 0), effective_limit(call)
    found = await call.cloud.cells.api.read(
        lambda conn: records.of_project(conn, project, offset=offset, limit=limit)
    )
    return {"server_groups": [view(group, call.version) for group in found]}


async def create(call: Call) -> Any:
    body = call.body["server_group"]
    policy = GroupPolicy(body["policy"] if call.version >= 64 else body["policies"][0])
    rules = body.get("rules", {})
    if rules and policy is not GroupPolicy.ANTI_AFFINITY:
        raise InvalidInput("Only anti-affinity policy supports rules.")
    project = call.context.project_id or ""
    group = GroupRecord(
        uuid=str(uuid.uuid4()), name=body["name"], policy=policy, max_per_host=rules.get("max_server_per_host"),
        project_id=project, user_id=call.context.user_id, created_at=call.cloud.clock.now(),
    )
    limit = (await call.cloud.quotas.limits(project, call.context.user_id)).server_groups

    def store(conn: sa.Connection) -> None:
        if limit != UNLIMITED and records.count(conn, project) >= limit:
            raise OverQuota("Quota exceeded, too many server groups.")
        records.create(conn, group)
        _tell(call, conn, "create", group)

    await call.cloud.cells.api.write(store)
    return {"server_group": view(group, call.version)}


async def _find(call: Call, rule: Rule) -> GroupRecord:
    """Raises NotFound, PolicyNotAuthorized."""
    group = await call.cloud.cells.api.read(lambda conn: records.get(conn, call.path["id"]))
    call.require(rule, Target(group.project_id, group.user_id))
    return group


async def show(call: Call) -> Any:
    return {"server_group": view(await _find(call, SHOW), call.version)}


async def delete(call: Call) -> None:
    group = await _find(call, DELETE)

    def remove(conn: sa.Connection) -> None:
        records.delete(conn, group.uuid)
        _tell(call, conn, "delete", group)

    await call.cloud.cells.api.write(remove)


def _tell(call: Call, conn: sa.Connection, action: str, group: GroupRecord) -> None:
    told = payloads.server_group(
        uuid=group.uuid, name=group.name, project_id=group.project_id, user_id=group.user_id,
        policy=group.policy.value, max_per_host=group.max_per_host, members=group.members,
    )
    tell_change(call, conn, f"server_group.{action}", group.uuid, told)


async def joined_group(call: Call, hints: dict[str, list[str]], limit: int, count: int) -> str | None:
    """The group that new servers are to join, from the hint `group`, whose first value counts.

    Args:
        limit: members that a group may have. count: servers that join.

    Raises:
        InvalidInput: the project has no such group. OverQuota: it would have too many members.
        Spec: API-060, API-061, API-642, BLD-09.
    """
    if not hints.get("group"):
        return None
    asked = hints["group"][0]
    try:
        group = await call.cloud.cells.api.read(lambda conn: records.get(conn, asked))
    except NotFound as error:
        raise InvalidInput(str(error)) from error
    if group.project_id != call.context.project_id:
        raise InvalidInput(f"Instance group {asked} could not be found.")
    if limit != UNLIMITED and len(group.members) + count > limit:
        raise OverQuota("Quota exceeded, too many servers in group")
    return group.uuid


_ALL, _ONE = "/os-server-groups", "/os-server-groups/{id}"
ROUTES = [
    Route(method="GET", path=_ALL, handler=index, rule=INDEX, rules=(ALL_PROJECTS,), query=LIST_QUERY,
          answer=answers.SERVER_GROUPS),
    Route(method="POST", path=_ALL, handler=create, rule=CREATE, body=CREATE_BODY, query=Query(strict_since=75),
          answer=answers.SERVER_GROUP),
    Route(method="GET", path=_ONE, handler=show, rules=(SHOW,), query=Query(strict_since=75),
          answer=answers.SERVER_GROUP),
    Route(method="DELETE", path=_ONE, handler=delete, rules=(DELETE,), query=Query(strict_since=75), status=204),
]
