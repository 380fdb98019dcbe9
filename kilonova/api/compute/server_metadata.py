"""Metadata of a server. Spec: API-158 to API-163."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute import metadata_items, quota_check, server_records
from kilonova.api.compute.answers import servers as answers
from kilonova.api.compute.field_types import METADATA, METADATA_KEY, METADATA_VALUE
from kilonova.api.compute.quota_check import Limits
from kilonova.api.compute.server_lookup import find_server
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.api.schema import MapOf, Object, required
from kilonova.domain.instance import Instance

Metadata = dict[str, str]


async def index(call: Call) -> Any:
    return {"metadata": call.server.instance.metadata}


async def show(call: Call) -> Any:
    return {"meta": metadata_items.one(call, call.server.instance.metadata)}


async def create(call: Call) -> Any:
    asked: Metadata = call.body["metadata"]
    return {"metadata": await _change(call, lambda current: current | asked)}


async def replace(call: Call) -> Any:
    asked: Metadata = call.body["metadata"]
    return {"metadata": await _change(call, lambda current: asked)}


async def update(call: Call) -> Any:
    meta = metadata_items.body(call)
    await _change(call, lambda current: current | meta)
    return {"meta": meta}


async def delete(call: Call) -> None:
    await _change(call, lambda current: metadata_items.without(call, current), action="delete metadata")


async def _change(
    call: Call, new: Callable[[Metadata], Metadata], *, action: str = "update metadata"
) -> Metadata:
    """Write what `new` makes of the stored metadata. Raises the conflicts of API-062 and API-064, OverQuota."""
    project = call.server.instance.project_id
    limits: Limits = await call.cloud.quotas.limits(project, call.context.user_id)

    def changes(instance: Instance) -> dict[str, Any]:
        server_records.check_lock(call, instance)
        server_records.check_state(instance, action, server_records.QUIET_STATES)
        metadata = new(instance.metadata)
        if len(metadata) > len(instance.metadata):
            quota_check.check_metadata(limits, len(metadata))
        return {"metadata": metadata}

    return (await server_records.change(call, call.server, changes)).metadata


_ALL = Object({"metadata": required(METADATA)})
_ONE = Object({"meta": required(MapOf(METADATA_KEY, METADATA_VALUE, fewest=1, most=1))})
_PATH = "/servers/{server_id}/metadata"


def _rule(name: str, audience: Audience) -> Rule:
    return Rule(f"server-metadata:{name}", audience)


ROUTES = [
    Route(method="GET", path=_PATH, handler=index, look_up=find_server, rule=_rule("index", Audience.READER),
          answer=answers.METADATA),
    Route(method="POST", path=_PATH, handler=create, look_up=find_server, rule=_rule("create", Audience.MEMBER),
          body=_ALL, answer=answers.METADATA),
    Route(method="PUT", path=_PATH, handler=replace, look_up=find_server, rule=_rule("update_all", Audience.MEMBER),
          body=_ALL, answer=answers.METADATA),
    Route(method="GET", path=f"{_PATH}/{{id}}", handler=show, look_up=find_server,
          rule=_rule("show", Audience.READER), answer=answers.META),
    Route(method="PUT", path=f"{_PATH}/{{id}}", handler=update, look_up=find_server,
          rule=_rule("update", Audience.MEMBER), body=_ONE, answer=answers.META),
    Route(method="DELETE", path=f"{_PATH}/{{id}}", handler=delete, look_up=find_server,
          rule=_rule("delete", Audience.MEMBER), status=204),
]
