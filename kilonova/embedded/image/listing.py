"""The list of images: filters, sorting, pages. Spec: EMI-07 to EMI-09, EMI-12, EMG-14 to EMG-18."""

from __future__ import annotations

import csv
import operator
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import msgspec
import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import ImageNotFound, InvalidInput
from kilonova.embedded.image import access, queries, schema
from kilonova.embedded.image.records import ImageRecord, MemberStatus, Status, Visibility

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
MAX_FILTERS = 64

Parameters = Sequence[tuple[str, str]]
Condition = sa.ColumnElement[bool]

image = schema.images.c

SORT_KEYS: dict[str, sa.ColumnElement[Any]] = {
    "id": image.id,
    "name": sa.func.coalesce(image.name, ""),
    "status": image.status,
    "visibility": image.visibility,
    "disk_format": sa.func.coalesce(image.disk_format, ""),
    "container_format": sa.func.coalesce(image.container_format, ""),
    "size": sa.func.coalesce(image.size, -1),
    "min_disk": image.min_disk,
    "min_ram": image.min_ram,
    "created_at": image.created_at,
    "updated_at": image.updated_at,
}
"""What lists can be sorted by, with unknown values first. Kept in step with `_sort_value`."""

COMPARISONS: dict[str, Callable[[Any, Any], Condition]] = {
    "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le, "eq": operator.eq,
    "neq": operator.ne,
}


class Listing(msgspec.Struct, frozen=True):
    """A parsed list request. sort: pairs of key and whether descending; the last one is always the id."""

    conditions: tuple[Any, ...]
    sort: tuple[tuple[str, bool], ...]
    limit: int
    marker: str | None


def parse(parameters: Parameters, context: RequestContext) -> Listing:
    """Raises InvalidInput for a filter, sort or limit that makes no sense."""
    paging = {"limit", "marker", "sort", "sort_key", "sort_dir"}
    filters = [(name, value) for name, value in parameters if name not in paging]
    if len(filters) > MAX_FILTERS:
        raise InvalidInput(f"A list takes {MAX_FILTERS} filters, not {len(filters)}.")
    if any("\0" in value for _, value in parameters):
        raise InvalidInput("A query parameter holds a NUL.")
    return Listing(_conditions(filters, context), _sort(parameters), _limit(parameters), _last(parameters, "marker"))


def page(conn: sa.Connection, listing: Listing, context: RequestContext) -> tuple[list[ImageRecord], bool]:
    """One page of the list, and whether there is more. Raises InvalidInput for an unknown marker."""
    query = sa.select(image.id).where(*listing.conditions)
    if listing.marker is not None:
        try:
            marker = queries.visible(conn, context, listing.marker)
        except ImageNotFound:
            raise InvalidInput(f"The marker {listing.marker} names no image.") from None
        query = query.where(_after(marker, listing.sort))
    for key, descending in listing.sort:
        query = query.order_by(SORT_KEYS[key].desc() if descending else SORT_KEYS[key].asc())
    ids = list(conn.scalars(query.limit(listing.limit + 1)))
    return queries.load(conn, ids[:listing.limit]), len(ids) > listing.limit


def links(parameters: Parameters, records: list[ImageRecord], *, more: bool) -> dict[str, str]:
    """The links of a page; the same parameters lead to the next one. Spec: EMG-18."""
    same = [(name, value) for name, value in parameters if name != "marker"]
    found = {"first": "/v2/images" + (f"?{urlencode(same)}" if same else "")}
    if more and records:
        found["next"] = f"/v2/images?{urlencode([*same, ('marker', records[-1].id)])}"
    return found


def _after(marker: ImageRecord, sort: tuple[tuple[str, bool], ...]) -> Condition:
    """What comes after the marker in this order."""
    alternatives = []
    equal: list[Condition] = []
    for key, descending in sort:
        column, value = SORT_KEYS[key], _sort_value(marker, key)
        alternatives.append(sa.and_(*equal, column < value if descending else column > value))
        equal.append(column == value)
    return sa.or_(*alternatives)


def _sort_value(record: ImageRecord, key: str) -> Any:
    value = getattr(record, key)
    if value is None:
        return -1 if key == "size" else ""
    return value


def _sort(parameters: Parameters) -> tuple[tuple[str, bool], ...]:
    keys = [value for name, value in parameters if name == "sort_key"]
    directions = [value for name, value in parameters if name == "sort_dir"]
    combined = _last(parameters, "sort")
    if combined is not None:
        if keys or directions:
            raise InvalidInput("Either sort or sort_key and sort_dir can be given.")
        parts = [part.strip().partition(":") for part in combined.split(",")]
        keys = [key for key, _, _ in parts]
        directions = [direction or "desc" for _, _, direction in parts]
    if len(directions) > 1 and len(directions) != len(keys):
        raise InvalidInput("There must be one sort_dir, or one for each sort_key.")
    if len(directions) <= 1:
        directions = (directions or ["desc"]) * max(len(keys), 1)
    for key in keys:
        if key not in SORT_KEYS:
            raise InvalidInput(f"Images cannot be sorted by '{key}'.", hint=f"use one of {', '.join(SORT_KEYS)}")
    for direction in directions:
        if direction not in ("asc", "desc"):
            raise InvalidInput(f"The sort direction is asc or desc, not '{direction}'.")
    order = dict(zip(keys, (direction == "desc" for direction in directions), strict=False))
    # Spec: EMG-16: without a key, and among equals, the newest first.
    for key in ("created_at", "id"):
        order.setdefault(key, directions[-1] == "desc")
    return tuple(order.items())


def _limit(parameters: Parameters) -> int:
    text = _last(parameters, "limit")
    return DEFAULT_LIMIT if text is None else min(_integer("limit", text), MAX_LIMIT)


def _conditions(filters: Parameters, context: RequestContext) -> tuple[Condition, ...]:
    named = dict(filters)
    member_status = _choice("member_status", named.get("member_status", "accepted"),
                            {status.value for status in MemberStatus} | {"all"})
    visibility = named.get("visibility")
    if visibility is not None:
        _choice("visibility", visibility, {value.value for value in Visibility} | {"all"})
    elif context.is_admin and "owner" in named:
        visibility = "all"  # an administrator who names a project wants its images
    conditions = [access.listed(context, visibility, member_status),
                  image.os_hidden == _boolean("os_hidden", named.get("os_hidden", "false"))]
    for name, value in filters:
        if name not in ("visibility", "member_status", "os_hidden"):
            conditions.append(FILTERS[name](name, value) if name in FILTERS else _property(name, value))
    return tuple(conditions)


def _property(name: str, value: str) -> Condition:
    """Any name that is no attribute is a custom property. Spec: EMI-12."""
    found = schema.properties.c
    return image.id.in_(sa.select(found.image_id).where(found.name == name, found.value == value))


def _tag(name: str, value: str) -> Condition:
    return image.id.in_(sa.select(schema.tags.c.image_id).where(schema.tags.c.tag == value))


def _equal(name: str, value: str) -> Condition:
    return image[name] == value


def _equal_integer(name: str, value: str) -> Condition:
    return image[name] == _integer(name, value)


def _equal_boolean(name: str, value: str) -> Condition:
    return image[name] == _boolean(name, value)


def _one_of(name: str, value: str) -> Condition:
    """`value`, or `in:a,b` with values in double quotes where they hold commas."""
    return image[name].in_(_values(value))


def _status(name: str, value: str) -> Condition:
    # A status that exists but that no image here ever has is no error: it lists nothing.
    known = {status.value for status in Status}
    return image.status.in_([Status(text) for text in _values(value) if text in known])


def _values(value: str) -> list[str]:
    if not value.startswith("in:"):
        return [value]
    try:
        return next(csv.reader([value[3:]], strict=True), [])
    except csv.Error as error:
        raise InvalidInput(f"The filter {value!r} is not a list.") from error


def _at_least(name: str, value: str) -> Condition:
    return image[name.removesuffix("_min")] >= _integer(name, value)


def _at_most(name: str, value: str) -> Condition:
    return image[name.removesuffix("_max")] <= _integer(name, value)


def _time(name: str, value: str) -> Condition:
    comparison, colon, text = value.partition(":")
    if not colon or comparison not in COMPARISONS:
        comparison, text = "eq", value
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"Invalid value '{value}' for '{name}': a time is needed.") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    # Clients know times to the second only, so that is how they are compared.
    return COMPARISONS[comparison](sa.func.floor(image[name]), moment.timestamp())


FILTERS: dict[str, Callable[[str, str], Condition]] = {
    "id": _one_of, "name": _one_of, "status": _status, "disk_format": _one_of, "container_format": _one_of,
    "owner": _equal, "checksum": _equal, "os_hash_value": _equal, "protected": _equal_boolean,
    "min_disk": _equal_integer, "min_ram": _equal_integer, "size": _equal_integer, "size_min": _at_least,
    "size_max": _at_most, "tag": _tag, "created_at": _time, "updated_at": _time,
}


def _last(parameters: Parameters, name: str) -> str | None:
    return next((value for key, value in reversed(parameters) if key == name), None)


def _integer(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidInput(f"Invalid value '{text}' for '{name}': a whole number is needed.")
    return int(text)


def _boolean(name: str, text: str) -> bool:
    return _choice(name, text.lower(), {"true", "false"}) == "true"


def _choice(name: str, text: str, allowed: set[str]) -> str:
    if text not in allowed:
        raise InvalidInput(f"Invalid value '{text}' for '{name}': one of {', '.join(sorted(allowed))} is needed.")
    return text
