"""Snapshots: list, take, show, change, delete, and what is done with them. Spec: section 5.1, EMV-07, EMV-41."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from kilonova.domain.errors import InvalidInput, VolumeNotFound, VolumeSnapshotNotFound
from kilonova.embedded.http import json_response
from kilonova.embedded.volume import schema, snapshots
from kilonova.embedded.volume.api import listing
from kilonova.embedded.volume.api.actions import Action, answers
from kilonova.embedded.volume.api.call import Access, Call, Flag, Method, accepted, flag, text, texts
from kilonova.embedded.volume.api.records import Reset, lists, one_of, renames, resets, shows
from kilonova.embedded.volume.api.volume_views import time
from kilonova.embedded.volume.errors import InvalidSnapshot
from kilonova.embedded.volume.records import Snapshot
from kilonova.embedded.volume.states import SnapshotStatus

ALWAYS_FORCED = 66
"""The version from which snapshots of volumes in use need no force, and it cannot be refused."""

column = schema.snapshots.c
S = SnapshotStatus
NAME = sa.func.coalesce(column.name, "")

KIND = listing.Kind(
    table=schema.snapshots, record=Snapshot, name="snapshot",
    unknown_marker=VolumeSnapshotNotFound,
    sorts={
        "id": column.id, "name": NAME, "display_name": NAME, "created_at": column.created_at,
        "status": sa.type_coerce(column.status, sa.Text), "volume_id": column.volume_id, "size": column.size,
    },
    filters={
        "id": listing.equal(column.id), "name": listing.equal(column.name), "status": listing.equal(column.status),
        "volume_id": listing.equal(column.volume_id), "user_id": listing.equal(column.user_id),
        "size": listing.number(column.size), "metadata": listing.pairs(column.metadata),
        "created_at": listing.times(column.created_at), "updated_at": listing.times(column.updated_at),
    },
    liked={"name": column.name, "status": column.status},
)


class SnapshotBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    volume_id: str | None
    name: str | None = None
    display_name: str | None = None
    description: str | None = None
    display_description: str | None = None
    metadata: dict[str, str] | None = None
    force: Flag | None = None


class Progress(msgspec.Struct, forbid_unknown_fields=True):
    status: str
    progress: str | None = None


def methods() -> list[Method]:
    return [
        Method("GET", "/snapshots", lists(KIND, _brief)),
        Method("GET", "/snapshots/detail", lists(KIND, _full)),
        Method("POST", "/snapshots", _create, Access.MEMBER),
        Method("GET", "/snapshots/{id}", shows(KIND, snapshots.visible, _full)),
        Method("PUT", "/snapshots/{id}", renames(KIND, snapshots.visible, snapshots.change, _brief), Access.MEMBER),
        Method("DELETE", "/snapshots/{id}", _delete, Access.MEMBER),
        Method("POST", "/snapshots/{id}/action", answers(ACTIONS)),
    ]


def _brief(call: Call, snapshot: Snapshot) -> dict[str, Any]:
    view: dict[str, Any] = {
        "id": snapshot.id, "name": snapshot.name, "description": snapshot.description,
        "volume_id": snapshot.volume_id, "status": snapshot.status.value, "size": snapshot.size,
        "created_at": time(snapshot.created_at), "updated_at": time(snapshot.updated_at),
        "metadata": snapshot.metadata,
    }
    if call.version >= 14:
        view["group_snapshot_id"] = None
    if call.version >= 41:
        view["user_id"] = snapshot.user_id
    if call.version >= 65:
        view["consumes_quota"] = True
    return view


def _full(call: Call, snapshot: Snapshot) -> dict[str, Any]:
    return _brief(call, snapshot) | {
        "os-extended-snapshot-attributes:progress": f"{snapshot.progress}%",
        "os-extended-snapshot-attributes:project_id": snapshot.project_id,
    }


async def _create(call: Call) -> Response:
    """Spec: EMV-07."""
    body = await call.body("snapshot", SnapshotBody)
    if body.volume_id is None:
        raise VolumeNotFound("null")
    force = flag("force", body.force) if body.force is not None else None
    if call.version >= ALWAYS_FORCED:
        if force is False:
            raise InvalidInput("force cannot be false from version 3.66 on.", hint="leave it out")
        force = True
    made = await call.volumes.create_snapshot(
        call.who, body.volume_id, name=text("name", body.name if body.name is not None else body.display_name),
        description=text(
            "description", body.description if body.description is not None else body.display_description
        ),
        metadata=texts("metadata", body.metadata or {}), force=bool(force),
    )
    return json_response({"snapshot": _brief(call, made)}, 202)


async def _delete(call: Call) -> Response:
    await call.volumes.delete_snapshot(call.who, call.path())
    return accepted()


async def _force_delete(call: Call, _body: object) -> Response:
    await call.volumes.delete_snapshot(call.who, call.path(), force=True)
    return accepted()


AFTER = {S.CREATING: (S.CREATING, S.AVAILABLE, S.ERROR), S.DELETING: (S.DELETING, S.ERROR_DELETING)}


async def _tell_progress(call: Call, body: Progress) -> Response:
    """Spec: EMV-41."""
    status, now = one_of(SnapshotStatus, "status", body.status), call.now()
    if body.progress is not None and not re.fullmatch(r"(100|[0-9]{1,2})%", body.progress):
        raise InvalidInput("progress must be an integer percentage")
    values = {} if body.progress is None else {"progress": int(body.progress[:-1])}

    def unit(conn: sa.Connection) -> None:
        before = snapshots.visible(conn, call.who, call.path(), lock=True)
        if status not in AFTER.get(before.status, ()):
            raise InvalidSnapshot(before.id, f"is {before.status.value} and cannot become {status.value}")
        snapshots.move(conn, before.id, [before.status], status, now, **values)

    await call.write(unit)
    return accepted()


ACTIONS = {
    "os-reset_status": Action(Reset, resets(SnapshotStatus, snapshots.visible, snapshots.change), Access.ADMIN),
    "os-update_snapshot_status": Action(Progress, _tell_progress),
    "os-force_delete": Action(None, _force_delete, Access.ADMIN),
}
