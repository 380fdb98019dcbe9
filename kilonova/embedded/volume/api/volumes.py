"""Volumes: list, create, show, change, delete, summary.

Spec: EMV-02 to EMV-10, EMV-12, section 5.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from kilonova.domain.errors import InvalidInput
from kilonova.embedded.http import json_object, json_response
from kilonova.embedded.volume import schema, volume_types, volumes
from kilonova.embedded.volume.api import listing, volume_views
from kilonova.embedded.volume.api.call import (
    Access,
    Call,
    Flag,
    Method,
    Whole,
    accepted,
    check,
    check_access,
    flag,
    text,
    texts,
    whole,
)
from kilonova.embedded.volume.api.records import Names, new_values
from kilonova.embedded.volume.api.volume_views import Around
from kilonova.embedded.volume.new_volumes import ZONE, NewVolume
from kilonova.embedded.volume.records import Volume
from kilonova.embedded.volume.states import TARGET

column = schema.volumes.c

KIND = listing.Kind(
    table=schema.volumes, record=Volume, name="volume",
    sorts={
        "id": column.id, "name": sa.func.coalesce(column.name, ""), "size": column.size,
        "status": sa.type_coerce(column.status, sa.Text), "availability_zone": column.availability_zone,
        "bootable": column.bootable, "created_at": column.created_at,
        "updated_at": sa.func.coalesce(column.updated_at, 0.0), "host": sa.func.coalesce(column.host, ""),
        "user_id": column.user_id, "project_id": column.project_id,
        "migration_status": sa.func.coalesce(column.migration_status, ""),
    },
    filters={
        "name": listing.equal(column.name), "status": listing.equal(column.status),
        "availability_zone": listing.equal(column.availability_zone), "id": listing.equal(column.id),
        "migration_status": listing.equal(column.migration_status), "user_id": listing.equal(column.user_id),
        "host": listing.equal(column.host), "bootable": listing.truth(column.bootable),
        "multiattach": listing.truth(column.multiattach), "size": listing.number(column.size),
        "snapshot_id": listing.equal(column.snapshot_id), "source_volid": listing.equal(column.source_volid),
        "volume_type_id": listing.equal(column.type_id), "metadata": listing.pairs(column.metadata),
        "glance_metadata": listing.pairs(column.image_metadata), "created_at": listing.times(column.created_at),
        "updated_at": listing.times(column.updated_at),
    },
    liked={"name": column.name, "status": column.status},
)


class VolumeBody(msgspec.Struct, kw_only=True):
    """A new volume. What clients of old send beside these is ignored, as it has always been."""

    size: Whole | None = None
    name: str | None = None
    display_name: str | None = None
    description: str | None = None
    display_description: str | None = None
    volume_type: str | None = None
    availability_zone: str | None = None
    metadata: dict[str, str] | None = None
    snapshot_id: str | None = None
    source_volid: str | None = None
    image_ref: str | None = msgspec.field(name="imageRef", default=None)
    image_id: str | None = None
    backup_id: str | None = None
    multiattach: Flag | None = None
    consistencygroup_id: str | None = None
    group_id: str | None = None


class ChangeBody(Names):
    metadata: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


class Hints(msgspec.Struct, kw_only=True):
    """Volumes near which, or far from which, a new one is to be."""

    same_host: str | list[str] = []
    different_host: str | list[str] = []


def methods() -> list[Method]:
    return [
        Method("GET", "/volumes", _list),
        Method("GET", "/volumes/detail", _list_detail),
        Method("GET", "/volumes/summary", _summary, since=12),
        Method("POST", "/volumes", _create, Access.MEMBER),
        Method("GET", "/volumes/{id}", _show),
        Method("PUT", "/volumes/{id}", _change, Access.MEMBER),
        Method("DELETE", "/volumes/{id}", _delete, Access.MEMBER),
        Method("GET", "/volumes/{id}/encryption", _encryption),
        Method("GET", "/volumes/{id}/encryption/{key}", _encryption_item),
    ]


def _visible(call: Call) -> list[listing.Condition]:
    """Targets of migrations are for administrators alone."""
    hidden = sa.func.coalesce(column.migration_status, "").not_like(f"{TARGET}%")
    return [*listing.own(call, column.project_id), *([] if call.who.is_admin else [hidden])]


async def _list(call: Call) -> Response:
    page = await call.read(lambda conn: listing.find(conn, call, KIND, *_visible(call)))
    return json_response(listing.answer(call, KIND, page, [volume_views.brief(call, one) for one in page.records]))


async def _list_detail(call: Call) -> Response:
    def unit(conn: sa.Connection) -> dict[str, Any]:
        page = listing.find(conn, call, KIND, *_visible(call))
        around = Around(conn, page.records)
        return listing.answer(call, KIND, page, [volume_views.shown(call, one, around) for one in page.records])

    return json_response(await call.read(unit))


async def _summary(call: Call) -> Response:
    """How many, how large, and (3.36) all metadata."""
    def unit(conn: sa.Connection) -> dict[str, Any]:
        where = _visible(call)
        total = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(column.size), 0)).where(*where)
        number, size = conn.execute(total).one()
        summary: dict[str, Any] = {"total_count": number, "total_size": int(size)}
        if call.version >= 36:
            summary["metadata"] = _gathered(conn.execute(sa.select(column.metadata).where(*where).distinct()).scalars())
        return summary

    return json_response({"volume-summary": await call.read(unit)})


def _gathered(every: Iterable[dict[str, str]]) -> dict[str, list[str]]:
    """The values of each key."""
    found: dict[str, list[str]] = {}
    for metadata in every:
        for key, value in metadata.items():
            if value not in found.setdefault(key, []):
                found[key].append(value)
    return found


async def _show(call: Call) -> Response:
    def unit(conn: sa.Connection) -> dict[str, Any]:
        volume = volumes.visible(conn, call.who, call.path())
        return volume_views.shown(call, volume, Around(conn, [volume]))

    return json_response({"volume": await call.read(unit)})


async def _create(call: Call) -> Response:
    document = await json_object(call.request)
    body = check(VolumeBody, document.get("volume"), "volume")
    for name in ("multiattach", "consistencygroup_id", "group_id"):
        value = getattr(body, name)
        if value is not None and not (name == "multiattach" and not flag(name, value)):
            raise InvalidInput(_NOT_GIVEN[name])
    if body.backup_id is not None and call.version < 47:
        raise InvalidInput("A volume is made from a backup from version 3.47 on.")
    if body.availability_zone not in (None, "", ZONE):
        raise InvalidInput(f"Availability zone '{body.availability_zone}' is invalid.")
    new = NewVolume(
        size=whole("size", body.size, 1) if body.size is not None else None,
        name=text("name", body.name if body.name is not None else body.display_name),
        description=text(
            "description", body.description if body.description is not None else body.display_description
        ),
        volume_type=body.volume_type or None, metadata=texts("metadata", body.metadata or {}),
        snapshot_id=body.snapshot_id or None, source_volid=body.source_volid or None,
        image_id=body.image_ref or body.image_id or None, backup_id=body.backup_id or None,
        hosts=await _hosts(call, document.get("OS-SCH-HNT:scheduler_hints")),
    )
    made = await call.volumes.create(call.who, new)
    around = await call.read(lambda conn: Around(conn, [made]))
    return json_response({"volume": volume_views.changed(call, made, around)}, 202)


_NOT_GIVEN = {
    "multiattach": "multiattach is given by the volume type, not by the request.",
    "consistencygroup_id": "Consistency groups are not offered.",
    "group_id": "Groups of volumes are not offered.",
}


async def _hosts(call: Call, value: object) -> tuple[str, ...]:
    """The pools that the hints allow, () for any. Raises InvalidInput: none is left."""
    if value is None:
        return ()
    hints = check(Hints, value, "scheduler_hints")
    near, far = ([one] if isinstance(one, str) else one for one in (hints.same_host, hints.different_host))
    if not near and not far:
        return ()

    def unit(conn: sa.Connection) -> tuple[set[str], set[str]]:
        same, other = ({volumes.visible(conn, call.who, id_).host or "" for id_ in ids} for ids in (near, far))
        return same, other

    same, other = await call.read(unit)
    allowed = {host for host in call.volumes.environment.pools if host not in other and (not near or {host} == same)}
    if not allowed:
        raise InvalidInput("No storage pool satisfies the scheduler hints.")
    return tuple(sorted(allowed))


async def _change(call: Call) -> Response:
    body, volume_id, now = await call.body("volume", ChangeBody), call.path(), call.now()
    values = new_values(body)

    def unit(conn: sa.Connection) -> dict[str, Any]:
        volumes.visible(conn, call.who, volume_id)
        volumes.change(conn, volume_id, now, **values)
        volume = volumes.get(conn, volume_id)
        return volume_views.changed(call, volume, Around(conn, [volume]))

    return json_response({"volume": await call.write(unit)})


async def _delete(call: Call) -> Response:
    force = call.version >= 23 and call.asks("force")
    if force:
        check_access(call.who, Access.ADMIN)
    await call.volumes.delete(call.who, call.path(), cascade=call.asks("cascade"), force=force)
    return accepted()


async def _encryption(call: Call) -> Response:
    return json_response(await _encryption_of(call))


async def _encryption_item(call: Call) -> Response:
    return json_response((await _encryption_of(call)).get(call.path("key")))


async def _encryption_of(call: Call) -> dict[str, Any]:
    """How a volume is encrypted; of one that is not only that. Spec: EMV-45."""
    def unit(conn: sa.Connection) -> dict[str, Any]:
        volume = volumes.visible(conn, call.who, call.path())
        found = volume_types.encryption(conn, volume.type_id) if volume.encrypted and volume.type_id else None
        if found is None:
            return {"encryption_key_id": volume.encryption_key_id}
        return {
            "encryption_key_id": volume.encryption_key_id, "control_location": found.control_location,
            "cipher": found.cipher, "provider": found.provider, "key_size": found.key_size,
        }

    return await call.read(unit)
