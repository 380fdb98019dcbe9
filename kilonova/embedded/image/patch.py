"""Changes to an image: JSON patch in the two media types that clients send. Spec: EMG-07, EMG-08."""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.domain.errors import Conflict, Forbidden, InvalidInput
from kilonova.embedded.image import attributes
from kilonova.embedded.image.errors import UnsupportedMediaType
from kilonova.embedded.image.records import ImageRecord, Status

V20 = "application/openstack-images-v2.0-json-patch"
V21 = "application/openstack-images-v2.1-json-patch"
OPERATIONS = ("add", "replace", "remove")
MAX_CHANGES = 1000


class Change(msgspec.Struct, frozen=True):
    """One change. path: the names of a JSON pointer."""

    operation: str
    path: tuple[str, ...]
    value: Any = None


def parse(media_type: str, body: bytes) -> list[Change]:
    """The changes of a request.

    Raises:
        UnsupportedMediaType; InvalidInput.
    """
    media_type = media_type.partition(";")[0].strip().lower()
    if media_type not in (V20, V21):
        raise UnsupportedMediaType(f"An image is changed with {V21}, not {media_type or 'an unnamed type'}.")
    try:
        items = msgspec.json.decode(body, type=list[dict[str, Any]])
    except msgspec.DecodeError as error:
        raise InvalidInput("The request body must be a list of changes.") from error
    if len(items) > MAX_CHANGES:
        raise InvalidInput(f"One request may hold {MAX_CHANGES} changes, not {len(items)}.")
    return [_v21(item) if media_type == V21 else _v20(item) for item in items]


def _v21(item: dict[str, Any]) -> Change:
    operation = item.get("op")
    if operation not in OPERATIONS:
        raise InvalidInput(f"Operations are {', '.join(OPERATIONS)}, not {operation!r}.")
    return _change(operation, item.get("path"), item)


def _v20(item: dict[str, Any]) -> Change:
    named = [operation for operation in OPERATIONS if operation in item]
    if len(named) != 1:
        raise InvalidInput(f"Each change has exactly one of the operations {', '.join(OPERATIONS)}.")
    return _change(named[0], item[named[0]], item)


def _change(operation: str, pointer: object, item: dict[str, Any]) -> Change:
    if not isinstance(pointer, str) or not pointer.startswith("/") or pointer.endswith("/"):
        raise InvalidInput(f"{pointer!r} is not a path: it must begin with / and name something.")
    if operation != "remove" and "value" not in item:
        raise InvalidInput(f"Operation {operation} needs a value.")
    names = tuple(name.replace("~1", "/").replace("~0", "~") for name in pointer[1:].split("/"))
    return Change(operation, names, item.get("value"))


def apply(record: ImageRecord, changes: list[Change]) -> ImageRecord:
    """The image after all changes, or none of them.

    Raises:
        InvalidInput: a bad value. Forbidden: a read-only or reserved attribute. Conflict: no such property.
    """
    for change in changes:
        record = _apply(record, change)
    return record


def _apply(record: ImageRecord, change: Change) -> ImageRecord:
    name = change.path[0]
    if change.operation == "remove" and change.path == ("stores",):
        return record  # the SDK takes it for a property and removes it with those that are not given again
    attributes.refuse_fixed(name, Forbidden)
    if name == "id":
        raise Forbidden("Attribute 'id' is read-only.")
    if len(change.path) > 1:
        raise Conflict(f"There is nothing below '{name}' that can be changed.")
    if name in attributes.EDITABLE:
        return _apply_attribute(record, name, change)
    properties = dict(record.properties)
    if change.operation != "add" and name not in properties:
        raise Conflict(f"The image has no property '{name}'.", hint="use the operation add")
    if change.operation == "remove":
        del properties[name]
    else:
        properties[attributes.check_name(name)] = attributes.check_value(name, change.value)
    return msgspec.structs.replace(record, properties=properties)


def _apply_attribute(record: ImageRecord, name: str, change: Change) -> ImageRecord:
    if change.operation == "remove":
        raise Forbidden(f"Attribute '{name}' may not be removed.")
    if name in ("disk_format", "container_format") and record.status is not Status.QUEUED:
        raise Forbidden(f"Attribute '{name}' can be changed only while the image is queued.")
    return attributes.with_attribute(record, name, change.value)
