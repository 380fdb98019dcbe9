"""JSON schemas of images, members and tasks, from which clients build their models. Spec: EMG-20."""

from __future__ import annotations

from functools import cache
from typing import Any

from kilonova.embedded.image.attributes import (
    CONTAINER_FORMATS,
    DISK_FORMATS,
    MAX_INTEGER,
    MAX_NAME,
    READ_ONLY,
)
from kilonova.embedded.image.records import MemberStatus, TaskStatus, Visibility

Schema = dict[str, Any]

UUID = "^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$"

STATUSES = ("queued", "saving", "active", "killed", "deleted", "uploading", "importing", "pending_delete",
            "deactivated")


@cache
def schemas() -> dict[str, Schema]:
    """All schemas by name."""
    image = _object("image", _image(), {"type": "string"}, links=[
        {"rel": "self", "href": "{self}"},
        {"rel": "enclosure", "href": "{file}"},
        {"rel": "describedby", "href": "{schema}"},
    ])
    member = _object("member", {
        "member_id": _text("The project that the image is shared with."),
        "image_id": _text("The image.", pattern=UUID),
        "status": _text("What the member decided.", enum=[status.value for status in MemberStatus]),
        "created_at": _text("When it was added."),
        "updated_at": _text("When it last changed."),
        "schema": _text("Path of this schema.", readOnly=True),
    })
    task = _object("task", {
        "id": _text("Identifier of the task.", pattern=UUID),
        "type": _text("What the task does.", enum=["api_image_import"]),
        "status": _text("How far it is.", enum=["pending", *(status.value for status in TaskStatus)]),
        "owner": _text("The project that owns the task."),
        "image_id": _text("The image.", pattern=UUID),
        "user_id": _text("Who began it."),
        "request_id": _text("The request that began it."),
        "input": {"type": ["null", "object"], "description": "What was asked for."},
        "result": {"type": ["null", "object"], "description": "What came of it."},
        "message": _text("Why it failed."),
        "created_at": _text("When it began."),
        "updated_at": _text("When it last changed."),
        "expires_at": {"type": ["null", "string"], "description": "When its record may go."},
        "self": _text("Path of the task."),
        "schema": _text("Path of this schema."),
    })
    return {
        "image": image, "images": _list("images", image),
        "member": member, "members": _list("members", member),
        "task": task, "tasks": _list("tasks", task),
    }


def _image() -> dict[str, Schema]:
    amount = {"type": "integer", "minimum": 0, "maximum": MAX_INTEGER}
    properties: dict[str, Schema] = {
        "id": _text("Identifier of the image.", pattern=UUID),
        "name": _optional("Name, not necessarily unique.", maxLength=MAX_NAME),
        "owner": _optional("The project that owns the image.", maxLength=MAX_NAME),
        "status": _text("State of the image.", enum=STATUSES),
        "visibility": _text("Who may see and use the image.", enum=[value.value for value in Visibility]),
        "disk_format": _optional("Format of the disk.", enum=[None, *DISK_FORMATS]),
        "container_format": _optional("Format around the disk.", enum=[None, *CONTAINER_FORMATS]),
        "size": {"type": ["null", "integer"], "description": "Bytes of image data."},
        "virtual_size": {"type": ["null", "integer"], "description": "Bytes of the disk in the image."},
        "min_disk": {**amount, "description": "Disk space that a server needs, in GiB."},
        "min_ram": {**amount, "description": "Memory that a server needs, in MiB."},
        "checksum": _optional("MD5 of the data.", maxLength=32),
        "os_hash_algo": _optional("Algorithm of os_hash_value.", maxLength=64),
        "os_hash_value": _optional("Hash of the data.", maxLength=128),
        "os_hidden": {"type": "boolean", "description": "Leave it out of lists."},
        "protected": {"type": "boolean", "description": "Refuse to delete it."},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": MAX_NAME}, "description": "Tags."},
        "created_at": _text("When it was made."),
        "updated_at": _text("When it last changed."),
        "self": _text("Path of the image."),
        "file": _text("Path of the image data."),
        "schema": _text("Path of this schema."),
        "direct_url": _text("Where the store keeps the data."),
        "locations": {"type": "array", "description": "Where the data is kept.", "items": {
            "type": "object", "required": ["url", "metadata"],
            "properties": {"url": {"type": "string"}, "metadata": {"type": "object"}},
        }},
        "stores": _text("Stores that have the data, separated by commas."),
    }
    for name in READ_ONLY:
        properties[name]["readOnly"] = True
    return properties


def _object(name: str, properties: dict[str, Schema], additional: Schema | None = None,
            links: list[dict[str, str]] | None = None) -> Schema:
    schema: Schema = {"name": name, "properties": properties}
    if additional is not None:
        schema["additionalProperties"] = additional
    if links is not None:
        schema["links"] = links
    return schema


def _list(name: str, item: Schema) -> Schema:
    return {
        "name": name,
        "properties": {
            name: {"type": "array", "items": item},
            "first": {"type": "string"},
            "next": {"type": "string"},
            "schema": {"type": "string"},
        },
        "links": [{"rel": "first", "href": "{first}"}, {"rel": "next", "href": "{next}"},
                  {"rel": "describedby", "href": "{schema}"}],
    }


def _text(description: str, **more: Any) -> Schema:
    return {"type": "string", "description": description, **more}


def _optional(description: str, **more: Any) -> Schema:
    return {"type": ["null", "string"], "description": description, **more}
