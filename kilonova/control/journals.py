"""All journals of a cloud read as one: that of the API database, that of every cell, that of the volume service."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.cells.registry import Cells
from kilonova.db.database import Database
from kilonova.db.journal import Journal, api_journal, cell_journal
from kilonova.domain.errors import NotFound
from kilonova.domain.operation import TERMINAL, OperationRecord, OperationState
from kilonova.embedded.volume import schema as volume_schema
from kilonova.embedded.volume.operations.catalogue import VOLUME_OPERATIONS
from kilonova.embedded.volume.service import EmbeddedVolumes
from kilonova.engine.operation import Definitions
from kilonova.operations.catalogue import API_OPERATIONS, CELL_OPERATIONS

API = "api"
"""The name of the journal of operations before they have a cell; those of cells have the names of their cells."""
VOLUMES = "volumes"
"""The name of the journal of the embedded volume service."""
SERVER = "server"

ACTIVE = tuple(state for state in OperationState if state not in TERMINAL)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """An operation with what its journal keeps beside it.

    Args:
        cancel: why somebody asked for its end, None if nobody did. wake_at: when it is due, None once it has ended.
        lease_owner: the conductor that works on it, None if none does.
    """

    record: OperationRecord
    cancel: str | None
    wake_at: float | None
    lease_owner: str | None


class OneJournal(msgspec.Struct, frozen=True):
    """One journal.

    Args:
        name: `API`, `VOLUMES`, or that of its cell. definitions: of the operations in it.
        about: what its operations work on, unless their definitions say otherwise.
        wake: tells whoever does its operations that there is work; given the one that was asked to end, if any.
    """

    name: str
    database: Database
    journal: Journal
    definitions: Definitions
    about: str
    wake: Callable[[str | None], None]

    async def rows(self, *conditions: sa.ColumnElement[bool], limit: int) -> list[Row]:
        """Operations that fulfil all conditions on columns of the journal, newest first."""
        t = self.journal.operations
        query = (
            sa.select(t.c.body, t.c.cancel, t.c.wake_at, t.c.lease_owner, t.c.lease_until)
            .where(*conditions).order_by(t.c.created_at.desc(), t.c.id.desc()).limit(limit)
        )
        return await self.database.read(lambda conn: [_row(found) for found in conn.execute(query)])

    async def row(self, operation_id: str) -> Row | None:
        """One operation, None if this journal does not have it."""
        found = await self.rows(self.journal.operations.c.id == operation_id, limit=1)
        return found[0] if found else None

    async def stamps(self, since: float, limit: int) -> dict[str, float]:
        """Ids of active operations, and of those begun at `since` or later, with the time of their last change."""
        t = self.journal.operations
        columns = sa.select(t.c.id, t.c.updated_at)
        active = columns.where(t.c.state.in_([state.value for state in ACTIVE])).limit(limit)
        begun = columns.where(t.c.created_at >= since).order_by(t.c.created_at.desc()).limit(limit)
        return await self.database.read(
            lambda conn: {id_: at for query in (active, begun) for id_, at in conn.execute(query)}
        )

    async def with_ids(self, ids: Collection[str]) -> list[Row]:
        """Those operations, oldest first."""
        found = await self.rows(self.journal.operations.c.id.in_(ids), limit=len(ids)) if ids else []
        return found[::-1]

    async def counts(self) -> dict[str, int]:
        """How many active operations there are in each state."""
        t = self.journal.operations
        query = (
            sa.select(t.c.state, sa.func.count()).where(t.c.state.in_([state.value for state in ACTIVE]))
            .group_by(t.c.state)
        )
        return await self.database.read(lambda conn: dict(conn.execute(query).all()))


class Journals:
    """The journals of a cloud.

    Args:
        volumes: None if there is no embedded volume service.
        wake_api, wake_cell: tell runners that there is work; given the operation that was asked to end, if any.
    """

    def __init__(
        self, cells: Cells, volumes: EmbeddedVolumes | None, *, wake_api: Callable[[str | None], None],
        wake_cell: Callable[[str, str | None], None],
    ) -> None:
        found = [OneJournal(API, cells.api, api_journal, API_OPERATIONS, SERVER, wake_api)]
        for cell in cells.all:
            wake = functools.partial(wake_cell, cell.name)
            found.append(OneJournal(cell.name, cell.database, cell_journal, CELL_OPERATIONS, SERVER, wake))
        if volumes is not None:
            found.append(OneJournal(
                VOLUMES, volumes.database, volume_schema.journal, VOLUME_OPERATIONS, "volume", volumes.work.wake
            ))
        self.all = tuple(found)

    async def find(self, operation_id: str) -> tuple[OneJournal, Row]:
        """Raises NotFound."""
        for journal in self.all:
            row = await journal.row(operation_id)
            if row is not None:
                return journal, row
        raise NotFound(f"Operation {operation_id} could not be found.", hint="`kilonova ops --all` lists them")

    async def select(
        self, *, states: Collection[OperationState] = (), subject: str | None = None, limit: int = 100
    ) -> list[tuple[OneJournal, Row]]:
        """Operations of all journals, newest first. states: () for all."""
        found: list[tuple[OneJournal, Row]] = []
        for journal in self.all:
            t = journal.journal.operations
            conditions: list[sa.ColumnElement[bool]] = []
            if states:
                conditions.append(t.c.state.in_([state.value for state in states]))
            if subject is not None:
                conditions.append(t.c.subject == subject)
            found += [(journal, row) for row in await journal.rows(*conditions, limit=limit)]
        found.sort(key=lambda pair: pair[1].record.created_at, reverse=True)
        return found[:limit]


def _row(found: Any) -> Row:
    owner = found.lease_owner if found.lease_until is not None else None
    return Row(record=found.body, cancel=found.cancel, wake_at=found.wake_at, lease_owner=owner)
