"""SQLite with group commit.

All units run on the event loop's thread (a point query costs less than a thread switch) and only the commit,
which waits for the disk, runs in a thread. Units that arrive during a commit form the next batch and share its
commit, each inside its own savepoint so that one failing unit undoes only itself.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.pool import StaticPool

from kilonova.db.database import Database, T, Unit, run_unit, unavailable
from kilonova.domain.errors import ServiceUnavailable

OPEN_LIMIT_MS = 5000
"""Milliseconds that opening waits for another process that is just opening the same new file."""

AT_FAULT = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB,
})
"""Results for which the database is to blame and not the statement."""

COMPILED: sa.util.LRUCache[Any, Any] = sa.util.LRUCache(2000)
"""Statements compiled by any connection of this process: all of them speak the same dialect."""


class OneDialect(SQLiteDialect_pysqlite):
    """The dialect of SQLite, of which all instances are one to `COMPILED`."""

    supports_statement_cache = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OneDialect)

    def __hash__(self) -> int:
        return hash(OneDialect)


registry.register("sqlite.one", __name__, OneDialect.__name__)


@dataclass(eq=False)
class _Queued:
    fn: Unit[Any]
    future: asyncio.Future[Any]
    context: Context = field(default_factory=copy_context)
    result: Any = None
    error: BaseException | None = None

    def settle(self, failure: BaseException | None) -> None:
        """Tell the caller how it ended; `failure` is that of the whole batch."""
        if self.future.done():
            return
        if (error := failure or self.error) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(self.result)


class SqliteDatabase(Database):
    """A SQLite file; with the URL `sqlite://`, a private database in memory without threads."""

    def __init__(self, url: str, locked_limit: float, options: dict[str, Any]) -> None:
        self.url = url
        self._path = url.removeprefix("sqlite:///") if url != "sqlite://" else ""
        self._locked_limit = locked_limit
        self.engine, self._writer, self._raw = _connect(self._path, options)
        self._reader_engine, self._reader, self._raw_reader = self.engine, self._writer, self._raw
        if self._path:
            self._reader_engine, self._reader, self._raw_reader = _connect(self._path, options)
            self._raw_reader.execute("PRAGMA query_only=ON")
        self._committer = ThreadPoolExecutor(1, "commit") if self._path else None
        self._queue: deque[_Queued] = deque()
        self._writing: asyncio.Task[None] | None = None

    async def read(self, fn: Unit[T]) -> T:
        raw = self._raw_reader
        # In memory nothing else can come in between, but the only connection is not kept from changes.
        raw.execute("BEGIN")
        changes = raw.total_changes
        try:
            result = run_unit(fn, self._reader)
            if raw.total_changes != changes:
                readonly = sqlite3.OperationalError("attempt to write a readonly database")
                raise sa.exc.OperationalError(None, None, readonly)
            return result
        except sa.exc.DBAPIError as error:
            if _result_code(error.orig) in AT_FAULT:
                raise unavailable(error) from error
            raise
        finally:
            if raw.in_transaction:
                raw.execute("ROLLBACK")

    async def write(self, fn: Unit[T]) -> T:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        queued = _Queued(fn, future)
        if self._committer is None:
            self._run(queued)
            queued.settle(None)
            return await future
        self._queue.append(queued)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write_batches())
        return await future

    async def close(self) -> None:
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        if self._committer is not None:
            self._committer.shutdown()
        for connection, engine in ((self._reader, self._reader_engine), (self._writer, self.engine)):
            connection.close()
            engine.dispose()

    # --- batches --------------------------------------------------------------------------------------

    async def _write_batches(self) -> None:
        try:
            while self._queue:
                await self._begin()
                batch = self._run_batch()
                failure = await self._commit()
                for queued in batch:
                    queued.settle(failure)
        except BaseException as error:
            # Whatever it is, nobody may wait for ever.
            waiting, self._queue = self._queue, deque()
            for queued in waiting:
                queued.settle(error)
            if not isinstance(error, ServiceUnavailable):
                raise

    def _run_batch(self) -> list[_Queued]:
        """Run all that wait. Returns those whose fate is that of the commit."""
        waiting, self._queue = self._queue, deque()
        batch: list[_Queued] = []
        while waiting:
            queued = waiting.popleft()
            if queued.future.done():
                continue
            self._run(queued)
            if not self._raw.in_transaction:
                # The unit took the transaction down with it (SQLite does that when the disk is full, for
                # example): what was done before runs again, without it.
                queued.settle(None)
                self._queue.extend([*batch, *waiting])
                return []
            batch.append(queued)
        return batch

    def _run(self, queued: _Queued) -> None:
        """Run one unit inside a savepoint, outside of a transaction one of its own; keep its result or error."""
        raw = self._raw
        queued.result = queued.error = None
        raw.execute("SAVEPOINT unit")
        try:
            queued.result = queued.context.run(run_unit, queued.fn, self._writer)
            if not raw.in_transaction:
                raise ServiceUnavailable("The transaction was ended from within.")
        except BaseException as error:  # noqa: BLE001 - handed to the caller through its future
            if raw.in_transaction:
                raw.execute("ROLLBACK TO unit")
            at_fault = isinstance(error, sa.exc.DBAPIError) and _result_code(error.orig) in AT_FAULT
            queued.error = unavailable(error) if at_fault and isinstance(error, Exception) else error
        if raw.in_transaction:
            raw.execute("RELEASE unit")

    async def _commit(self) -> ServiceUnavailable | None:
        """Returns why it failed; then everything is undone."""
        if not self._raw.in_transaction:
            return None
        assert self._committer is not None
        try:
            await asyncio.get_running_loop().run_in_executor(self._committer, self._raw.execute, "COMMIT")
        except sqlite3.Error as error:
            if self._raw.in_transaction:
                self._raw.execute("ROLLBACK")
            return ServiceUnavailable(
                f"The database could not commit: {error}.", hint="check free disk space and permissions"
            )
        return None

    async def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._locked_limit
        pause = 0.005
        while True:
            try:
                self._raw.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                if _result_code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise unavailable(error) from error
                if loop.time() > give_up:
                    raise ServiceUnavailable(
                        f"The database {self._path} is locked by another process.",
                        hint="find it with `fuser`; only one control plane may use a SQLite data directory",
                    ) from error
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.25)
            else:
                return


def _connect(path: str, options: dict[str, Any]) -> tuple[sa.Engine, sa.Connection, sqlite3.Connection]:
    """Open one connection, which stays the only one of its engine."""
    try:
        raw = _connect_raw(path)
    except (OSError, sqlite3.Error) as error:
        raise ServiceUnavailable(
            f"The database {path} cannot be opened: {error}.", hint="check the path and its permissions"
        ) from error
    engine = sa.create_engine(
        "sqlite+one://", creator=lambda: raw, poolclass=StaticPool, isolation_level="AUTOCOMMIT"
    ).execution_options(compiled_cache=COMPILED, **options)
    return engine, engine.connect(), raw


def _connect_raw(path: str) -> sqlite3.Connection:
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # passwords of builds pass through it
    raw = sqlite3.connect(
        path or ":memory:", timeout=0, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    try:
        for setting in (
            f"busy_timeout={OPEN_LIMIT_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON",
            "cache_size=-12000", "busy_timeout=0",
        ):
            raw.execute(f"PRAGMA {setting}")
    except sqlite3.Error:
        raw.close()
        raise
    return raw


def _result_code(error: BaseException | None) -> int:
    """SQLite's primary result code."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF
