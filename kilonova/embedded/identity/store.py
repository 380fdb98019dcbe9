"""The identity service's records in the database, and the count of changes that caches go by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from kilonova.db.database import Database
from kilonova.db.upgrade import ensure
from kilonova.domain.errors import Conflict, InvalidInput, NotFound
from kilonova.embedded.identity import schema
from kilonova.embedded.identity.records import (
    AccessRule,
    ApplicationCredential,
    Domain,
    Endpoint,
    Group,
    Limit,
    Project,
    Record,
    Region,
    RegisteredLimit,
    Role,
    Service,
    User,
)

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class Collection(Generic[R]):
    """The records of one kind, by id.

    Args:
        noun: what messages call one, for example "project".
        order: the column that lists are sorted by before the id.
    """

    def __init__(self, table: sa.Table, record: type[R], noun: str, order: str = "name_key") -> None:
        self.table = table
        self.noun = noun
        self._record = record
        self._fields = record.__struct_fields__
        self._select = sa.select(*(table.c[name] for name in self._fields))
        self._order = tuple(dict.fromkeys((table.c[order], table.c.id)))

    def find(self, conn: sa.Connection, id: str) -> R | None:
        row = conn.execute(self._select.where(self.table.c.id == id)).one_or_none()
        return self._make(row) if row else None

    def get(self, conn: sa.Connection, id: str) -> R:
        """Raises NotFound."""
        record = self.find(conn, id)
        if record is None:
            raise NotFound(f"Could not find {self.noun}: {id}.")
        return record

    def named(self, conn: sa.Connection, name: str, **equal: str) -> R | None:
        """The one of that name, without regard to case, among those with the given column values."""
        where = [self.table.c[column] == value for column, value in equal.items()]
        row = conn.execute(self._select.where(self.table.c.name_key == name.casefold(), *where)).one_or_none()
        return self._make(row) if row else None

    def matching(self, conn: sa.Connection, *where: sa.ColumnElement[bool], after: str | None = None,
                 limit: int | None = None) -> list[R]:
        """Records in order.

        Args:
            after: id of the record before the first wanted one. limit: most records to return, None for all.

        Raises:
            NotFound: `after` names nothing.
        """
        query = self._select.where(*where).order_by(*self._order).limit(limit)
        if after is not None:
            place = conn.execute(sa.select(*self._order).where(self.table.c.id == after)).one_or_none()
            if place is None:
                raise NotFound(f"Could not find {self.noun}: {after}.")
            query = query.where(sa.tuple_(*self._order) > sa.tuple_(*place))
        return [self._make(row) for row in conn.execute(query)]

    def insert(self, conn: sa.Connection, record: R) -> R:
        """Raises Conflict for a name or id that is taken."""
        values = {name: getattr(record, name) for name in self._fields}
        try:
            conn.execute(self.table.insert().values(self._with_key(values)))
        except sa.exc.IntegrityError as error:
            raise Conflict(f"Conflict occurred attempting to store {self.noun}: "
                           f"{values.get('name') or record.id} exists already.") from error
        return record

    def update(self, conn: sa.Connection, id: str, changes: Mapping[str, Any]) -> R:
        """Change the named columns; returns the record as it is now. Raises NotFound, Conflict."""
        self.get(conn, id)
        if changes:
            try:
                conn.execute(self.table.update().where(self.table.c.id == id).values(self._with_key(changes)))
            except sa.exc.IntegrityError as error:
                raise Conflict(f"Conflict occurred attempting to change {self.noun} {id}: "
                               "the new name is taken.") from error
        return self.get(conn, id)

    def delete(self, conn: sa.Connection, id: str) -> None:
        """Raises NotFound; Conflict while something else still needs it."""
        self.get(conn, id)
        try:
            conn.execute(self.table.delete().where(self.table.c.id == id))
        except sa.exc.IntegrityError as error:
            raise Conflict(f"The {self.noun} {id} is still in use.") from error

    def _make(self, row: sa.Row[Any]) -> R:
        return self._record(**row._mapping)

    def _with_key(self, values: Mapping[str, Any]) -> dict[str, Any]:
        plain = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
        if "name" in plain and "name_key" in self.table.c:
            plain["name_key"] = plain["name"].casefold()
        return plain


domains = Collection(schema.domains, Domain, "domain")
projects = Collection(schema.projects, Project, "project")
users = Collection(schema.users, User, "user")
groups = Collection(schema.groups, Group, "group")
roles = Collection(schema.roles, Role, "role")
regions = Collection(schema.regions, Region, "region", order="id")
services = Collection(schema.services, Service, "service", order="type")
endpoints = Collection(schema.endpoints, Endpoint, "endpoint", order="service_id")
application_credentials = Collection(
    schema.application_credentials, ApplicationCredential, "application credential"
)
access_rules = Collection(schema.access_rules, AccessRule, "access rule", order="service")
registered_limits = Collection(
    schema.registered_limits, RegisteredLimit, "registered limit", order="resource_name"
)
limits = Collection(schema.limits, Limit, "limit", order="resource_name")


class IdentityStore:
    """The identity service's side of a database.

    `changes` counts finished writes of this process: what was computed under one count is stale under another.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.changes = 0

    async def create_tables(self) -> None:
        """Make the tables, if they are missing. Raises SchemaUnfit: they are of another release."""
        await ensure(self._database, schema.IDENTITY)

    async def read(self, unit: Callable[[sa.Connection], T]) -> T:
        """Raises InvalidInput for values that the database cannot hold, such as text with a NUL."""
        try:
            return await self._database.read(unit)
        except sa.exc.DataError as error:
            raise _unstorable() from error

    async def write(self, unit: Callable[[sa.Connection], T]) -> T:
        """Raises InvalidInput as `read` does; Conflict when another request made or removed the same meanwhile."""
        try:
            return await self._database.write(unit)
        except sa.exc.DataError as error:
            raise _unstorable() from error
        except sa.exc.IntegrityError as error:
            raise Conflict("Another request changed the same records at the same time.") from error
        finally:
            self.changes += 1


def _unstorable() -> InvalidInput:
    return InvalidInput("The request holds a value that cannot be stored: too long, too large or with a NUL.")
