"""Tags of a server, from 2.26. Spec: API-188 to API-193."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from kilonova.api.call import Answer, Call
from kilonova.api.compute import server_records
from kilonova.api.compute.answers import servers as answers
from kilonova.api.compute.field_types import TAG
from kilonova.api.compute.server_lookup import find_server_of_anyone
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Query
from kilonova.api.routes import Route
from kilonova.api.schema import ListOf, Object, Reading, read_body, required
from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.domain.instance import Instance

Tags = tuple[str, ...]
MOST = 50


async def index(call: Call) -> Any:
    return {"tags": call.server.instance.tags}


async def show(call: Call) -> None:
    _present(call, call.server.instance.tags)


async def replace(call: Call) -> Any:
    asked = tuple(dict.fromkeys(call.body["tags"]))
    return {"tags": await _change(call, "update tags", lambda current: asked)}


async def add(call: Call) -> Answer:
    tag = call.path["id"]
    read_body(TAG, tag, Reading(call.version))
    had_it = False

    def added(current: Tags) -> Tags:
        nonlocal had_it
        had_it = tag in current
        if not had_it and len(current) >= MOST:
            raise InvalidInput(f"The number of tags exceeded the per-server limit {MOST}")
        return current if had_it else (*current, tag)

    await _change(call, "update tag", added)
    if had_it:
        return Answer(status=204)
    path = f"/servers/{call.server.instance.uuid}/tags/{quote(tag, safe='')}"
    return Answer(status=201, headers=(("Location", call.links.own(path)),))


async def remove(call: Call) -> None:
    def removed(current: Tags) -> Tags:
        tag = _present(call, current)
        return tuple(other for other in current if other != tag)

    await _change(call, "delete tag", removed)


async def remove_all(call: Call) -> None:
    await _change(call, "delete tags", lambda current: ())


def _present(call: Call, tags: Tags) -> str:
    tag = call.path["id"]
    if tag not in tags:
        raise NotFound(f"Server {call.path['server_id']} has no tag '{tag}'")
    return tag


async def _change(call: Call, action: str, new: Callable[[Tags], Tags]) -> Tags:
    def changes(instance: Instance) -> dict[str, Any]:
        server_records.check_state(instance, action, server_records.QUIET_STATES)
        tags = new(instance.tags)
        return {} if tags == instance.tags else {"tags": tags}

    return (await server_records.change(call, call.server, changes, told=True)).tags


_PATH = "/servers/{server_id}/tags"
_BODY = Object({"tags": required(ListOf(TAG, 0, MOST))})


def _route(method: str, path: str, handler: Any, rule: str, audience: Audience, **more: Any) -> Route:
    return Route(method=method, path=path, handler=handler, rule=Rule(f"os-server-tags:{rule}", audience), since=26,
                 look_up=find_server_of_anyone, query=Query(strict_since=None), **more)


ROUTES = [
    _route("GET", _PATH, index, "index", Audience.READER, answer=answers.TAGS),
    _route("PUT", _PATH, replace, "update_all", Audience.MEMBER, body=_BODY, answer=answers.TAGS),
    _route("DELETE", _PATH, remove_all, "delete_all", Audience.MEMBER, status=204),
    _route("GET", f"{_PATH}/{{id}}", show, "show", Audience.READER, status=204),
    _route("PUT", f"{_PATH}/{{id}}", add, "update", Audience.MEMBER, status=201, other_status=204),
    _route("DELETE", f"{_PATH}/{{id}}", remove, "delete", Audience.MEMBER, status=204),
]
