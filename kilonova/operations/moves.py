"""What operations that move a server have in common: its migration record, and the names they know it by."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any

from kilonova.db import migration_records
from kilonova.domain.errors import InvalidInput
from kilonova.domain.migration import ON_THE_WAY, Migration, MigrationStatus
from kilonova.domain.states import TaskState
from kilonova.engine.operation import AnyRun, Tx
from kilonova.operations.records import give_back

M = MigrationStatus
DECIDABLE = (M.FINISHED, M.ERROR)
DELETES = (TaskState.DELETING, TaskState.SOFT_DELETING)


def migration_of(run: AnyRun) -> str:
    """The uuid of the migration that an operation makes: the same however often it is asked."""
    return str(uuid.uuid5(uuid.UUID(run.id), "migration"))


def progress(tx: Tx, run: AnyRun, status: MigrationStatus) -> None:
    """The migration that this operation made gets further."""
    migration_records.change(tx.conn, migration_of(run), now=tx.now, was=ON_THE_WAY, status=status)


def undecided(tx: Tx, server: str) -> Migration:
    """The migration that a user is to confirm or revert: the newest one, also if something has put it in error.

    Args:
        server: one that is resized.

    Raises:
        InvalidInput: the server was not resized. Spec: API-128, API-129, RSZ-18, PER-45.
    """
    found = migration_records.of_server(tx.conn, server)
    if not found or found[0].status not in DECIDABLE:
        raise InvalidInput("Instance has not been resized.")
    return found[0]


def conclude(tx: Tx, run: AnyRun, *, owned: Collection[TaskState | None], **changes: Any) -> None:
    """Change the record and end its task. A delete that has taken it meanwhile keeps its own task, but deletes the
    server that the move has made. Spec: RSZ-12, RSZ-13."""
    give_back(tx, run, owned=owned, task_state=None, **changes)
    give_back(tx, run, owned=DELETES, **changes)


def close(tx: Tx, server: str, was: Collection[MigrationStatus], status: MigrationStatus) -> None:
    """End the migrations of a server that are in one of these statuses."""
    for migration in migration_records.of_server(tx.conn, server, was):
        migration_records.change(tx.conn, migration.uuid, now=tx.now, was=was, status=status)
