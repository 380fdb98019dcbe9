"""PostgreSQL through psycopg: each unit in a thread of a bounded pool, in a transaction of its own.

Deadlocks, serialization failures and lost connections are repeated. A connection that is lost at the commit
leaves open whether the unit was done; the server is asked for that, so that no unit is done twice or dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa

from kilonova.db.database import Database, T, Unit, run_unit, unavailable
from kilonova.domain.errors import ServiceUnavailable

CONNECT_LIMIT = 5
"""Seconds that one attempt to connect may take."""

REPEATABLE = frozenset({"40001", "40P01"})
"""SQLSTATEs of serialization failures and deadlocks."""

AWAY = frozenset({"08", "53", "57"})
"""Classes of SQLSTATEs: connection lost, no resources (disk full, too many connections), shut down."""

LOCKED = "55P03"


class _Undecided(Exception):
    """The connection was lost during the commit of a transaction.

    Args:
        number: of the transaction. result: of the unit, if it turns out to be committed.
    """

    def __init__(self, number: str, result: Any) -> None:
        super().__init__(number)
        self.number = number
        self.result = result


class PostgresDatabase(Database):
    """A PostgreSQL database; one thread and connection per running unit."""

    def __init__(self, url: str, pool_size: int, locked_limit: float, options: dict[str, Any]) -> None:
        self.url = url
        self._locked_limit = locked_limit
        # Without limits of its own a connection waits for a dead host, or for a lock, as long as it takes.
        self.engine = sa.create_engine(url, pool_size=pool_size, max_overflow=0, pool_timeout=30, connect_args={
            "connect_timeout": CONNECT_LIMIT, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
            "tcp_user_timeout": 20_000, "options": f"-c lock_timeout={max(1, round(locked_limit * 1000))}",
        }, execution_options=options)
        self._snapshots = self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._threads = ThreadPoolExecutor(pool_size, "postgres")

    async def read(self, fn: Unit[T]) -> T:
        return await self._run(lambda: self._read(fn))

    async def write(self, fn: Unit[T]) -> T:
        return await self._run(lambda: self._write(fn))

    async def close(self) -> None:
        # Waits for what runs in the threads, so not on the event loop's: the units' results are still to be told.
        await asyncio.to_thread(self._threads.shutdown)
        self.engine.dispose()

    async def _run(self, transact: Callable[[], T]) -> T:
        """Repeat while the cause may pass, up to the limit."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._locked_limit
        pause = 0.02
        while True:
            try:
                return await loop.run_in_executor(self._threads, transact)
            except sa.exc.DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) == LOCKED:
                    raise ServiceUnavailable(
                        "A table of the database stayed locked by another session.",
                        hint="look at pg_stat_activity and pg_locks",
                    ) from error
                if not _passing(error):
                    raise
                if loop.time() > give_up:
                    raise unavailable(error) from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    # --- in the threads -------------------------------------------------------------------------------

    def _read(self, fn: Unit[T]) -> T:
        with self._snapshots.begin() as connection:
            return run_unit(fn, connection)

    def _write(self, fn: Unit[T]) -> T:
        try:
            return self._transact(fn)
        except _Undecided as undecided:
            if not self._committed(undecided.number):
                raise sa.exc.OperationalError(None, None, undecided.__cause__ or undecided) from undecided
            result: T = undecided.result
            return result

    def _transact(self, fn: Unit[T]) -> T:
        with self.engine.connect() as connection:
            transaction = connection.begin()
            try:
                result = run_unit(fn, connection)
                number = _transaction_number(connection)
            except BaseException:
                transaction.rollback()
                raise
            try:
                transaction.commit()
            except sa.exc.DBAPIError as error:
                if number is None or not _lost(error):
                    raise
                raise _Undecided(number, result) from error.orig
            return result

    def _committed(self, number: str) -> bool:
        """Whether a transaction was committed, once the server knows. Raises ServiceUnavailable."""
        give_up = time.monotonic() + self._locked_limit
        pause = 0.02
        while time.monotonic() < give_up:
            try:
                with self.engine.begin() as connection:
                    status = connection.execute(_STATUS, {"number": number}).scalar()
            except sa.exc.DBAPIError as error:
                if not _passing(error):
                    raise
                status = "unreachable"
            if status in ("committed", "aborted"):
                return bool(status == "committed")
            time.sleep(pause)
            pause = min(pause * 2, 1.0)
        raise ServiceUnavailable(
            "The connection to the database was lost during a commit; whether it was done is not known.",
            hint="check that the database runs",
        )


_STATUS = sa.text("SELECT pg_xact_status(CAST(:number AS xid8))")


def _transaction_number(connection: sa.Connection) -> str | None:
    """What the server knows the transaction by; None if it has changed nothing."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute("SELECT CAST(pg_current_xact_id_if_assigned() AS text)")
        row = cursor.fetchone()
    finally:
        cursor.close()
    return None if row is None else row[0]


def _lost(error: sa.exc.DBAPIError) -> bool:
    """Whether the connection broke, as opposed to the server giving an answer."""
    state = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or state is None or state[:2] in ("08", "57")


def _passing(error: sa.exc.DBAPIError) -> bool:
    """Whether the same unit may succeed when repeated."""
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return isinstance(error, sa.exc.OperationalError)
    return state in REPEATABLE or state[:2] in AWAY
