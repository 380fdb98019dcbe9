"""Quota sets of projects and users. Spec: API-251 to API-255, API-466, API-640 to API-643."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import catalogue as answers
from kilonova.api.compute.quota_check import UNLIMITED
from kilonova.api.compute.stored_quotas import DEFAULT_CLASS, RESOURCES, in_sets, stored_quotas
from kilonova.api.policy import Audience, Rule, Target
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Boolean, Integer, Object, Text, optional, required
from kilonova.db import quotas as records
from kilonova.db.quotas import PROJECT
from kilonova.domain.errors import InvalidInput

SHOW = Rule("os-quota-sets:show", Audience.READER)
DETAIL = Rule("os-quota-sets:detail", Audience.READER)
DEFAULTS = Rule("os-quota-sets:defaults", Audience.ANY)
UPDATE = Rule("os-quota-sets:update", Audience.ADMIN)
DELETE = Rule("os-quota-sets:delete", Audience.ADMIN)

LIMIT = Integer(UNLIMITED)
UPDATE_BODY = Object({"quota_set": required(Object({
    **{
        r.name: optional(LIMIT) if r.sets_until is None else optional(LIMIT, until=r.sets_until)
        for r in RESOURCES
    },
    "force": optional(Boolean()),
}))})
USER_QUERY = Query({"user_id": Param(Text())}, strict_since=75)
LOOSE_QUERY = Query(strict_since=None)
COUNTED = ("instances", "cores", "ram")


async def _project(call: Call, rule: Rule) -> str:
    """The project of the path. Raises PolicyNotAuthorized, InvalidInput: there is none."""
    project_id = call.path["id"]
    call.require(rule, Target(project_id, call.context.user_id))
    if not await call.cloud.identity.project_exists(project_id):
        raise InvalidInput(f"Project ID {project_id} is not a valid project.")
    return project_id


async def show(call: Call) -> Any:
    project_id = await _project(call, SHOW)
    values = await stored_quotas(call).values(project_id, call.query.first("user_id"))
    return {"quota_set": {"id": project_id, **_shown(call, values)}}


async def detail(call: Call) -> Any:
    project_id = await _project(call, DETAIL)
    user_id = call.query.first("user_id")
    values = _shown(call, await stored_quotas(call).values(project_id, user_id))
    used = await _used(call, project_id, user_id)
    return {"quota_set": {
        "id": project_id,
        **{name: {"limit": limit, "in_use": used.get(name, 0), "reserved": 0} for name, limit in values.items()},
    }}


async def defaults(call: Call) -> Any:
    project_id = await _project(call, DEFAULTS)
    values = await stored_quotas(call).class_values(DEFAULT_CLASS)
    return {"quota_set": {"id": project_id, **_shown(call, values)}}


async def update(call: Call) -> Any:
    project_id = await _project(call, UPDATE)
    user_id = call.query.first("user_id")
    wanted = dict(call.body["quota_set"])
    force = wanted.pop("force", False)
    if not stored_quotas(call).changeable:
        return {"quota_set": _shown(call, await stored_quotas(call).values(project_id, user_id))}
    if not force:
        _check_usage(wanted, await _used(call, project_id, user_id))
    if user_id is not None:
        _check_project(wanted, await stored_quotas(call).values(project_id))
    await call.cloud.cells.api.write(lambda conn: records.set_limits(conn, project_id, wanted, user_id or PROJECT))
    return {"quota_set": _shown(call, await stored_quotas(call).values(project_id, user_id))}


async def delete(call: Call) -> Any:
    project_id, user_id = call.path["id"], call.query.first("user_id")
    if not stored_quotas(call).changeable:
        return None
    await call.cloud.cells.api.write(lambda conn: records.forget(conn, project_id, user_id))
    return None


def _shown(call: Call, values: dict[str, int]) -> dict[str, int]:
    return {name: values[name] for name in in_sets(call.version)}


async def _used(call: Call, project_id: str, user_id: str | None) -> dict[str, int]:
    """Usage by resource. Key pairs and group members are counted elsewhere and show 0. Spec: API-642."""
    usage = await call.cloud.quotas.usage(project_id, user_id)
    return {name: getattr(usage, name) for name in COUNTED}


def _check_usage(wanted: dict[str, int], used: dict[str, int]) -> None:
    for name, limit in wanted.items():
        if limit != UNLIMITED and limit < used.get(name, 0):
            raise InvalidInput(
                f"Quota limit {limit} for {name} must be greater than or equal to already used and reserved "
                f"{used[name]}.",
                hint="`force` sets it all the same",
            )


def _check_project(wanted: dict[str, int], allowed: dict[str, int]) -> None:
    for name, limit in wanted.items():
        if allowed[name] != UNLIMITED and (limit == UNLIMITED or limit > allowed[name]):
            raise InvalidInput(f"Quota limit {limit} for {name} must be less than or equal to {allowed[name]}.")


_ONE = "/os-quota-sets/{id}"
ROUTES = [
    Route(method="GET", path=_ONE, handler=show, rules=(SHOW,), query=USER_QUERY, answer=answers.QUOTA_SET),
    Route(method="GET", path=f"{_ONE}/detail", handler=detail, rules=(DETAIL,), query=USER_QUERY,
          answer=answers.QUOTA_DETAIL),
    Route(method="GET", path=f"{_ONE}/defaults", handler=defaults, rules=(DEFAULTS,), query=LOOSE_QUERY,
          answer=answers.QUOTA_SET),
    Route(method="PUT", path=_ONE, handler=update, rules=(UPDATE,), body=UPDATE_BODY, query=USER_QUERY,
          answer=answers.QUOTA_SET),
    Route(method="DELETE", path=_ONE, handler=delete, rule=DELETE, query=USER_QUERY, status=202),
]
