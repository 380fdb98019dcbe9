"""Backups: list, make, show, change, delete, restore. Spec: section 5.1, EMV-10."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from kilonova.domain.errors import InvalidInput, NotSupported
from kilonova.embedded.http import json_response
from kilonova.embedded.volume import backups, schema
from kilonova.embedded.volume.api import listing
from kilonova.embedded.volume.api.actions import Action, answers
from kilonova.embedded.volume.api.call import Access, Call, Flag, Method, accepted, flag, text
from kilonova.embedded.volume.api.records import Reset, lists, renames, resets, shows
from kilonova.embedded.volume.api.volume_views import time
from kilonova.embedded.volume.new_volumes import ZONE
from kilonova.embedded.volume.records import Backup
from kilonova.embedded.volume.states import BackupStatus

CHANGED_SINCE = 9

column = schema.backups.c

KIND = listing.Kind(
    table=schema.backups, record=Backup, name="backup",
    sorts={
        "id": column.id, "name": sa.func.coalesce(column.name, ""), "created_at": column.created_at,
        "status": sa.type_coerce(column.status, sa.Text), "volume_id": column.volume_id, "size": column.size,
    },
    filters={
        "id": listing.equal(column.id), "name": listing.equal(column.name), "status": listing.equal(column.status),
        "volume_id": listing.equal(column.volume_id), "container": listing.equal(column.container),
        "snapshot_id": listing.equal(column.snapshot_id), "size": listing.number(column.size),
    },
    liked={"name": column.name, "status": column.status},
)


class BackupBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    volume_id: str
    name: str | None = None
    description: str | None = None
    container: str | None = None
    incremental: Flag = False
    force: Flag = False
    snapshot_id: str | None = None
    metadata: dict[str, str] | None = None
    availability_zone: str | None = None


class RestoreBody(msgspec.Struct, forbid_unknown_fields=True):
    volume_id: str | None = None
    name: str | None = None


def methods() -> list[Method]:
    return [
        Method("GET", "/backups", lists(KIND, _brief)),
        Method("GET", "/backups/detail", lists(KIND, _full)),
        Method("POST", "/backups", _create, Access.MEMBER),
        Method("POST", "/backups/import_record", _refuse_records, Access.ADMIN),
        Method("GET", "/backups/{id}", shows(KIND, backups.visible, _full)),
        Method("PUT", "/backups/{id}", renames(KIND, backups.visible, backups.change, _told), Access.MEMBER,
               since=CHANGED_SINCE),
        Method("DELETE", "/backups/{id}", _delete, Access.MEMBER),
        Method("POST", "/backups/{id}/restore", _restore, Access.MEMBER),
        Method("GET", "/backups/{id}/export_record", _refuse_records, Access.ADMIN),
        Method("POST", "/backups/{id}/action", answers(ACTIONS), Access.ADMIN),
    ]


def _brief(call: Call, backup: Backup) -> dict[str, Any]:
    return {"id": backup.id, "name": backup.name, "links": call.links(f"/backups/{backup.id}")}


def _full(call: Call, backup: Backup) -> dict[str, Any]:
    view = _brief(call, backup) | {
        "status": backup.status.value, "size": backup.size, "volume_id": backup.volume_id,
        "snapshot_id": backup.snapshot_id, "description": backup.description, "container": backup.container,
        "object_count": 1 if backup.status is BackupStatus.AVAILABLE else 0, "availability_zone": ZONE,
        "created_at": time(backup.created_at), "updated_at": time(backup.updated_at),
        "fail_reason": backup.fail_reason, "is_incremental": False, "has_dependent_backups": False,
        "data_timestamp": time(backup.data_at),
    }
    if call.version >= 18 and call.who.is_admin:
        view["os-backup-project-attr:project_id"] = backup.project_id
    if call.version >= 43:
        view["metadata"] = {}
    if call.version >= 56:
        view["user_id"] = backup.user_id
    return view


async def _create(call: Call) -> Response:
    body = await call.body("backup", BackupBody)
    if flag("incremental", body.incremental):
        raise InvalidInput("Incremental backups are not offered: each backup is complete.")
    if body.metadata:
        raise InvalidInput("Metadata of backups are not kept.")
    if body.availability_zone not in (None, ZONE):
        raise InvalidInput(f"Availability zone '{body.availability_zone}' is invalid.")
    made = await call.volumes.create_backup(
        call.who, body.volume_id, name=text("name", body.name), description=text("description", body.description),
        container=text("container", body.container, least=1), snapshot_id=body.snapshot_id,
        force=flag("force", body.force),
    )
    return json_response({"backup": _told(call, made)}, 202)


def _told(call: Call, backup: Backup) -> dict[str, Any]:
    return _brief(call, backup) | ({"metadata": {}} if call.version >= 43 else {})


async def _delete(call: Call) -> Response:
    await call.volumes.delete_backup(call.who, call.path())
    return accepted()


async def _restore(call: Call) -> Response:
    body = await call.body("restore", RestoreBody)
    volume = await call.volumes.restore_backup(
        call.who, call.path(), volume_id=body.volume_id, name=text("name", body.name)
    )
    return json_response({"restore": {
        "backup_id": call.path(), "volume_id": volume.id, "volume_name": volume.name or "",
    }}, 202)


async def _refuse_records(call: Call) -> Response:
    raise NotSupported("Records of backups are neither exported nor imported.",
                       hint="a backup is a qcow2 file in the directory of the service")


async def _force_delete(call: Call, _body: object) -> Response:
    await call.volumes.delete_backup(call.who, call.path(), force=True)
    return accepted()


ACTIONS = {
    "os-reset_status": Action(Reset, resets(BackupStatus, backups.visible, backups.change), Access.ADMIN),
    "os-force_delete": Action(None, _force_delete, Access.ADMIN),
}
