"""The types of volumes of projects that name none, since 3.62. Spec: section 5.1."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from kilonova.embedded.http import empty_response, json_response
from kilonova.embedded.volume import default_types, volume_types
from kilonova.embedded.volume.api.call import Access, Call, Method, text

SINCE = 62


class DefaultTypeBody(msgspec.Struct, forbid_unknown_fields=True):
    """volume_type: its name or id."""

    volume_type: str


def methods() -> list[Method]:
    one = "/default-types/{id}"
    return [
        Method("GET", "/default-types", _list, Access.ADMIN, SINCE),
        Method("GET", one, _show, Access.ADMIN, SINCE),
        Method("PUT", one, _assign, Access.ADMIN, SINCE),
        Method("DELETE", one, _remove, Access.ADMIN, SINCE),
    ]


def _view(project_id: str, type_id: str) -> dict[str, str]:
    return {"project_id": project_id, "volume_type_id": type_id}


async def _list(call: Call) -> Response:
    found = await call.read(default_types.every)
    return json_response({"default_types": [_view(*one) for one in found]})


async def _show(call: Call) -> Response:
    found = await call.read(lambda conn: default_types.of_project(conn, call.path()))
    return json_response({"default_type": _view(call.path(), found)})


async def _assign(call: Call) -> Response:
    body = await call.body("default_type", DefaultTypeBody)
    project = text("project_id", call.path(), 64, 1) or ""

    def unit(conn: sa.Connection) -> str:
        type_id = volume_types.named(conn, call.who, body.volume_type).id
        default_types.assign(conn, project, type_id)
        return type_id

    return json_response({"default_type": _view(project, await call.write(unit))})


async def _remove(call: Call) -> Response:
    await call.write(lambda conn: default_types.remove(conn, call.path()))
    return empty_response()
