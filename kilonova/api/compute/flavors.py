"""Flavors: list, show, create, describe, delete. Spec: API-200 to API-205, API-617."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.api.compute.answers import catalogue as answers
from kilonova.api.compute.field_types import NAME
from kilonova.api.compute.flavor_view import SHOW_EXTRA_SPECS, brief, find_visible, full
from kilonova.api.compute.server_filters import boolean, expression
from kilonova.api.paging import LIMIT, MARKER, effective_limit, next_page
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import (
    Boolean,
    Enum,
    Integer,
    Invalid,
    Null,
    Object,
    OneOf,
    Reading,
    Schema,
    Text,
    nullable,
    optional,
    required,
)
from kilonova.api.telling import tell_change
from kilonova.db import flavors as records
from kilonova.db.flavors import SORT_KEYS, FlavorQuery
from kilonova.domain.errors import FlavorNotFound, InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.notifications import payloads

CREATE = Rule("os-flavor-manage:create", Audience.ADMIN)
UPDATE = Rule("os-flavor-manage:update", Audience.ADMIN)
DELETE = Rule("os-flavor-manage:delete", Audience.ADMIN)

LARGEST_FACTOR = 3.40282e38


class Number(Schema):
    """A JSON number, kept as it is; with `as_text` also its digits in a string.

    Args:
        above, most: bounds, the lower one excluded; None for no bounds.
    """

    def __init__(self, above: float | None = None, most: float | None = None, *, as_text: bool = False) -> None:
        self._above, self._most, self._as_text = above, most, as_text

    def read(self, value: Any, reading: Reading) -> Any:
        found = value
        if self._as_text and type(value) is str:
            try:
                found = float(value)
            except ValueError:
                raise Invalid(value, f"{value[:255]!r} is not a number") from None
        if type(found) not in (int, float) or found != found:
            raise Invalid(value, f"{str(value)[:255]!r} is not of type 'number'")
        if self._above is not None and not found > self._above:
            raise Invalid(value, f"{value} is less than or equal to the minimum of {self._above}")
        if self._most is not None and found > self._most:
            raise Invalid(value, f"{value} is greater than the maximum of {self._most}")
        return found

    def describe(self, version: int) -> dict[str, Any]:
        found: dict[str, Any] = {"type": ["number", "string"] if self._as_text else "number"}
        if self._above is not None:
            found["exclusiveMinimum"] = self._above
        if self._most is not None:
            found["maximum"] = self._most
        return found


FLAVOR_ID = Text(1, 255, r"(?! )[a-zA-Z0-9. _-]+(?<! )", trimmed_when_lenient=True)
DESCRIPTION = nullable(Text(0, 65535, format=("text without control characters", lambda text: "\0" not in text)))

CREATE_BODY = Object({"flavor": required(Object({
    "name": required(NAME),
    "id": optional(OneOf(Null(), FLAVOR_ID, Number())),
    "ram": required(Integer(1)),
    "vcpus": required(Integer(1)),
    "disk": required(Integer(0)),
    "OS-FLV-EXT-DATA:ephemeral": optional(Integer(0)),
    "swap": optional(Integer(0)),
    "rxtx_factor": optional(Number(0, LARGEST_FACTOR, as_text=True), until=101),
    "os-flavor-access:is_public": optional(Boolean()),
    "description": optional(DESCRIPTION, since=55),
}))})
UPDATE_BODY = Object({"flavor": required(Object({"description": required(DESCRIPTION)}))})

LIST_QUERY = Query({
    "limit": LIMIT,
    "marker": MARKER,
    "sort_key": Param(Enum(*SORT_KEYS)),
    "sort_dir": Param(Enum("asc", "desc")),
    "minRam": Param(Integer(None)),
    "minDisk": Param(Integer(None)),
    "is_public": Param(Text()),
    "name": Param(Text(), since=102),
}, strict_since=75)


async def index(call: Call) -> Any:
    found = await _page(call)
    return _listing(call, "/flavors", found, [brief(call, flavor) for flavor in found])


async def detail(call: Call) -> Any:
    found = await _page(call)
    return _listing(call, "/flavors/detail", found, [full(call, flavor) for flavor in found])


def _listing(call: Call, path: str, found: list[Flavor], entries: list[dict[str, Any]]) -> dict[str, Any]:
    markers = [flavor.flavor_id for flavor in found]
    return {"flavors": entries, **next_page(call, path, markers, effective_limit(call), "flavors_links")}


async def _page(call: Call) -> list[Flavor]:
    """The flavors that a list request asks for. Raises InvalidInput."""
    asked, admin = call.query, call.context.is_admin
    sort_key = asked.last("sort_key", "flavorid")
    if sort_key == "rxtx_factor" and call.version >= 102:
        raise InvalidInput(f"Invalid input for query parameters sort_key. Value: {sort_key}. It is no sort key.")
    name = asked.last("name")
    marker = asked.last("marker")
    if marker is not None:
        try:
            await find_visible(call, marker)
        except FlavorNotFound as error:
            raise InvalidInput(f"marker [{marker}] not found") from error
    query = FlavorQuery(
        is_public=_is_public(asked.last("is_public")) if admin else True,
        project_id=call.context.project_id,
        disabled=None if admin else False,
        least_memory_mib=asked.last("minRam", 0),
        least_root_gib=asked.last("minDisk", 0),
        name=expression(name) if name is not None else None,
        sort_key=sort_key,
        descending=asked.last("sort_dir", "asc") == "desc",
        limit=effective_limit(call),
        marker=marker,
    )
    return await call.cloud.cells.api.read(lambda conn: records.page(conn, query))


def _is_public(text: str | None) -> bool | None:
    """True, False, or None for both; absent means True. Spec: API-200."""
    if text is None:
        return True
    return None if text.strip().lower() == "none" else boolean("is_public", text)


async def show(call: Call) -> Any:
    return {"flavor": full(call, await find_visible(call, call.path["id"]))}


async def create(call: Call) -> Any:
    body, now = call.body["flavor"], call.cloud.clock.now()
    given = body.get("id")
    flavor = Flavor(
        flavor_id=str(uuid.uuid4()) if given is None else str(given),
        name=body["name"],
        vcpus=body["vcpus"],
        memory_mib=body["ram"],
        root_gib=body["disk"],
        ephemeral_gib=body.get("OS-FLV-EXT-DATA:ephemeral", 0),
        swap_mib=body.get("swap", 0),
        rxtx_factor=float(body.get("rxtx_factor", 1.0)),
        is_public=body.get("os-flavor-access:is_public", True),
        description=body.get("description"),
    )
    made = await call.cloud.cells.api.write(_told(call, "create", lambda conn: records.create(conn, flavor, now=now)))
    return {"flavor": full(call, made)}


async def update(call: Call) -> Any:
    flavor_id, now = call.path["id"], call.cloud.clock.now()
    description = call.body["flavor"]["description"]
    changed = await call.cloud.cells.api.write(
        _told(call, "update", lambda conn: records.describe(conn, flavor_id, description, now=now))
    )
    return {"flavor": full(call, changed)}


async def delete(call: Call) -> Any:
    flavor_id = call.path["id"]

    def remove(conn: sa.Connection) -> Flavor:
        going = records.get(conn, flavor_id)
        records.delete(conn, flavor_id)
        return going

    await call.cloud.cells.api.write(_told(call, "delete", remove))
    return None


def _told(
    call: Call, action: str, change: Callable[[sa.Connection], Flavor]
) -> Callable[[sa.Connection], Flavor]:
    """The same change, of which others are told."""
    def write(conn: sa.Connection) -> Flavor:
        changed = change(conn)
        tell_change(call, conn, f"flavor.{action}", changed.flavor_id, payloads.flavor(changed))
        return changed

    return write


ROUTES = [
    Route(method="GET", path="/flavors", handler=index, query=LIST_QUERY, answer=answers.FLAVORS),
    Route(method="GET", path="/flavors/detail", handler=detail, rules=(SHOW_EXTRA_SPECS,), query=LIST_QUERY,
          answer=answers.FLAVORS_DETAIL),
    Route(method="POST", path="/flavors", handler=create, rule=CREATE, rules=(SHOW_EXTRA_SPECS,), body=CREATE_BODY,
          answer=answers.FLAVOR),
    Route(method="GET", path="/flavors/{id}", handler=show, rules=(SHOW_EXTRA_SPECS,), answer=answers.FLAVOR),
    Route(method="PUT", path="/flavors/{id}", handler=update, rule=UPDATE, rules=(SHOW_EXTRA_SPECS,),
          body=UPDATE_BODY, since=55, answer=answers.FLAVOR),
    Route(method="DELETE", path="/flavors/{id}", handler=delete, rule=DELETE, status=202),
]
