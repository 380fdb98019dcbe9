"""What is done with the data and the records of a volume. Spec: section 5.5, EMV-07, EMV-26 to EMV-39."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.embedded.http import empty_response, json_response
from kilonova.embedded.volume import snapshots, volume_types, volumes
from kilonova.embedded.volume.api import attachment_actions
from kilonova.embedded.volume.api.actions import Action, answers
from kilonova.embedded.volume.api.call import Access, Call, Flag, Method, Whole, accepted, flag, text, texts, whole
from kilonova.embedded.volume.api.records import one_of
from kilonova.embedded.volume.api.volume_views import time
from kilonova.embedded.volume.records import Volume, VolumeType
from kilonova.embedded.volume.states import (
    COMPLETING,
    FAILED,
    MIGRATING,
    STARTING,
    SUCCESS,
    AttachStatus,
    VolumeStatus,
)
from kilonova.services.image import NewImage

ONLINE_EXTEND = 42
MIGRATION_STATUSES = ("none", STARTING, MIGRATING, COMPLETING, SUCCESS, FAILED, "deleting")


class Extend(msgspec.Struct, forbid_unknown_fields=True):
    new_size: Whole


class ExtendCompletion(msgspec.Struct, forbid_unknown_fields=True):
    error: Flag = False


class ResetStatus(msgspec.Struct, forbid_unknown_fields=True):
    status: str | None = None
    attach_status: str | None = None
    migration_status: str | None = None


class Bootable(msgspec.Struct, forbid_unknown_fields=True):
    bootable: Flag


class Readonly(msgspec.Struct, forbid_unknown_fields=True):
    readonly: Flag


class Retype(msgspec.Struct, forbid_unknown_fields=True):
    new_type: str
    migration_policy: str | None = None


class Migrate(msgspec.Struct, forbid_unknown_fields=True):
    host: str | None = None
    cluster: str | None = None
    force_host_copy: Flag = False
    lock_volume: Flag = False


class MigrateCompletion(msgspec.Struct, forbid_unknown_fields=True):
    new_volume: str
    error: Flag = False


class Upload(msgspec.Struct, forbid_unknown_fields=True):
    image_name: str
    disk_format: str | None = None
    container_format: str | None = None
    force: Flag = False
    visibility: str | None = None
    protected: Flag | None = None


class Revert(msgspec.Struct, forbid_unknown_fields=True):
    snapshot_id: str


class Reimage(msgspec.Struct, forbid_unknown_fields=True):
    image_id: str
    reimage_reserved: Flag = False


class SetImageMetadata(msgspec.Struct, forbid_unknown_fields=True):
    metadata: dict[str, str]


class UnsetImageMetadata(msgspec.Struct, forbid_unknown_fields=True):
    key: str


def methods() -> list[Method]:
    return [Method("POST", "/volumes/{id}/action", answers(ACTIONS | attachment_actions.ACTIONS))]


async def _extend(call: Call, body: Extend) -> Response:
    size = whole("new_size", body.new_size, 1)
    await call.volumes.extend(call.who, call.path(), size, online=call.version >= ONLINE_EXTEND)
    return accepted()


async def _extend_completion(call: Call, body: ExtendCompletion) -> Response:
    await call.volumes.extend_completion(call.who, call.path(), error=flag("error", body.error))
    return accepted()


async def _reset_status(call: Call, body: ResetStatus) -> Response:
    if body.status is None and body.attach_status is None and body.migration_status is None:
        raise InvalidInput("One of status, attach_status and migration_status must be given.")
    if body.migration_status is not None and body.migration_status.lower() not in MIGRATION_STATUSES:
        raise InvalidInput(f"Invalid migration_status: it is one of {', '.join(MIGRATION_STATUSES)}.")
    moved = msgspec.UNSET if body.migration_status is None else body.migration_status.lower()
    await call.volumes.reset_status(
        call.who, call.path(),
        status=None if body.status is None else one_of(VolumeStatus, "status", body.status),
        attach_status=None if body.attach_status is None else one_of(AttachStatus, "attach_status", body.attach_status),
        migration_status=moved,
    )
    return accepted()


async def _force_delete(call: Call, _body: object) -> Response:
    await call.volumes.delete(call.who, call.path(), force=True)
    return accepted()


async def _set_bootable(call: Call, body: Bootable) -> Response:
    await _change(call, bootable=flag("bootable", body.bootable))
    return empty_response(200)


async def _change(call: Call, **values: Any) -> None:
    now = call.now()

    def unit(conn: sa.Connection) -> None:
        volumes.visible(conn, call.who, call.path())
        volumes.change(conn, call.path(), now, **values)

    await call.write(unit)


async def _set_readonly(call: Call, body: Readonly) -> Response:
    await call.volumes.set_readonly(call.who, call.path(), readonly=flag("readonly", body.readonly))
    return accepted()


async def _retype(call: Call, body: Retype) -> Response:
    await call.volumes.moves.retype(call.who, call.path(), body.new_type, body.migration_policy or "never")
    return accepted()


async def _migrate(call: Call, body: Migrate) -> Response:
    if body.cluster is not None and call.version >= 16:
        raise InvalidInput("There are no clusters of volume services.")
    if body.host is None:
        raise InvalidInput("The host to migrate to must be given.")
    flag("force_host_copy", body.force_host_copy)  # data are always copied by this service itself
    await call.volumes.moves.migrate(call.who, call.path(), body.host, lock=flag("lock_volume", body.lock_volume))
    return accepted()


async def _migrate_completion(call: Call, body: MigrateCompletion) -> Response:
    kept = await call.volumes.moves.complete(
        call.who, call.path(), body.new_volume, error=flag("error", body.error)
    )
    return json_response({"save_volume_id": kept})


async def _upload(call: Call, body: Upload) -> Response:
    """Spec: EMV-31."""
    if body.visibility not in (None, "private") or (body.protected is not None and flag("protected", body.protected)):
        raise InvalidInput("Images of volumes are made private and unprotected.", hint="change the image afterwards")
    if body.container_format not in (None, "bare"):
        raise InvalidInput("The container format of images of volumes is bare.")
    name, now = text("image_name", body.image_name, least=1) or "", call.now()

    def unit(conn: sa.Connection) -> tuple[Volume, VolumeType | None]:
        volume = volumes.visible(conn, call.who, call.path())
        return volume, volume_types.get(conn, volume.type_id) if volume.type_id is not None else None

    volume, type_ = await call.read(unit)
    image = NewImage(
        id=str(uuid.uuid4()), name=name, owner=call.who.project_id or "", disk_format=body.disk_format or "raw",
        min_disk=int(volume.image_metadata.get("min_disk") or 0),
        min_ram=int(volume.image_metadata.get("min_ram") or 0),
    )
    await call.volumes.upload(call.who, volume.id, image, force=flag("force", body.force))
    told: dict[str, Any] = {
        "id": volume.id, "updated_at": time(now), "status": VolumeStatus.UPLOADING.value,
        "display_description": volume.description, "size": volume.size,
        "volume_type": None if type_ is None else {"id": type_.id, "name": type_.name},
        "image_id": image.id, "container_format": image.container_format, "disk_format": image.disk_format,
        "image_name": image.name,
    }
    if call.version >= 1:
        told |= {"visibility": "private", "protected": False}
    return json_response({"os-volume_upload_image": told}, 202)


async def _revert(call: Call, body: Revert) -> Response:
    await call.read(lambda conn: snapshots.visible(conn, call.who, body.snapshot_id))
    await call.volumes.revert(call.who, call.path(), body.snapshot_id)
    return accepted()


async def _reimage(call: Call, body: Reimage) -> Response:
    await call.volumes.reimage(
        call.who, call.path(), body.image_id, reserved=flag("reimage_reserved", body.reimage_reserved)
    )
    return accepted()


async def _set_image_metadata(call: Call, body: SetImageMetadata) -> Response:
    sent, now = texts("metadata", body.metadata), call.now()

    def unit(conn: sa.Connection) -> dict[str, str]:
        after = volumes.visible(conn, call.who, call.path(), lock=True).image_metadata | sent
        volumes.change(conn, call.path(), now, image_metadata=after)
        return after

    return json_response({"metadata": await call.write(unit)})


async def _unset_image_metadata(call: Call, body: UnsetImageMetadata) -> Response:
    now = call.now()

    def unit(conn: sa.Connection) -> None:
        before = volumes.visible(conn, call.who, call.path(), lock=True).image_metadata
        if body.key not in before:
            raise NotFound(f"There is no image metadata with key {body.key}.")
        after = {name: value for name, value in before.items() if name != body.key}
        volumes.change(conn, call.path(), now, image_metadata=after)

    await call.write(unit)
    return empty_response(200)


async def _show_image_metadata(call: Call, _body: object) -> Response:
    volume = await call.read(lambda conn: volumes.visible(conn, call.who, call.path()))
    return json_response({"metadata": volume.image_metadata})


ACTIONS = {
    "os-extend": Action(Extend, _extend),
    "os-extend_volume_completion": Action(ExtendCompletion, _extend_completion, Access.SERVICE, since=71),
    "os-reset_status": Action(ResetStatus, _reset_status, Access.ADMIN),
    "os-force_delete": Action(None, _force_delete, Access.ADMIN),
    "os-set_bootable": Action(Bootable, _set_bootable),
    "os-update_readonly_flag": Action(Readonly, _set_readonly),
    "os-retype": Action(Retype, _retype),
    "os-migrate_volume": Action(Migrate, _migrate, Access.ADMIN),
    "os-migrate_volume_completion": Action(MigrateCompletion, _migrate_completion, Access.SERVICE),
    "os-volume_upload_image": Action(Upload, _upload),
    "revert": Action(Revert, _revert, since=40),
    "os-reimage": Action(Reimage, _reimage, since=68),
    "os-set_image_metadata": Action(SetImageMetadata, _set_image_metadata),
    "os-unset_image_metadata": Action(UnsetImageMetadata, _unset_image_metadata),
    "os-show_image_metadata": Action(None, _show_image_metadata, Access.READER),
}
