"""Create, list, show, change and delete: the five calls that most identity resources have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kilonova.domain.errors import InvalidInput
from kilonova.embedded.http import empty_response, json_response
from kilonova.embedded.identity.api.access import Caller, caller_of
from kilonova.embedded.identity.api.bodies import Attributes, flag, listing, parse, self_link
from kilonova.embedded.identity.realm import Realm
from kilonova.embedded.identity.records import Record
from kilonova.embedded.identity.store import Collection

R = TypeVar("R", bound=Record)
B = TypeVar("B", bound=msgspec.Struct)

Handler = Callable[[Request], Awaitable[Response]]


def route(path: str, method: str, handler: Handler) -> Route:
    return Route(f"/v3{path}", handler, methods=[method])


class Resource(Generic[R, B]):
    """One kind of record over HTTP. Subclasses say how a record is made, shown and guarded.

    `make`, `change` and `remove` run inside the unit of work that commits them.
    """

    singular: ClassVar[str]
    plural: ClassVar[str]
    collection: Collection[R]
    body: type[B]
    filters: ClassVar[tuple[str, ...]] = ()
    """Query parameters that select by the column of the same name."""

    def __init__(self, realm: Realm) -> None:
        self.realm = realm

    def routes(self) -> list[Route]:
        return [
            route(f"/{self.plural}", "POST", self.create),
            route(f"/{self.plural}", "GET", self.list_all),
            route(f"/{self.plural}/{{id}}", "GET", self.show),
            route(f"/{self.plural}/{{id}}", "PATCH", self.update),
            route(f"/{self.plural}/{{id}}", "DELETE", self.delete),
        ]

    async def make(self, caller: Caller, body: B, extra: Attributes) -> R:
        """The new record; what needs the database to be checked is left to `check`. Raises InvalidInput."""
        raise NotImplementedError

    def check(self, conn: sa.Connection, record: R) -> None:
        """Refuse a new record that refers to something missing. Raises InvalidInput, NotFound, Conflict."""

    async def changes(self, body: B, extra: Attributes) -> Attributes:
        """The columns that a PATCH changes."""
        raise NotImplementedError

    def change(self, conn: sa.Connection, id: str, changes: Attributes) -> R:
        return self.collection.update(conn, id, changes)

    def remove(self, conn: sa.Connection, id: str) -> None:
        self.collection.delete(conn, id)

    def render(self, request: Request, record: R) -> Attributes:
        raise NotImplementedError

    def may_read(self, caller: Caller, record: R) -> bool:
        return caller.reads_all

    def may_change(self, caller: Caller, id: str, body: B) -> bool:
        return caller.is_admin

    def visible(self, caller: Caller) -> list[sa.ColumnElement[bool]]:
        """What limits the list to the records the caller may see. Raises Forbidden if that is nothing."""
        caller.require(caller.reads_all)
        return []

    async def create(self, request: Request) -> Response:
        caller = await caller_of(request, self.realm)
        caller.require_admin()
        body, extra = await parse(request, self.singular, self.body)
        record = await self.make(caller, body, extra)

        def unit(conn: sa.Connection) -> R:
            self.check(conn, record)
            return self.collection.insert(conn, record)

        return self.answer(request, await self.realm.store.write(unit), 201)

    async def list_all(self, request: Request) -> Response:
        caller = await caller_of(request, self.realm)
        where = [*self.visible(caller), *self.where(request)]
        limit, marker = page_of(request)
        one_more = None if limit is None else limit + 1
        records = await self.realm.store.read(
            lambda conn: self.collection.matching(conn, *where, after=marker, limit=one_more)
        )
        following = None
        if limit is not None and len(records) > limit:
            records = records[:limit]
            following = records[-1].id if records else None
        items = [self.render(request, record) for record in records]
        return json_response(listing(request, self.plural, items, following))

    async def show(self, request: Request) -> Response:
        caller = await caller_of(request, self.realm)
        id = request.path_params["id"]
        record = await self.realm.store.read(lambda conn: self.collection.get(conn, id))
        caller.require(self.may_read(caller, record))
        return self.answer(request, record)

    async def update(self, request: Request) -> Response:
        caller = await caller_of(request, self.realm)
        id = request.path_params["id"]
        body, extra = await parse(request, self.singular, self.body)
        caller.require(self.may_change(caller, id, body))
        changes = await self.changes(body, extra)
        return self.answer(request, await self.realm.store.write(lambda conn: self.change(conn, id, changes)))

    async def delete(self, request: Request) -> Response:
        (await caller_of(request, self.realm)).require_admin()
        id = request.path_params["id"]
        await self.realm.store.write(lambda conn: self.remove(conn, id))
        return empty_response()

    def answer(self, request: Request, record: R, status: int = 200) -> Response:
        return json_response({self.singular: self.render(request, record)}, status)

    def links(self, request: Request, record: R) -> dict[str, str]:
        return self_link(request, self.plural, record.id)

    def where(self, request: Request) -> list[sa.ColumnElement[bool]]:
        """The conditions that the query parameters ask for; unknown ones are ignored. Spec: EMI-09, EMI-12."""
        columns = self.collection.table.c
        conditions: list[sa.ColumnElement[bool]] = []
        for name in self.filters:
            value: Any = request.query_params.get(name)
            if value is None:
                continue
            if isinstance(columns[name].type, sa.Boolean):
                conditions.append(columns[name].is_(flag(request, name)))
            elif name == "name" and "name_key" in columns:
                conditions.append(columns.name_key == value.casefold())
            else:
                conditions.append(columns[name] == value)
        return conditions


def page_of(request: Request) -> tuple[int | None, str | None]:
    """`limit` and `marker`. Raises InvalidInput for a limit that is no count."""
    limit = request.query_params.get("limit")
    if limit is not None and (not limit.isascii() or not limit.isdigit() or len(limit) > 6):
        raise InvalidInput("The limit must be a number of records.")
    return (int(limit) if limit else None), request.query_params.get("marker")
