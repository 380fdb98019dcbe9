"""Images, members and tasks as JSON. Spec: EMI-10, EMG-29."""

from __future__ import annotations

from typing import Any

from kilonova.domain.clock import iso_seconds
from kilonova.embedded.image.records import HASH_ALGORITHM, STORE, WITH_DATA, ImageRecord, Member, Task, TaskStatus

TASK_KEPT = 48 * 3600.0
"""Seconds after which the record of a finished import may be forgotten, as told to clients."""


def image(record: ImageRecord) -> dict[str, Any]:
    """The image with its properties at top level."""
    path = f"/v2/images/{record.id}"
    progress = {}
    if record.importing_to is not None:
        progress["os_glance_importing_to_stores"] = record.importing_to
    if record.failed_import is not None:
        progress["os_glance_failed_import"] = record.failed_import
    where = {"stores": STORE} if record.status in WITH_DATA else {}
    return {
        **record.properties,
        **progress,
        **where,
        "id": record.id,
        "name": record.name,
        "owner": record.owner,
        "status": record.status.value,
        "visibility": record.visibility.value,
        "disk_format": record.disk_format,
        "container_format": record.container_format,
        "size": record.size,
        "virtual_size": record.virtual_size,
        "min_disk": record.min_disk,
        "min_ram": record.min_ram,
        "checksum": record.checksum,
        "os_hash_algo": HASH_ALGORITHM if record.os_hash_value else None,
        "os_hash_value": record.os_hash_value,
        "os_hidden": record.os_hidden,
        "protected": record.protected,
        "tags": record.tags,
        "created_at": iso_seconds(record.created_at),
        "updated_at": iso_seconds(record.updated_at),
        "self": path,
        "file": f"{path}/file",
        "schema": "/v2/schemas/image",
    }


def member(record: Member) -> dict[str, Any]:
    return {
        "image_id": record.image_id,
        "member_id": record.member_id,
        "status": record.status.value,
        "created_at": iso_seconds(record.created_at),
        "updated_at": iso_seconds(record.updated_at),
        "schema": "/v2/schemas/member",
    }


def task(record: Task) -> dict[str, Any]:
    request = {"name": record.request.method.value}
    if record.request.uri is not None:
        request["uri"] = record.request.uri
    finished = record.status is not TaskStatus.PROCESSING
    return {
        "id": record.id,
        "type": "api_image_import",
        "status": record.status.value,
        "owner": record.owner,
        "image_id": record.image_id,
        "user_id": record.user_id,
        "request_id": record.request_id,
        "input": {"image_id": record.image_id, "import_req": {"method": request}},
        "result": {"image_id": record.image_id} if record.status is TaskStatus.SUCCESS else None,
        "message": record.message,
        "created_at": iso_seconds(record.created_at),
        "updated_at": iso_seconds(record.updated_at),
        "expires_at": iso_seconds(record.updated_at + TASK_KEPT) if finished else None,
        "self": f"/v2/tasks/{record.id}",
        "schema": "/v2/schemas/task",
    }
