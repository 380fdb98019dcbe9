"""The attributes that callers give an image: which exist, what they may hold. Spec: EMG-01, EMG-08."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Forbidden, InvalidInput
from kilonova.embedded.image import access
from kilonova.embedded.image.errors import TooLarge
from kilonova.embedded.image.records import ImageRecord, Limits, Visibility

DISK_FORMATS = ("ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop", "gpt")
CONTAINER_FORMATS = ("bare", "ovf", "ova", "docker", "ami", "ari", "aki", "compressed")

READ_ONLY = frozenset({
    "status", "size", "virtual_size", "checksum", "os_hash_algo", "os_hash_value", "created_at", "updated_at",
    "self", "file", "schema", "direct_url", "locations", "stores",
})
RESERVED = frozenset({"deleted", "deleted_at", "is_public", "location"})
PROGRESS_PREFIX = "os_glance_"

MAX_INTEGER = (1 << 31) - 1
MAX_NAME = 255
MAX_VALUE = 65535

PROJECT_ID = re.compile(r"[^\x00-\x20/]{1,64}")


def refuse_fixed(name: str, refusal: type[InvalidInput] | type[Forbidden]) -> None:
    """Raises `refusal` for a name that callers do not set; Forbidden always for progress. Spec: EMI-13."""
    if name.startswith(PROGRESS_PREFIX):
        raise Forbidden(f"Attribute '{name}' is reserved.")
    if name in RESERVED:
        raise refusal(f"Attribute '{name}' is reserved.")
    if name in READ_ONLY:
        raise refusal(f"Attribute '{name}' is read-only.")


def new_image(body: Mapping[str, Any], context: RequestContext, limits: Limits, *, new_id: str,
              now: float) -> ImageRecord:
    """The image that a create request describes.

    Raises:
        InvalidInput; Forbidden: public or for another project without the right; TooLarge: too many properties
            or tags.
    """
    values: dict[str, Any] = {}
    properties: dict[str, str] = {}
    for name, value in body.items():
        refuse_fixed(name, InvalidInput)
        if name == "id":
            values["id"] = _uuid(value)
        elif name in EDITABLE:
            values[name] = EDITABLE[name](name, value)
        else:
            properties[check_name(name)] = check_value(name, value)
    values.setdefault("id", new_id)
    values.setdefault("owner", context.project_id)
    record = ImageRecord(**values, properties=properties, created_at=now, updated_at=now)
    check_rights(record, ImageRecord(id=record.id, owner=context.project_id), context)
    check_counts(record, limits)
    return record


def check_rights(record: ImageRecord, before: ImageRecord, context: RequestContext) -> None:
    """Raises Forbidden for changes that need more than owning the image. Spec: EMG-12."""
    if record.visibility is not before.visibility:
        access.check_visibility(context, record.visibility)
    if record.owner != before.owner and not context.is_admin:
        raise Forbidden("You are not permitted to give an image to another project.")


def check_counts(record: ImageRecord, limits: Limits) -> None:
    """Raises TooLarge."""
    if len(record.properties) > limits.properties:
        raise TooLarge(f"An image may have {limits.properties} properties, not {len(record.properties)}.")
    if len(record.tags) > limits.tags:
        raise TooLarge(f"An image may have {limits.tags} tags, not {len(record.tags)}.")


def check_name(name: str) -> str:
    """The name of a custom property. Raises InvalidInput."""
    if not 0 < len(name) <= MAX_NAME or "\0" in name:
        raise InvalidInput(f"The name of a property must have 1 to {MAX_NAME} characters and no NUL.")
    return name


def check_value(name: str, value: object) -> str:
    """The value of a custom property. Raises InvalidInput."""
    return _text(name, value, MAX_VALUE)


def check_tag(value: object) -> str:
    return _text("tags", value, MAX_NAME)


def _text(name: str, value: object, length: int) -> str:
    if not isinstance(value, str) or len(value) > length or "\0" in value:
        raise InvalidInput(f"Invalid value for '{name}': a string of at most {length} characters is needed.")
    return value


def _name(name: str, value: object) -> str | None:
    return None if value is None else _text(name, value, MAX_NAME)


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"Invalid value for '{name}': true or false is needed.")
    return value


def _amount(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_INTEGER:
        raise InvalidInput(f"Invalid value for '{name}': an integer from 0 to {MAX_INTEGER} is needed.")
    return value


def _choice(allowed: tuple[str, ...]) -> Callable[[str, object], str | None]:
    def check(name: str, value: object) -> str | None:
        if value is not None and value not in allowed:
            raise InvalidInput(f"Invalid value '{value}' for '{name}': one of {', '.join(allowed)} is needed.")
        return value if isinstance(value, str) else None

    return check


def _visibility(name: str, value: object) -> Visibility:
    try:
        return Visibility(value)
    except ValueError:
        raise InvalidInput(f"Invalid value '{value}' for '{name}'.") from None


def _tags(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InvalidInput(f"Invalid value for '{name}': a list of strings is needed.")
    return tuple(dict.fromkeys(check_tag(tag) for tag in value))


def _owner(name: str, value: object) -> str:
    if not isinstance(value, str) or not PROJECT_ID.fullmatch(value):
        raise InvalidInput(f"Invalid value for '{name}': the id of a project is needed.")
    return value


def _uuid(value: object) -> str:
    try:
        return str(uuid.UUID(str(value)))
    except ValueError:
        raise InvalidInput("Invalid value for 'id': a UUID is needed.") from None


EDITABLE: dict[str, Callable[[str, object], Any]] = {
    "name": _name,
    "owner": _owner,
    "visibility": _visibility,
    "disk_format": _choice(DISK_FORMATS),
    "container_format": _choice(CONTAINER_FORMATS),
    "min_disk": _amount,
    "min_ram": _amount,
    "os_hidden": _boolean,
    "protected": _boolean,
    "tags": _tags,
}
"""The attributes that callers set, each with the function that checks its value."""


def with_attribute(record: ImageRecord, name: str, value: object) -> ImageRecord:
    """The image with one of the EDITABLE attributes changed. Raises InvalidInput."""
    return msgspec.structs.replace(record, **{name: EDITABLE[name](name, value)})
