"""Schemas and their revisions: creating one, recognising it, refusing one that does not fit, upgrading it.

Every schema (`api`, `cell`, and one for each embedded service) has a version table of its own, so that several
can live in one database. Starting a process costs one small query; Alembic is loaded only by `upgrade`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import sqlalchemy as sa

from kilonova.db.database import Database
from kilonova.domain.errors import KilonovaError

LOCK = 0x6B696C6F
"""Key of the PostgreSQL advisory lock that is held while a schema is created or changed."""


class SchemaUnfit(KilonovaError):
    """The database does not have the tables that this release works with."""

    status = 503


@dataclass(frozen=True)
class Schema:
    """A set of tables that is created and changed together.

    Args:
        name: of its version table and of its directory in `kilonova/db/migrations`.
        metadata: the tables as they are after the last revision.
        revisions: all of them, oldest first. A test compares this with the migrations.
    """

    name: str
    metadata: sa.MetaData
    revisions: tuple[str, ...]

    @property
    def head(self) -> str:
        """The revision that this release works with."""
        return self.revisions[-1]

    @property
    def version_table(self) -> str:
        """Name of the table that holds the revision of a database; Alembic writes the same."""
        return f"alembic_version_{self.name}"


async def ensure(database: Database, schema: Schema) -> None:
    """Create the schema in a database that has none of it; accept one that is up to date.

    Raises:
        SchemaUnfit: the database is older (it must be upgraded), newer, or of unknown origin.
    """
    found = await database.read(lambda conn: _revision(conn, schema))
    if found is None:
        found = await database.write(lambda conn: _create(conn, schema))
    if found != schema.head:
        raise _unfit(schema, found)


async def check(database: Database, schema: Schema) -> str | None:
    """The revision that the database is at, None if it has none of the schema yet. Changes nothing.

    Raises:
        SchemaUnfit: as `ensure`.
    """
    found = await database.read(lambda conn: _revision(conn, schema))
    if found is None:
        await database.read(lambda conn: _refuse_stray_tables(conn, schema))
    elif found != schema.head:
        raise _unfit(schema, found)
    return found


async def upgrade(database: Database, schema: Schema) -> tuple[str, ...]:
    """Bring the schema to the last revision, in one transaction.

    Returns:
        The revisions that were applied, none if it is up to date.

    Raises:
        SchemaUnfit: the database is newer or of unknown origin.
    """
    from kilonova.db.migrate import apply, apply_to

    found = await database.read(lambda conn: _revision(conn, schema))
    if found is None:
        await database.read(lambda conn: _refuse_stray_tables(conn, schema))
    elif found not in schema.revisions:
        raise _unfit(schema, found)
    if database.url == "sqlite://":  # in memory: there is no second connection to it
        return await database.write(lambda conn: apply_to(conn, schema))
    return await asyncio.to_thread(apply, database.url, schema)


def take_lock(conn: sa.Connection) -> None:
    """Until the transaction ends, no other process creates or changes a schema. (SQLite has one writer anyway.)"""
    if conn.dialect.name == "postgresql":
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))


def _version(schema: Schema) -> sa.Table:
    return sa.Table(
        schema.version_table, sa.MetaData(),
        sa.Column("version_num", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("version_num", name=f"{schema.version_table}_pkc"),
    )


def _revision(conn: sa.Connection, schema: Schema) -> str | None:
    """The revision of the database; None if it has no version table or nothing in it."""
    if not sa.inspect(conn).has_table(schema.version_table):
        return None
    found: str | None = conn.execute(sa.select(_version(schema).c.version_num)).scalar()
    return found


def _create(conn: sa.Connection, schema: Schema) -> str:
    """Make all tables. Returns the revision, another one if another process was faster."""
    take_lock(conn)
    found = _revision(conn, schema)
    if found is not None:
        return found
    _refuse_stray_tables(conn, schema)
    schema.metadata.create_all(conn)
    version = _version(schema)
    version.create(conn, checkfirst=True)
    conn.execute(sa.insert(version).values(version_num=schema.head))
    return schema.head


def _refuse_stray_tables(conn: sa.Connection, schema: Schema) -> None:
    stray = sorted(set(sa.inspect(conn).get_table_names()) & set(schema.metadata.tables))
    if stray:
        raise SchemaUnfit(
            f"The database has tables of the schema {schema.name} ({', '.join(stray)}) but no revision.",
            hint="use an empty database, or one that this software made",
        )


def _unfit(schema: Schema, found: str) -> SchemaUnfit:
    if found in schema.revisions:
        return SchemaUnfit(
            f"The schema {schema.name} of the database is at revision {found}; this release needs {schema.head}.",
            hint="stop all processes that use it, make a backup, and run `kilonova db upgrade`",
        )
    return SchemaUnfit(
        f"The schema {schema.name} of the database is at revision {found}, which this release does not know.",
        hint="it was made by a newer release: install that one, or restore a backup",
    )
