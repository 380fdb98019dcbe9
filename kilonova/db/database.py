"""A database as units of work: functions of one connection, committed together or not at all.

`await db.write(fn)` runs `fn(connection)` in a transaction and returns its result once the transaction is
durable. `await db.read(fn)` runs `fn` on a consistent snapshot. A unit of work is a plain function without
awaits; it must have no effect outside the connection, because it may run in another thread and may be repeated.

SQLite: all units run on the event loop's thread (a point query costs less than a thread switch) and only the
commit, which waits for the disk, runs in a thread. Units that arrive during a commit form the next batch and
share its commit (group commit), each inside its own savepoint so that one failing unit undoes only itself.

PostgreSQL: each unit runs in a thread of a bounded pool, in a transaction of its own; deadlocks,
serialization failures and lost connections are retried.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import StaticPool

from kilonova.domain.errors import ServiceUnavailable

T = TypeVar("T")
Unit = Callable[[sa.Connection], T]

LOCKED_LIMIT = 30.0
"""Seconds that a unit of work waits for a database locked by another process before it is refused."""

RETRYABLE_SQLSTATES = frozenset({"40001", "40P01"})


class Database:
    """One database. Open it with `Database.open`.

    Raises:
        ServiceUnavailable: from `read` and `write`, when the database is locked, full or unreachable for
            longer than the limit.
    """

    url: str
    engine: sa.Engine

    @staticmethod
    def open(url: str, *, pool_size: int = 8) -> Database:
        """Open a database.

        Args:
            url: `sqlite:///PATH`, `sqlite://` (in memory) or `postgresql+psycopg://...`.
            pool_size: connections to PostgreSQL.
        """
        if url.startswith("sqlite"):
            return SqliteDatabase(url)
        return PostgresDatabase(url, pool_size)

    async def read(self, fn: Unit[T]) -> T:
        raise NotImplementedError

    async def write(self, fn: Unit[T]) -> T:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class SqliteDatabase(Database):
    """SQLite with group commit. A path of "" is a private in-memory database without threads."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._path = url.removeprefix("sqlite:///") if url != "sqlite://" else ""
        self._writer_engine, self._writer = self._connect()
        self.engine = self._writer_engine
        if self._path:
            self._reader_engine, self._reader = self._connect()
        else:
            self._reader_engine, self._reader = self._writer_engine, self._writer
        self._committer = ThreadPoolExecutor(1, "commit") if self._path else None
        self._queue: deque[tuple[Unit[Any], asyncio.Future[Any]]] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._in_batch = False

    def _connect(self) -> tuple[sa.Engine, sa.Connection]:
        def connect() -> sqlite3.Connection:
            if self._path:
                Path(self._path).parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))  # passwords of builds pass through it
            return sqlite3.connect(
                self._path or ":memory:", timeout=0, isolation_level=None, check_same_thread=False,
                cached_statements=512,
            )

        engine = sa.create_engine(
            "sqlite://", creator=connect, poolclass=StaticPool, isolation_level="AUTOCOMMIT",
            query_cache_size=2000,
        )

        @event.listens_for(engine, "connect")
        def configure(connection: Any, _record: Any) -> None:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-16000"):
                connection.execute(f"PRAGMA {pragma}")

        return engine, engine.connect()

    async def read(self, fn: Unit[T]) -> T:
        if not self._path:
            return fn(self._writer)
        raw = _driver(self._reader)
        raw.execute("BEGIN")
        try:
            return fn(self._reader)
        finally:
            raw.execute("ROLLBACK")

    async def write(self, fn: Unit[T]) -> T:
        if self._committer is None:
            return self._write_now(fn)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append((fn, future))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_batches())
        return await future

    def _write_now(self, fn: Unit[T]) -> T:
        raw = _driver(self._writer)
        raw.execute("BEGIN IMMEDIATE")
        try:
            result = fn(self._writer)
        except BaseException:
            raw.execute("ROLLBACK")
            raise
        raw.execute("COMMIT")
        return result

    async def _write_batches(self) -> None:
        loop = asyncio.get_running_loop()
        raw = _driver(self._writer)
        while self._queue:
            try:
                await self._begin(raw)
            except ServiceUnavailable as error:
                self._fail_queue(error)
                return
            batch = list(self._queue)
            self._queue.clear()
            settled: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
            for fn, future in batch:
                if future.cancelled():
                    continue
                settled.append((future, *self._run_unit(raw, fn, alone=len(batch) == 1)))
            failure: BaseException | None = None
            try:
                await loop.run_in_executor(self._committer, raw.execute, "COMMIT")
            except sqlite3.Error as error:
                failure = ServiceUnavailable(
                    f"The database could not commit: {error}.", hint="check free disk space and permissions"
                )
                with contextlib.suppress(sqlite3.OperationalError):  # already rolled back by SQLite
                    raw.execute("ROLLBACK")
            for future, result, error_ in settled:
                if future.cancelled():
                    continue
                if failure or error_:
                    future.set_exception(failure or error_)  # type: ignore[arg-type]
                else:
                    future.set_result(result)

    def _run_unit(self, raw: sqlite3.Connection, fn: Unit[Any], *, alone: bool) -> tuple[Any, BaseException | None]:
        raw.execute("SAVEPOINT unit")
        try:
            result = fn(self._writer)
        except BaseException as error:  # noqa: BLE001 - handed to the caller through its future
            if raw.in_transaction:
                raw.execute("ROLLBACK TO unit")
                raw.execute("RELEASE unit")
            if isinstance(error, sa.exc.OperationalError):
                return None, _unavailable(error)
            return None, error
        raw.execute("RELEASE unit")
        return result, None

    async def _begin(self, raw: sqlite3.Connection) -> None:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + LOCKED_LIMIT
        pause = 0.005
        while True:
            try:
                raw.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) and "busy" not in str(error):
                    raise _unavailable(error) from error
                if loop.time() > give_up:
                    raise ServiceUnavailable(
                        f"The database {self._path} is locked by another process.",
                        hint="find it with `fuser`; only one control plane may use a SQLite data directory",
                    ) from error
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.25)
            else:
                return

    def _fail_queue(self, error: BaseException) -> None:
        while self._queue:
            _, future = self._queue.popleft()
            if not future.cancelled():
                future.set_exception(error)

    async def close(self) -> None:
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        if self._committer is not None:
            self._committer.shutdown()
        for connection, engine in ((self._reader, self._reader_engine), (self._writer, self._writer_engine)):
            connection.close()
            engine.dispose()


class PostgresDatabase(Database):
    """PostgreSQL through psycopg, one thread and connection per running unit."""

    def __init__(self, url: str, pool_size: int) -> None:
        self.url = url
        self.engine = sa.create_engine(url, pool_size=pool_size, max_overflow=0, pool_pre_ping=False, pool_timeout=30)
        self._threads = ThreadPoolExecutor(pool_size, "postgres")

    async def read(self, fn: Unit[T]) -> T:
        return await self._run(fn)

    async def write(self, fn: Unit[T]) -> T:
        return await self._run(fn)

    async def _run(self, fn: Unit[T]) -> T:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + LOCKED_LIMIT
        pause = 0.02
        while True:
            try:
                return await loop.run_in_executor(self._threads, self._transact, fn)
            except sa.exc.DBAPIError as error:
                if isinstance(error, sa.exc.IntegrityError) or not _passing(error):
                    raise
                if loop.time() > give_up:
                    raise _unavailable(error) from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _transact(self, fn: Unit[T]) -> T:
        with self.engine.begin() as connection:
            return fn(connection)

    async def close(self) -> None:
        self._threads.shutdown()
        self.engine.dispose()


def _driver(connection: sa.Connection) -> sqlite3.Connection:
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw


def _passing(error: sa.exc.DBAPIError) -> bool:
    state = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated or state in RETRYABLE_SQLSTATES:
        return True
    return isinstance(error, sa.exc.OperationalError) and (state is None or state[:2] in ("08", "57"))


def _unavailable(error: Exception) -> ServiceUnavailable:
    cause = str(getattr(error, "orig", None) or error).strip().splitlines()
    return ServiceUnavailable(
        f"The database does not answer: {cause[0] if cause else type(error).__name__}.",
        hint="check that it runs and that its disk has space",
    )
