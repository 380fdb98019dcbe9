"""Running migrations with Alembic. Only `kilonova db upgrade`, tests and scripts import this module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError

from kilonova.db.upgrade import Schema, SchemaUnfit, take_lock

DIRECTORY = Path(__file__).parent / "migrations"


def scripts(schema: Schema) -> ScriptDirectory:
    """The schema's revisions."""
    return ScriptDirectory(str(DIRECTORY), version_locations=[str(DIRECTORY / schema.name)])


def apply(url: str, schema: Schema) -> tuple[str, ...]:
    """Run all revisions that the database at this URL misses, in one transaction. Returns them.

    Raises:
        SchemaUnfit: the revisions do not lead on from where the database is.
    """
    with _transaction(url) as connection:
        take_lock(connection)
        return apply_to(connection, schema)


def apply_to(connection: sa.Connection, schema: Schema) -> tuple[str, ...]:
    """As `apply`, within the transaction of a connection."""
    script = scripts(schema)
    applied: list[str] = []

    def steps(current: Any, _context: MigrationContext) -> Any:
        found = script._upgrade_revs(schema.head, current)
        applied.extend(step.revision.revision for step in found)
        return found

    context = MigrationContext.configure(
        connection, opts={"version_table": schema.version_table, "fn": steps, "script": script}
    )
    try:
        with Operations.context(context):
            context.run_migrations()
    except RevisionError as error:
        raise SchemaUnfit(f"The schema {schema.name} cannot be upgraded: {error}.") from error
    return tuple(applied)


@contextmanager
def _transaction(url: str) -> Iterator[sa.Connection]:
    """A transaction on a connection of its own.

    On SQLite foreign keys are checked at its end and not during it: a table is changed there by making it anew,
    and dropping the old one would delete what refers to its rows.
    """
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    try:
        with engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")
                connection.exec_driver_sql("PRAGMA busy_timeout=30000")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                try:
                    yield connection
                    _check_foreign_keys(connection)
                    connection.exec_driver_sql("COMMIT")
                except BaseException:
                    connection.exec_driver_sql("ROLLBACK")
                    raise
            else:
                with connection.begin():
                    yield connection
    finally:
        engine.dispose()


def _check_foreign_keys(connection: sa.Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
    if broken is not None:
        raise SchemaUnfit(f"A row of {broken[0]} refers to a missing one of {broken[2]}; nothing was changed.")
