"""A database as units of work: functions of one connection, committed together or not at all.

`await db.write(fn)` runs `fn(connection)` in a transaction and returns its result once the transaction is
durable. `await db.read(fn)` runs `fn` on a consistent snapshot, and refuses changes. A unit of work is a plain
function without awaits; it must have no effect outside the connection, because it may run in another thread and
may be repeated.

The two kinds are in `sqlite.py` and `postgres.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa

from kilonova.domain.errors import InvalidInput, ServiceUnavailable

T = TypeVar("T")
Unit = Callable[[sa.Connection], T]

LOCKED_LIMIT = 30.0
"""Seconds that a unit of work waits for a database that is locked or away before it is refused."""


class Database:
    """One database. Open it with `Database.open`."""

    url: str
    engine: sa.Engine

    @staticmethod
    def open(
        url: str, *, pool_size: int = 8, locked_limit: float = LOCKED_LIMIT, options: dict[str, Any] | None = None
    ) -> Database:
        """Open a database.

        Args:
            url: `sqlite:///PATH`, `sqlite://` (in memory) or `postgresql://USER:PASSWORD@HOST/DATABASE`.
            pool_size: connections to PostgreSQL.
            locked_limit: seconds that a unit of work waits for a database that is locked or away.
            options: what its connections carry for the units that use them (`execution_options` of SQLAlchemy).

        Raises:
            ServiceUnavailable: the SQLite file cannot be opened. InvalidInput: another kind of URL.
        """
        scheme, _, place = url.partition("://")
        if scheme in ("postgresql", "postgres"):
            url = f"postgresql+psycopg://{place}"
        elif scheme not in ("sqlite", "postgresql+psycopg"):
            raise InvalidInput(f"{scheme}:// is not a database that can be used.", hint="use sqlite or postgresql")
        if url.startswith("sqlite"):
            from kilonova.db.sqlite import SqliteDatabase

            return SqliteDatabase(url, locked_limit, options or {})
        from kilonova.db.postgres import PostgresDatabase

        return PostgresDatabase(url, pool_size, locked_limit, options or {})

    async def read(self, fn: Unit[T]) -> T:
        """Run `fn` on a snapshot and return its result.

        Raises:
            ServiceUnavailable: the database is unreachable for longer than the limit.
        """
        raise NotImplementedError

    async def write(self, fn: Unit[T]) -> T:
        """Run `fn` and return its result once it is durable; what `fn` raises undoes it, and only it.

        Raises:
            ServiceUnavailable: the database is locked, full or unreachable for longer than the limit. `fn` is
                undone, unless the message says that this is not known.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Finish what was begun, and close the connections."""
        raise NotImplementedError


def run_unit(fn: Unit[T], connection: sa.Connection) -> T:
    """Call a unit of work. A future cannot carry a StopIteration, so that becomes a RuntimeError."""
    try:
        return fn(connection)
    except StopIteration as error:
        raise RuntimeError("a unit of work raised StopIteration") from error


def unavailable(error: Exception) -> ServiceUnavailable:
    """What the caller is told when the database, and not the unit, is at fault."""
    cause = str(getattr(error, "orig", None) or error).strip().splitlines()
    return ServiceUnavailable(
        f"The database does not answer: {cause[0] if cause else type(error).__name__}.",
        hint="check that it runs and that its disk has space",
    )
