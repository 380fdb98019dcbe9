"""Records that belong to projects, and those among them whose status guards what is done to them: units of work."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Generic, TypeVar

import msgspec
import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import KilonovaError
from kilonova.embedded.volume.records import Guarded, Owned, StatusT

OwnedT = TypeVar("OwnedT", bound=Owned)
GuardedT = TypeVar("GuardedT", bound=Guarded[Any])


class OwnedRecords(Generic[OwnedT]):
    """The records of one table.

    Args:
        not_found: the error for an id of which there is none.
    """

    def __init__(self, table: sa.Table, record: type[OwnedT], not_found: Callable[[str], KilonovaError]) -> None:
        self._table = table
        self._record = record
        self._not_found = not_found

    def insert(self, conn: sa.Connection, record: OwnedT) -> None:
        conn.execute(self._table.insert().values(msgspec.structs.asdict(record)))

    def find(self, conn: sa.Connection, id_: str, *, lock: bool = False) -> OwnedT | None:
        """lock: nobody else changes it until the transaction ends."""
        if "\0" in id_:
            return None
        query = sa.select(self._table).where(self._table.c.id == id_)
        row = conn.execute(query.with_for_update() if lock else query).one_or_none()
        return None if row is None else self._record(**row._mapping)

    def get(self, conn: sa.Connection, id_: str, *, lock: bool = False) -> OwnedT:
        """Raises `not_found`."""
        found = self.find(conn, id_, lock=lock)
        if found is None:
            raise self._not_found(id_)
        return found

    def visible(self, conn: sa.Connection, caller: RequestContext, id_: str, *, lock: bool = False) -> OwnedT:
        """One that the caller may see. Raises `not_found`. Spec: EMV-06."""
        found = self.get(conn, id_, lock=lock)
        if not caller.is_admin and found.project_id != caller.project_id:
            raise self._not_found(id_)
        return found

    def of_project(
        self, conn: sa.Connection, project_id: str, *conditions: sa.ColumnElement[bool], limit: int, offset: int
    ) -> list[OwnedT]:
        """Those of a project, newest first; of those that there are, `offset` are left out."""
        c = self._table.c
        query = sa.select(self._table).where(c.project_id == project_id, *conditions)
        rows = conn.execute(query.order_by(c.created_at.desc(), c.id.desc()).limit(limit).offset(offset))
        return [self._record(**row._mapping) for row in rows]

    def delete(self, conn: sa.Connection, id_: str) -> None:
        conn.execute(self._table.delete().where(self._table.c.id == id_))


class GuardedRecords(OwnedRecords[GuardedT], Generic[GuardedT, StatusT]):
    """The records of one table, of which every change of a status is guarded by the one that it follows.

    Args:
        invalid: the error for one that has another status, of its id and what is wrong.
    """

    def __init__(
        self, table: sa.Table, record: type[GuardedT], not_found: Callable[[str], KilonovaError],
        invalid: Callable[[str, str], KilonovaError],
    ) -> None:
        super().__init__(table, record, not_found)
        self._invalid = invalid

    def change(self, conn: sa.Connection, id_: str, now: float, **values: Any) -> None:
        """Change what depends on no status. Raises `not_found`."""
        changed = self._table.update().where(self._table.c.id == id_).values(updated_at=now, **values)
        if not conn.execute(changed).rowcount:
            raise self._not_found(id_)

    def move(
        self, conn: sa.Connection, id_: str, before: Collection[StatusT], status: StatusT, now: float, **values: Any
    ) -> bool:
        """Give one a status. False, and nothing is changed, if it has none of `before`."""
        guarded = self._table.update().where(self._table.c.id == id_, self._table.c.status.in_(before))
        return bool(conn.execute(guarded.values(status=status, updated_at=now, **values)).rowcount)

    def begin(
        self, conn: sa.Connection, id_: str, before: Collection[StatusT], status: StatusT, now: float, **values: Any
    ) -> GuardedT:
        """Take one for an operation. Returns it as it was.

        Raises:
            `not_found`. `invalid`: it has none of the statuses `before`.
        """
        found = self.get(conn, id_, lock=True)
        if not self.move(conn, id_, before, status, now, **values):
            wanted = " or ".join(sorted(one.value for one in before))
            raise self._invalid(id_, f"must be {wanted}, but is {found.status.value}")
        return found
