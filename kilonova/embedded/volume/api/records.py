"""Handlers of what callers do alike with the records of every resource: list, show, rename, and say what it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from kilonova.domain.errors import InvalidInput
from kilonova.embedded.http import json_response
from kilonova.embedded.volume.api import listing
from kilonova.embedded.volume.api.call import Call, Handler, accepted, text, texts

View = Callable[[Call, Any], dict[str, Any]]
"""Makes of a record what callers see."""
Visible = Callable[..., Any]
"""Finds a record that a caller may see, by id. Raises NotFound."""
Change = Callable[..., None]
"""Changes columns of a record, by id."""

StatusT = TypeVar("StatusT", bound=StrEnum)


class Names(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Another name and description, under the names of old or new."""

    name: str | msgspec.UnsetType | None = msgspec.UNSET
    display_name: str | msgspec.UnsetType | None = msgspec.UNSET
    description: str | msgspec.UnsetType | None = msgspec.UNSET
    display_description: str | msgspec.UnsetType | None = msgspec.UNSET


class Reset(msgspec.Struct, forbid_unknown_fields=True):
    """A status that a record is to have whatever it has."""

    status: str


def lists(kind: listing.Kind, view: View) -> Handler:
    """Lists what is the caller's project's."""
    async def list_(call: Call) -> Response:
        own = listing.own(call, kind.table.c.project_id)
        page = await call.read(lambda conn: listing.find(conn, call, kind, *own))
        return json_response(listing.answer(call, kind, page, [view(call, one) for one in page.records]))

    return list_


def shows(kind: listing.Kind, visible: Visible, view: View) -> Handler:
    """Shows one."""
    async def show(call: Call) -> Response:
        found = await call.read(lambda conn: visible(conn, call.who, call.path()))
        return json_response({kind.name: view(call, found)})

    return show


def renames(kind: listing.Kind, visible: Visible, change: Change, view: View) -> Handler:
    """Gives one another name or description."""
    async def rename(call: Call) -> Response:
        values, now = new_values(await call.body(kind.name, Names)), call.now()

        def unit(conn: sa.Connection) -> Any:
            visible(conn, call.who, call.path())
            change(conn, call.path(), now, **values)
            return visible(conn, call.who, call.path())

        return json_response({kind.name: view(call, await call.write(unit))})

    return rename


def resets(statuses: type[StrEnum], visible: Visible, change: Change) -> Callable[[Call, Reset], Awaitable[Response]]:
    """The action that says what one is."""
    async def reset(call: Call, body: Reset) -> Response:
        status, now = one_of(statuses, "status", body.status), call.now()

        def unit(conn: sa.Connection) -> None:
            visible(conn, call.who, call.path())
            change(conn, call.path(), now, status=status)

        await call.write(unit)
        return accepted()

    return reset


def one_of(type_: type[StatusT], name: str, value: str) -> StatusT:
    """A status that a caller names. Raises InvalidInput."""
    try:
        return type_(value.lower())
    except ValueError as error:
        raise InvalidInput(f"Invalid {name}: it is one of {', '.join(one.value for one in type_)}.") from error


def new_values(body: Any) -> dict[str, Any]:
    """The columns that a body of the names of old or new changes. Raises InvalidInput: it changes nothing."""
    values: dict[str, Any] = {}
    for name in ("name", "description"):
        for key in (f"display_{name}", name):
            value = getattr(body, key)
            if value is not msgspec.UNSET:
                values[name] = text(name, value)
    if getattr(body, "metadata", msgspec.UNSET) is not msgspec.UNSET:
        values["metadata"] = texts("metadata", body.metadata)
    if not values:
        raise InvalidInput("Nothing is to be changed.")
    return values
