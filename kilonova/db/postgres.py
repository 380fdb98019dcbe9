"""PostgreSQL through psycopg: each unit in a thread of a bounded pool, in a transaction of its own.

Deadlocks, serialization failures and lost connections are repeated. A connection that is lost at the commit
leaves open whether the unit was done; the server is asked for that, so that no unit is done twice or dropped. Each
unit leaves a mark in its own transaction for this: a server that has crashed gives the number of a transaction that
it has lost to a new one, so what it knows of a number (`pg_xact_status`) may be another unit's.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from kilonova.db.database import Database, T, Unit, run_unit, unavailable
from kilonova.domain.errors import ServiceUnavailable
from kilonova.domain.trail import Threads

CONNECT_LIMIT = 5
"""Seconds that one attempt to connect may take."""

REPEATABLE = frozenset({"40001", "40P01"})
"""SQLSTATEs of serialization failures and deadlocks."""

AWAY = frozenset({"08", "53", "57"})
"""Classes of SQLSTATEs: connection lost, no resources (disk full, too many connections), shut down."""

LOCKED = "55P03"

MARKS = "unit_marks"
"""The table of marks. It belongs to no schema: every database has it as soon as something is written."""

MARKS_LOCK = 0x6B696C75
"""Key of the advisory lock that is held while the table of marks is made."""


@dataclass(frozen=True)
class _Mark:
    """What a unit leaves in its transaction.

    Args:
        session: the connection. number: the transaction's.
    """

    session: str
    number: str


class _Undecided(Exception):
    """The connection was lost during the commit of a transaction.

    Args:
        mark: of the unit. result: of the unit, if it turns out to be committed.
    """

    def __init__(self, mark: _Mark, result: Any) -> None:
        super().__init__(mark.number)
        self.mark = mark
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
        self._threads = Threads(pool_size, "postgres")
        self._marks_made = False
        self._making_marks = threading.Lock()

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
            if not self._committed(undecided.mark):
                raise sa.exc.OperationalError(None, None, undecided.__cause__ or undecided) from undecided
            result: T = undecided.result
            return result

    def _transact(self, fn: Unit[T]) -> T:
        self._make_marks()
        with self.engine.connect() as connection:
            transaction = connection.begin()
            try:
                result = run_unit(fn, connection)
                mark = _leave_mark(connection)
            except BaseException:
                transaction.rollback()
                raise
            try:
                transaction.commit()
            except sa.exc.DBAPIError as error:
                if mark is None or not _lost(error):
                    raise
                raise _Undecided(mark, result) from error.orig
            return result

    def _make_marks(self) -> None:
        """Once: the table of marks. Those of connections that ended long ago are removed."""
        if self._marks_made:
            return
        with self._making_marks:
            with self.engine.begin() as connection:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MARKS_LOCK)))
                connection.execute(_MAKE_MARKS)
                connection.execute(_FORGET_MARKS)
            self._marks_made = True

    def _committed(self, mark: _Mark) -> bool:
        """Whether a unit was committed, once the server knows. Raises ServiceUnavailable."""
        give_up = time.monotonic() + self._locked_limit
        pause = 0.02
        while time.monotonic() < give_up:
            try:
                with self.engine.begin() as connection:
                    # In this order: a transaction holds its lock until others see what it has done.
                    if not connection.execute(_GOES_ON, {"number": mark.number}).scalar():
                        return bool(connection.execute(_MARKED, asdict(mark)).scalar())
            except sa.exc.DBAPIError as error:
                if not _passing(error):
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 1.0)
        raise ServiceUnavailable(
            "The connection to the database was lost during a commit; whether it was done is not known.",
            hint="check that the database runs",
        )


_MAKE_MARKS = sa.text(
    f"CREATE TABLE IF NOT EXISTS {MARKS}"
    " (session varchar(32) PRIMARY KEY, number xid8 NOT NULL, since timestamptz NOT NULL DEFAULT now())"
)
_FORGET_MARKS = sa.text(f"DELETE FROM {MARKS} WHERE since < now() - interval '7 days'")
_LEAVE_MARK = f"""
    INSERT INTO {MARKS} (session, number)
    SELECT %s, pg_current_xact_id() WHERE pg_current_xact_id_if_assigned() IS NOT NULL
    ON CONFLICT (session) DO UPDATE SET number = excluded.number, since = now()
    RETURNING CAST(number AS text)
"""
_GOES_ON = sa.text(
    "SELECT EXISTS (SELECT FROM pg_locks"
    " WHERE locktype = 'transactionid' AND transactionid = xid(CAST(:number AS xid8)))"
)
_MARKED = sa.text(f"SELECT EXISTS (SELECT FROM {MARKS} WHERE session = :session AND number = CAST(:number AS xid8))")


def _leave_mark(connection: sa.Connection) -> _Mark | None:
    """None if the transaction has changed nothing."""
    session = connection.info.setdefault("session", uuid.uuid4().hex)
    cursor = connection.connection.cursor()
    try:
        cursor.execute(_LEAVE_MARK, (session,))
        row = cursor.fetchone()
    finally:
        cursor.close()
    return None if row is None else _Mark(session, row[0])


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
