"""Volume types: list, make, show, change, delete, extra specs. Spec: section 5.1, EMV-09."""

from __future__ import annotations

import re
import uuid
from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.embedded.http import json_object, json_response
from kilonova.embedded.volume import default_types, schema, volume_types
from kilonova.embedded.volume.api import listing
from kilonova.embedded.volume.api.call import Access, Call, Flag, Method, accepted, check, flag, text
from kilonova.embedded.volume.records import MULTIATTACH_SPEC, VolumeType

VISIBLE_SPECS = frozenset({MULTIATTACH_SPEC, "RESKEY:availability_zones", "replication_enabled"})
"""Extra specs that tell users what a volume can do; the others tell how the installation is built."""
_SPEC_KEY = re.compile(r"[A-Za-z0-9_:. -]{1,255}")
Specs = dict[str, str]

column = schema.types.c

KIND = listing.Kind(
    table=schema.types, record=VolumeType, name="volume_type",
    sorts={"id": column.id, "name": column.name, "created_at": column.created_at},
    filters={"name": listing.equal(column.name), "extra_specs": listing.pairs(column.extra_specs)},
)


class TypeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    is_public: Flag | None = msgspec.field(name="os-volume-type-access:is_public", default=None)
    public: Flag | None = msgspec.field(name="is_public", default=None)
    extra_specs: Specs | None = None


class ChangeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str | None = None
    description: str | msgspec.UnsetType | None = msgspec.UNSET
    is_public: Flag | None = None


def methods() -> list[Method]:
    one, specs = "/types/{id}", "/types/{id}/extra_specs"
    return [
        Method("GET", "/types", _list),
        Method("POST", "/types", _create, Access.ADMIN),
        Method("GET", "/types/default", _show_default),
        Method("GET", one, _show),
        Method("PUT", one, _change, Access.ADMIN),
        Method("DELETE", one, _delete, Access.ADMIN),
        Method("GET", specs, _list_specs),
        Method("POST", specs, _add_specs, Access.ADMIN),
        Method("GET", f"{specs}/{{key}}", _show_spec),
        Method("PUT", f"{specs}/{{key}}", _set_spec, Access.ADMIN),
        Method("DELETE", f"{specs}/{{key}}", _delete_spec, Access.ADMIN),
    ]


def _plain(call: Call, type_: VolumeType) -> dict[str, Any]:
    return {"id": type_.id, "name": type_.name, "is_public": type_.is_public, "description": type_.description,
            "extra_specs": _specs_for(call, type_)}


def _full(call: Call, type_: VolumeType) -> dict[str, Any]:
    view = _plain(call, type_) | {"os-volume-type-access:is_public": type_.is_public}
    return view | {"qos_specs_id": None} if call.who.is_admin else view


def _specs_for(call: Call, type_: VolumeType) -> Specs:
    return {key: value for key, value in type_.extra_specs.items() if call.who.is_admin or key in VISIBLE_SPECS}


async def _list(call: Call) -> Response:
    """Administrators see all, or those that `is_public` tells (None: both)."""
    public = call.request.query_params.get("is_public")
    conditions: list[listing.Condition] = []
    if call.who.is_admin and public is not None and public.lower() != "none":
        conditions.append(column.is_public == flag("is_public", public))
    elif not call.who.is_admin:
        a = schema.type_access.c
        own = sa.select(a.type_id).where(a.project_id == call.who.project_id)
        conditions.append(sa.or_(column.is_public, column.id.in_(own)))
    page = await call.read(lambda conn: listing.find(conn, call, KIND, *conditions))
    return json_response(listing.answer(call, KIND, page, [_full(call, one) for one in page.records]))


async def _show(call: Call) -> Response:
    return json_response({"volume_type": _full(call, await _visible(call))})


async def _show_default(call: Call) -> Response:
    """Of the caller's project, or of the installation."""
    def unit(conn: sa.Connection) -> VolumeType:
        return default_types.effective(conn, call.who.project_id, call.volumes.default_type)

    return json_response({"volume_type": _full(call, await call.read(unit))})


async def _visible(call: Call) -> VolumeType:
    return await call.read(lambda conn: volume_types.visible(conn, call.who, call.path()))


async def _create(call: Call) -> Response:
    body = await call.body("volume_type", TypeBody)
    public = body.public if body.is_public is None else body.is_public
    made = VolumeType(
        id=str(uuid.uuid4()), name=text("name", body.name, least=1) or "",
        description=text("description", body.description, most=10_000),
        is_public=True if public is None else flag("is_public", public),
        extra_specs=_checked(body.extra_specs or {}), created_at=call.now(),
    )
    await call.write(lambda conn: volume_types.insert(conn, made))
    view = _plain(call, made) | {"os-volume-type-access:is_public": made.is_public}
    return json_response({"volume_type": view})


async def _change(call: Call) -> Response:
    body, now = await call.body("volume_type", ChangeBody), call.now()
    values: dict[str, Any] = {}
    if body.name is not None:
        values["name"] = text("name", body.name, least=1)
    if body.description is not msgspec.UNSET:
        values["description"] = text("description", body.description, most=10_000)
    if body.is_public is not None:
        values["is_public"] = flag("is_public", body.is_public)
    if not values:
        raise InvalidInput("Specify volume type name, description, is_public or a combination thereof.")

    def unit(conn: sa.Connection) -> VolumeType:
        volume_types.get(conn, call.path())
        return volume_types.change(conn, call.path(), now, **values)

    return json_response({"volume_type": _plain(call, await call.write(unit))})


async def _delete(call: Call) -> Response:
    await call.write(lambda conn: volume_types.delete(conn, call.path(), call.volumes.default_type))
    return accepted()


async def _list_specs(call: Call) -> Response:
    return json_response({"extra_specs": _specs_for(call, await _visible(call))})


async def _show_spec(call: Call) -> Response:
    found, key = _specs_for(call, await _visible(call)), call.path("key")
    if key not in found:
        raise _absent(call)
    return json_response({key: found[key]})


async def _add_specs(call: Call) -> Response:
    sent = _checked(await call.body("extra_specs", Specs))
    await _change_specs(call, sent)
    return json_response({"extra_specs": sent})


async def _set_spec(call: Call) -> Response:
    sent = _checked(check(Specs, await json_object(call.request), "extra_specs"))
    if set(sent) != {call.path("key")}:
        raise InvalidInput("The body must have exactly the key that the URL names.")
    await _change_specs(call, sent)
    return json_response(sent)


async def _delete_spec(call: Call) -> Response:
    await _change_specs(call, {}, without=call.path("key"))
    return accepted()


async def _change_specs(call: Call, more: Specs, without: str | None = None) -> None:
    """Raises NotFound: what is to go is not there."""
    now = call.now()

    def unit(conn: sa.Connection) -> None:
        before = volume_types.get(conn, call.path()).extra_specs
        if without is not None and without not in before:
            raise _absent(call)
        after = {key: value for key, value in before.items() if key != without} | more
        volume_types.change(conn, call.path(), now, extra_specs=after)

    await call.write(unit)


def _absent(call: Call) -> NotFound:
    return NotFound(f"Volume Type {call.path()} has no extra specs with key {call.path('key')}.")


def _checked(specs: Specs) -> Specs:
    """Raises InvalidInput."""
    for key, value in specs.items():
        if not _SPEC_KEY.fullmatch(key) or len(value) > 255 or "\0" in value:
            raise InvalidInput(f"Invalid extra spec {key[:64]!r}: letters, digits, blanks and _-:. in 255 characters.")
    return specs
