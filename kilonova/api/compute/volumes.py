"""Volumes and their snapshots, up to 2.35: passed on to the volume service.

In a cloud without one nothing is listed or found, and nothing can be made. Spec: API-292 to API-301.
"""

from __future__ import annotations

import uuid
from typing import Any

from kilonova.api.call import Answer, Call
from kilonova.api.compute.answers import volumes as answers
from kilonova.api.compute.field_types import METADATA
from kilonova.api.compute.server_view import microseconds
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Boolean, Integer, Object, Text, nullable, optional, required
from kilonova.domain.errors import InvalidVolume, VolumeNotFound, VolumeSnapshotNotFound
from kilonova.services.no_volumes import NoVolumeService
from kilonova.services.volumes import NewSnapshot, NewVolume, Snapshot, Volume

_UNTIL = 35
_TEXT = nullable(Text(0, 255))
_PAGES = Query({"limit": Param(Integer(0)), "offset": Param(Integer(0))})
VOLUME = Object({"volume": required(Object({
    "size": required(Integer(1)),
    "snapshot_id": optional(_TEXT),
    "volume_type": optional(_TEXT),
    "metadata": optional(nullable(METADATA)),
    "availability_zone": optional(_TEXT),
    "display_name": optional(_TEXT),
    "display_description": optional(_TEXT),
}))})
SNAPSHOT = Object({"snapshot": required(Object({
    "volume_id": required(Text(1, 255)),
    "force": optional(Boolean()),
    "display_name": optional(_TEXT),
    "display_description": optional(_TEXT),
}))})


async def list_volumes(call: Call) -> Any:
    """Those of the project, newest first. Spec: API-292, API-293."""
    try:
        found = await call.cloud.volumes.volumes(call.context, limit=_limit(call), offset=_offset(call))
    except NoVolumeService:
        found = []
    return {"volumes": [_volume(one) for one in found]}


async def create_volume(call: Call) -> Any:
    """Spec: API-294."""
    asked = call.body["volume"]
    made = await call.cloud.volumes.create_volume(call.context, NewVolume(
        key=str(uuid.uuid4()), size=int(asked["size"]), name=asked.get("display_name") or "",
        description=asked.get("display_description") or "", snapshot_id=asked.get("snapshot_id"),
        volume_type=asked.get("volume_type"), availability_zone=asked.get("availability_zone"),
        metadata=asked.get("metadata") or {},
    ))
    return Answer({"volume": _volume(made)}, headers=(("Location", call.links.own(f"/os-volumes/{made.id}")),))


async def show_volume(call: Call) -> Any:
    """Spec: API-295."""
    return {"volume": _volume(await _find_volume(call))}


async def delete_volume(call: Call) -> None:
    """Spec: API-296."""
    await call.cloud.volumes.delete_volume((await _find_volume(call)).id)


async def list_snapshots(call: Call) -> Any:
    """Those of the project, newest first. Spec: API-297, API-298."""
    try:
        found = await call.cloud.volumes.snapshots(call.context, limit=_limit(call), offset=_offset(call))
    except NoVolumeService:
        found = []
    return {"snapshots": [_snapshot(one) for one in found]}


async def create_snapshot(call: Call) -> Any:
    """Of a volume in use only with `force`. Spec: API-299."""
    asked = call.body["snapshot"]
    volume = await call.cloud.volumes.volume(call.context, asked["volume_id"])
    if volume.status != "available" and not asked.get("force", False):
        raise InvalidVolume(f"Invalid volume: volume {volume.id} must be available, but is {volume.status}.")
    made = await call.cloud.volumes.create_snapshot(call.context, NewSnapshot(
        key=str(uuid.uuid4()), volume_id=volume.id, name=asked.get("display_name") or "",
        description=asked.get("display_description") or "",
    ))
    return {"snapshot": _snapshot(made)}


async def show_snapshot(call: Call) -> Any:
    """Spec: API-300."""
    return {"snapshot": _snapshot(await _find_snapshot(call))}


async def delete_snapshot(call: Call) -> None:
    """Spec: API-301."""
    await call.cloud.volumes.delete_snapshot((await _find_snapshot(call)).id)


async def _find_volume(call: Call) -> Volume:
    try:
        return await call.cloud.volumes.volume(call.context, call.path["id"])
    except NoVolumeService as error:
        raise VolumeNotFound(call.path["id"]) from error


async def _find_snapshot(call: Call) -> Snapshot:
    try:
        return await call.cloud.volumes.snapshot(call.context, call.path["id"])
    except NoVolumeService as error:
        raise VolumeSnapshotNotFound(call.path["id"]) from error


def _limit(call: Call) -> int:
    most = call.cloud.options.max_limit
    return min(int(call.query.last("limit", str(most))), most)


def _offset(call: Call) -> int:
    return int(call.query.last("offset", "0"))


def _volume(one: Volume) -> dict[str, Any]:
    attached = [
        {"id": one.id, "volumeId": one.id, "serverId": each.server_id, "device": each.device or ""}
        for each in one.attachments if each.server_id is not None
    ]
    return {
        "id": one.id, "status": one.status, "size": one.size, "availabilityZone": one.availability_zone,
        "createdAt": microseconds(one.created_at), "attachments": attached or [{}], "displayName": one.name,
        "displayDescription": one.description, "volumeType": one.volume_type, "snapshotId": one.snapshot_id,
        "metadata": one.metadata,
    }


def _snapshot(one: Snapshot) -> dict[str, Any]:
    return {
        "id": one.id, "volumeId": one.volume_id, "status": one.status, "size": one.size,
        "createdAt": microseconds(one.created_at), "displayName": one.name, "displayDescription": one.description,
    }


def _rule(name: str, audience: Audience) -> Rule:
    return Rule(f"os-volumes:{name}", audience)


_VOLUMES, _SNAPSHOTS = "/os-volumes", "/os-snapshots"
ROUTES = [
    Route(method="GET", path=_VOLUMES, handler=list_volumes, rule=_rule("list", Audience.READER), query=_PAGES,
          until=_UNTIL, answer=answers.VOLUMES),
    Route(method="GET", path=f"{_VOLUMES}/detail", handler=list_volumes, rule=_rule("detail", Audience.READER),
          query=_PAGES, until=_UNTIL, answer=answers.VOLUMES),
    Route(method="POST", path=_VOLUMES, handler=create_volume, rule=_rule("create", Audience.MEMBER), body=VOLUME,
          until=_UNTIL, answer=answers.VOLUME),
    Route(method="GET", path=f"{_VOLUMES}/{{id}}", handler=show_volume, rule=_rule("show", Audience.READER),
          until=_UNTIL, answer=answers.VOLUME),
    Route(method="DELETE", path=f"{_VOLUMES}/{{id}}", handler=delete_volume, rule=_rule("delete", Audience.MEMBER),
          until=_UNTIL, status=202),
    Route(method="GET", path=_SNAPSHOTS, handler=list_snapshots, rule=_rule("snapshots:list", Audience.READER),
          query=_PAGES, until=_UNTIL, answer=answers.SNAPSHOTS),
    Route(method="GET", path=f"{_SNAPSHOTS}/detail", handler=list_snapshots, query=_PAGES, until=_UNTIL,
          rule=_rule("snapshots:detail", Audience.READER), answer=answers.SNAPSHOTS),
    Route(method="POST", path=_SNAPSHOTS, handler=create_snapshot, rule=_rule("snapshots:create", Audience.MEMBER),
          body=SNAPSHOT, until=_UNTIL, answer=answers.SNAPSHOT),
    Route(method="GET", path=f"{_SNAPSHOTS}/{{id}}", handler=show_snapshot, until=_UNTIL,
          rule=_rule("snapshots:show", Audience.READER), answer=answers.SNAPSHOT),
    Route(method="DELETE", path=f"{_SNAPSHOTS}/{{id}}", handler=delete_snapshot, until=_UNTIL, status=202,
          rule=_rule("snapshots:delete", Audience.MEMBER)),
]
