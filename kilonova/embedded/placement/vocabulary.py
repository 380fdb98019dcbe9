"""/traits and /resource_classes: the names that may be used."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from kilonova.db.placement import names
from kilonova.domain.errors import NotFound
from kilonova.embedded.http import empty_response, json_response
from kilonova.embedded.placement.call import BadQuery, Call
from kilonova.embedded.placement.query import single_values


class NameBody(msgspec.Struct, forbid_unknown_fields=True):
    name: str


async def traits(call: Call) -> Response:
    """GET /traits. Spec: API-731."""
    values = single_values(call, {"name": 6, "associated": 6})

    def read(connection: sa.Connection) -> set[str]:
        found = names.traits(connection)
        if "associated" in values:
            used = names.used_traits(connection)
            found = found & used if _boolean(values["associated"]) else found - used
        return found

    found = await call.db.read(read)
    kind, _, text = values.get("name", "startswith:").partition(":")
    if kind == "in":
        found &= set(text.split(","))
    elif kind == "startswith":
        found = {name for name in found if name.startswith(text)}
    else:
        raise BadQuery("Badly formatted name parameter: expected in:<names> or startswith:<prefix>.")
    return json_response({"traits": sorted(found)})


async def show_trait(call: Call) -> Response:
    """GET /traits/{name}. Spec: API-732."""
    if call.path("name") not in await call.db.read(names.traits):
        raise NotFound(f"No such trait: {call.path('name')}.")
    return empty_response()


async def put_trait(call: Call) -> Response:
    """PUT /traits/{name}. Spec: API-733."""
    name = call.path("name")
    made = await call.db.write(lambda connection: names.add_trait(connection, name))
    return empty_response(201 if made else 204, {"Location": call.url(f"/traits/{name}")})


async def delete_trait(call: Call) -> Response:
    """DELETE /traits/{name}. Spec: API-734."""
    await call.db.write(lambda connection: names.remove_trait(connection, call.path("name")))
    return empty_response()


async def classes(call: Call) -> Response:
    """GET /resource_classes. Spec: API-709."""
    found = await call.db.read(names.classes)
    return json_response({"resource_classes": [_class(call, name) for name in sorted(found)]})


async def create_class(call: Call) -> Response:
    """POST /resource_classes. Spec: API-710."""
    body = await call.body(NameBody)

    def write(connection: sa.Connection) -> None:
        if not names.add_class(connection, body.name):
            raise names.already_there(body.name)

    await call.db.write(write)
    return empty_response(201, {"Location": call.url(f"/resource_classes/{body.name}")})


async def show_class(call: Call) -> Response:
    """GET /resource_classes/{name}. Spec: API-711."""
    if call.path("name") not in await call.db.read(names.classes):
        raise NotFound(f"No such resource class: {call.path('name')}.")
    return json_response(_class(call, call.path("name")))


async def put_class(call: Call) -> Response:
    """PUT /resource_classes/{name}: makes it, or up to 1.6 renames it. Spec: API-712."""
    name = call.path("name")
    if call.version >= 7:
        made = await call.db.write(lambda connection: names.add_class(connection, name))
        return empty_response(201 if made else 204, {"Location": call.url(f"/resource_classes/{name}")})
    body = await call.body(NameBody)
    await call.db.write(lambda connection: names.rename_class(connection, name, body.name))
    return json_response(_class(call, body.name))


async def delete_class(call: Call) -> Response:
    """DELETE /resource_classes/{name}. Spec: API-713."""
    await call.db.write(lambda connection: names.remove_class(connection, call.path("name")))
    return empty_response()


def _class(call: Call, name: str) -> dict[str, Any]:
    return {"name": name, "links": [{"rel": "self", "href": call.href(f"/resource_classes/{name}")}]}


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise BadQuery(f"The query parameter associated only accepts true or false, not {text!r}.")
    return text.lower() == "true"
