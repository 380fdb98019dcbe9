"""Clean up after a migration that failed and whose server is deleted: remove what it left on hosts where the server
was not when it was deleted. Only then is the migration `failed`, which is final."""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.power import REMOVE, GuestRef
from kilonova.db import instances, migration_records
from kilonova.domain.errors import Conflict, InstanceNotFound
from kilonova.domain.migration import MigrationStatus
from kilonova.domain.operation import Failure
from kilonova.engine.operation import NoUndo, OnHost, Operation, Tx
from kilonova.engine.run import Run

GONE = NoUndo("what belongs to a deleted server is not brought back")


class CleanMigration(msgspec.Struct, frozen=True, kw_only=True):
    """migration: UUID. source, destination: hosts to be cleaned, None for one that needs it not."""

    migration: str
    source: str | None = None
    destination: str | None = None


def _begin(tx: Tx, run: Run[CleanMigration]) -> None:
    """Raises Conflict: there is a server after all. Spec: PER-102."""
    try:
        server = instances.get(tx.conn, run.subject, deleted=True)
    except InstanceNotFound:
        return
    to_clean = {run.request.source, run.request.destination} - {None}
    if server.deleted_at is None or server.host in to_clean:
        raise Conflict(f"Server {run.subject} is recorded on host {server.host}.")


def _cleaned(tx: Tx, run: Run[CleanMigration]) -> None:
    """A migration that is gone needs nothing. Spec: PER-105, PER-107."""
    migration_records.change(
        tx.conn, run.request.migration, now=tx.now, was=(MigrationStatus.ERROR,), status=MigrationStatus.FAILED
    )


def _failed(_tx: Tx, _run: Run[CleanMigration], _failure: Failure) -> None:
    """The migration stays in error, and the next round tries again. Spec: PER-107."""


def _ref(run: Run[CleanMigration]) -> GuestRef:
    return GuestRef(uuid=run.subject)


CLEAN_MIGRATION = Operation(
    name="clean-migration",
    request=CleanMigration,
    begins=_begin,
    steps=(
        OnHost("clean source", lambda run: run.request.source, REMOVE, _ref, undo=GONE, retries=1),
        OnHost("clean destination", lambda run: run.request.destination, REMOVE, _ref, undo=GONE, retries=1),
    ),
    ends=_cleaned,
    fails=_failed,
)
