"""What every database does: SQLite in a file and in memory, and PostgreSQL."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from servers import PostgresServer, postgres_server
from structlog.contextvars import get_contextvars

from kilonova.db.database import Database
from kilonova.db.sqlite import COMPILED
from kilonova.domain import trail
from kilonova.domain.errors import InvalidInput, NotFound, ServiceUnavailable

LIMIT = 30.0
"""Seconds that anything awaited here may take."""

metadata = sa.MetaData()
items = sa.Table(
    "items", metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("value", sa.Text, nullable=False, default=""),
)
counters = sa.Table("counters", metadata, sa.Column("n", sa.Integer, nullable=False))


async def opened(url: str, **options: Any) -> Database:
    database = Database.open(url, **options)
    await database.write(metadata.create_all)
    await database.write(lambda conn: conn.execute(sa.insert(counters).values(n=0)))
    return database


@pytest.fixture(params=["sqlite", "memory", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return "sqlite://" if request.param == "memory" else f"sqlite:///{tmp_path / 'database.sqlite'}"


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = await opened(url)
    yield database
    await database.close()


def insert(number: int, value: str = "") -> Callable[[sa.Connection], int]:
    def unit(conn: sa.Connection) -> int:
        conn.execute(sa.insert(items).values(id=number, value=value))
        return number

    return unit


def count_up(conn: sa.Connection) -> None:
    conn.execute(sa.update(counters).values(n=counters.c.n + 1))


def stored(conn: sa.Connection) -> list[int]:
    return list(conn.execute(sa.select(items.c.id).order_by(items.c.id)).scalars())


def counted(conn: sa.Connection) -> int:
    return int(conn.execute(sa.select(counters.c.n)).scalar_one())


# --- units of work -----------------------------------------------------------------------------------------


async def test_what_is_written_is_read(database: Database) -> None:
    assert await database.write(insert(1)) == 1
    assert await database.read(stored) == [1]


async def test_a_unit_that_fails_leaves_nothing(database: Database) -> None:
    def unit(conn: sa.Connection) -> None:
        insert(1)(conn)
        raise NotFound("no such thing")

    with pytest.raises(NotFound, match="no such thing"):
        await database.write(unit)
    assert await database.read(stored) == []


@pytest.mark.parametrize(
    "error", [ValueError("x"), StopIteration("x"), KeyboardInterrupt("x"), asyncio.CancelledError()], ids=repr
)
async def test_units_written_together_fail_alone(database: Database, error: BaseException) -> None:
    def fails(conn: sa.Connection) -> None:
        insert(1000)(conn)
        raise error

    def collides(conn: sa.Connection) -> None:
        insert(2000)(conn)
        insert(1)(conn)

    await database.write(insert(1))
    units = [insert(2), fails, insert(3), collides, insert(4)]
    async with asyncio.timeout(LIMIT):
        results = await asyncio.gather(*(written(database, unit) for unit in units))
    assert [results[0], results[2], results[4]] == [2, 3, 4]
    assert results[1] == "RuntimeError" if isinstance(error, StopIteration) else type(error).__name__
    assert results[3] == "IntegrityError"
    assert await database.read(stored) == [1, 2, 3, 4]


async def written(database: Database, unit: Callable[[sa.Connection], Any]) -> Any:
    """The result of a unit, or the name of its error."""
    try:
        return await database.write(unit)
    except BaseException as error:  # noqa: BLE001 - the error is the result
        return type(error).__name__


async def test_a_statement_that_fails_within_a_unit_can_be_undone_by_it(database: Database) -> None:
    def unit(conn: sa.Connection) -> str:
        insert(1)(conn)
        with pytest.raises(sa.exc.IntegrityError), conn.begin_nested():
            insert(1)(conn)
        insert(2)(conn)
        return "done"

    assert await asyncio.gather(database.write(unit), database.write(insert(3))) == ["done", 3]
    assert await database.read(stored) == [1, 2, 3]


async def test_many_writers_at_once_lose_nothing(database: Database) -> None:
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*(database.write(count_up) for _ in range(300)))
    assert await database.read(counted) == 300


async def test_units_have_the_trail_of_who_wants_them(database: Database) -> None:
    async def work(request: str) -> None:
        with trail.serving(request):
            for do in (database.write, database.read):
                assert await do(lambda _conn: get_contextvars()) == {"request_id": request}

    await asyncio.gather(*(work(f"req-{number}") for number in range(5)))
    assert await database.write(lambda _conn: get_contextvars()) == {}


async def test_a_writer_that_gives_up_stops_nobody(database: Database) -> None:
    writers = [asyncio.create_task(database.write(insert(number))) for number in range(10)]
    await asyncio.sleep(0)
    for writer in writers[::2]:
        writer.cancel()
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*writers, return_exceptions=True)
        assert await database.write(insert(100)) == 100
    assert set(await database.read(stored)) >= {1, 3, 5, 7, 9, 100}


async def test_reading_changes_nothing(database: Database) -> None:
    with pytest.raises(sa.exc.DBAPIError):
        await database.read(insert(1))
    assert await database.read(stored) == []
    assert await database.write(insert(1)) == 1


async def test_a_statement_that_is_wrong_is_not_taken_for_a_database_that_is_away(database: Database) -> None:
    for attempt in (database.read, database.write):
        started = time.monotonic()
        with pytest.raises(sa.exc.DBAPIError, match="nowhere"):
            await attempt(lambda conn: conn.execute(sa.text("SELECT 1 FROM nowhere")))
        assert time.monotonic() - started < 5


async def test_closing_waits_for_what_was_begun(url: str) -> None:
    database = await opened(url)
    writers = [asyncio.create_task(database.write(insert(number))) for number in range(20)]
    await asyncio.sleep(0)
    await database.close()
    assert await asyncio.gather(*writers) == list(range(20))


# --- another process -----------------------------------------------------------------------------------------


@contextmanager
def other_session(database: Database) -> Iterator[Any]:
    """A connection of another user of the same database (not in memory)."""
    if database.url.startswith("sqlite"):
        connection: Any = sqlite3.connect(database.url.removeprefix("sqlite:///"), isolation_level=None)
    else:
        connection = psycopg.connect(database.url.replace("+psycopg", ""), autocommit=True)
    try:
        yield connection
    finally:
        connection.close()


def lock(session: Any) -> None:
    """Keep everybody else from writing."""
    if isinstance(session, sqlite3.Connection):
        session.execute("BEGIN IMMEDIATE")
    else:
        session.execute("BEGIN")
        session.execute("LOCK TABLE items, counters IN EXCLUSIVE MODE")


shared = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)


@shared
async def test_a_reader_sees_one_state(database: Database) -> None:
    def look_twice(conn: sa.Connection) -> tuple[list[int], list[int]]:
        before = stored(conn)
        with other_session(database) as session:
            session.execute("INSERT INTO items VALUES (2, '')")
        return before, stored(conn)

    await database.write(insert(1))
    assert await database.read(look_twice) == ([1], [1])
    assert await database.read(stored) == [1, 2]


@shared
async def test_a_locked_database_is_waited_for(database: Database) -> None:
    with other_session(database) as session:
        lock(session)
        writers = [asyncio.create_task(database.write(insert(number))) for number in range(5)]
        assert await database.read(stored) == []
        done, _ = await asyncio.wait(writers, timeout=0.3)
        assert not done
        session.execute("COMMIT")
        async with asyncio.timeout(LIMIT):
            assert await asyncio.gather(*writers) == list(range(5))


@shared
async def test_a_database_that_stays_locked_is_an_error_that_says_so(url: str) -> None:
    database = await opened(url, locked_limit=0.3)
    with other_session(database) as session:
        lock(session)
        started = time.monotonic()
        failed = await asyncio.gather(*(written(database, insert(number)) for number in range(3)))
        assert failed == ["ServiceUnavailable"] * 3
        assert 0.25 < time.monotonic() - started < 5
        with pytest.raises(ServiceUnavailable, match="locked"):
            await database.write(insert(1))
        session.execute("ROLLBACK")
    assert await database.write(insert(1)) == 1
    await database.close()


# --- SQLite ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["sqlite", "memory"], indirect=True)
async def test_a_full_disk_is_survived(database: Database) -> None:
    def limit(pages: int) -> Callable[[sa.Connection], None]:
        return lambda conn: conn.exec_driver_sql(f"PRAGMA max_page_count={pages}").close()

    used = await database.read(lambda conn: conn.exec_driver_sql("PRAGMA page_count").scalar_one())
    await database.write(limit(int(used) + 20))
    large = "x" * 4000
    async with asyncio.timeout(LIMIT):
        results = await asyncio.gather(*(written(database, insert(number, large)) for number in range(100)))
        small = await asyncio.gather(*(written(database, count_up) for _ in range(3)))
    fitted = [result for result in results if result != "ServiceUnavailable"]
    assert 0 < len(fitted) < 30
    assert small == [None] * 3
    assert await database.read(stored) == fitted
    with pytest.raises(ServiceUnavailable, match="full"):
        await database.write(insert(500, large))
    await database.write(limit(100_000))
    assert await database.write(insert(500, large)) == 500
    assert await database.read(stored) == [*fitted, 500]
    assert await database.read(counted) == 3


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[Database]:
    database = await opened(f"sqlite:///{tmp_path / 'database.sqlite'}")
    yield database
    await database.close()


async def test_writers_that_come_together_share_a_commit(file: Database) -> None:
    statements: list[str] = []
    raw = file.engine.raw_connection().driver_connection
    assert isinstance(raw, sqlite3.Connection)
    raw.set_trace_callback(statements.append)
    await asyncio.gather(*(file.write(count_up) for _ in range(100)))
    raw.set_trace_callback(None)
    assert statements.count("COMMIT") <= 2
    assert await file.read(counted) == 100


async def test_a_unit_that_ends_the_transaction_costs_only_itself(file: Database) -> None:
    def rude(conn: sa.Connection) -> None:
        conn.exec_driver_sql("ROLLBACK")

    units = [insert(1), insert(2), rude, insert(3), insert(4)]
    async with asyncio.timeout(LIMIT):
        results = await asyncio.gather(*(written(file, unit) for unit in units))
    assert results[:2] + results[3:] == [1, 2, 3, 4]
    assert results[2] == "ServiceUnavailable"
    assert await file.read(stored) == [1, 2, 3, 4]


async def test_a_commit_that_fails_is_told_to_all_and_undone(file: Database) -> None:
    await file.write(lambda conn: conn.exec_driver_sql(
        "CREATE TABLE children (item INTEGER REFERENCES items (id) DEFERRABLE INITIALLY DEFERRED)"
    ))
    orphan = sa.text("INSERT INTO children VALUES (77)")
    units: list[Callable[[sa.Connection], Any]] = [insert(1), lambda conn: conn.execute(orphan), insert(2)]
    results = await asyncio.gather(*(written(file, unit) for unit in units))
    assert results == ["ServiceUnavailable"] * 3
    assert await file.read(stored) == []
    assert await file.write(insert(1)) == 1


async def test_a_statement_is_compiled_once_in_a_process(file: Database) -> None:
    statement = sa.select(items.c.value).where(items.c.id == 7)
    compiled: dict[Any, Any] = {}
    for database in (file, other := await opened("sqlite://")):
        before = len(COMPILED)
        await database.read(lambda conn: conn.execute(statement).all())
        compiled[database] = len(COMPILED) - before
    assert compiled[other] == 0 and compiled[file] <= 1
    await other.close()


async def test_the_file_is_for_its_owner(file: Database, tmp_path: Path) -> None:
    await file.write(insert(1))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in beside(tmp_path)}
    assert modes["database.sqlite"] == 0o600
    assert set(modes.values()) == {0o600}


def beside(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


@pytest.mark.parametrize("content", [None, b"this is no database at all, but long enough to be looked at" * 20])
async def test_what_is_no_database_is_an_error_that_names_it(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "odd"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ServiceUnavailable, match="odd"):
        Database.open(f"sqlite:///{path}")


async def test_two_processes_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, sqlalchemy as sa\n"
        "from kilonova.db.database import Database\n"
        "async def main():\n"
        "    database = Database.open(sys.argv[1])\n"
        "    await database.write(lambda conn: conn.exec_driver_sql('CREATE TABLE IF NOT EXISTS t (x)'))\n"
        "    await database.close()\n"
        "asyncio.run(main())\n"
    )
    url = f"sqlite:///{tmp_path / 'database.sqlite'}"
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", program, url) for _ in range(3)]
    async with asyncio.timeout(LIMIT):
        assert [await process.wait() for process in processes] == [0, 0, 0]


WRITER = """
import asyncio, sys
import sqlalchemy as sa
from kilonova.db.database import Database

items = sa.table("items", sa.column("id"), sa.column("value"))

async def main():
    database = Database.open(sys.argv[1])

    async def one(number):
        await database.write(lambda conn: conn.execute(sa.insert(items).values(id=number, value="x" * 100)))
        print(number, flush=True)

    for start in range(0, 1_000_000, 10):
        await asyncio.gather(*(one(number) for number in range(start, start + 10)))

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_the_death_of_the_process(file: Database) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, file.url, stdout=subprocess.PIPE)
    assert process.stdout is not None
    acknowledged = []
    async with asyncio.timeout(LIMIT):
        while len(acknowledged) < 200:
            acknowledged.append(int(await process.stdout.readline()))
        process.kill()
        acknowledged += [int(line) for line in (await process.stdout.read()).splitlines()]
        await process.wait()
        assert set(acknowledged) <= set(await file.read(stored))
        assert await file.write(insert(-1)) == -1


# --- PostgreSQL ----------------------------------------------------------------------------------------------


@pytest.fixture
def mortal() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test alone, to be killed."""
    with postgres_server(durable=True) as server:
        yield server


def restart(server: PostgresServer) -> None:
    """Start again, with the same data, a server that was killed."""
    give_up = time.monotonic() + LIMIT
    while True:
        process = subprocess.Popen(
            server.process.args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )
        while process.poll() is None:  # it ends at once while the last children of the killed one are still there
            try:
                server.connect().close()
            except psycopg.OperationalError:
                assert time.monotonic() < give_up
                time.sleep(0.02)
            else:
                object.__setattr__(server, "process", process)
                return
        time.sleep(0.02)


@pytest.mark.servers
async def test_a_server_that_dies_and_comes_back_is_waited_for(mortal: PostgresServer) -> None:
    """Every unit is applied once: none that was acknowledged is lost, none is repeated after its commit."""
    database = await opened(mortal.url(mortal.create_database()), locked_limit=LIMIT)
    acknowledged: list[int] = []
    stop = asyncio.Event()

    async def writer(first: int) -> None:
        for number in range(first, first + 1_000_000, 4):
            if stop.is_set():
                return

            def both(conn: sa.Connection, number: int = number) -> None:
                insert(number)(conn)  # a second time would collide
                count_up(conn)

            await database.write(both)
            acknowledged.append(number)

    async def grown(by: int) -> None:
        wanted = len(acknowledged) + by
        while True:
            if len(acknowledged) >= wanted:
                return
            await asyncio.sleep(0.001)

    async with asyncio.timeout(2 * LIMIT), asyncio.TaskGroup() as writers:
        for first in range(4):
            writers.create_task(writer(first))
        for _ in range(2):
            await grown(100)
            mortal.process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(mortal.process.wait)
            await asyncio.to_thread(restart, mortal)
        await grown(100)
        stop.set()
    assert await database.read(stored) == sorted(acknowledged)
    assert await database.read(counted) == len(acknowledged)
    await database.close()


@pytest.mark.servers
async def test_a_unit_lost_by_a_server_that_crashed_is_not_taken_for_another(mortal: PostgresServer) -> None:
    """The server gives the number of a transaction that it forgot to a new one."""
    name = mortal.create_database()
    database = await opened(mortal.url(name), locked_limit=LIMIT)
    reused: list[bool] = []

    def crash(connection: sa.Connection) -> None:
        if reused:
            return
        number = connection.execute(sa.text("SELECT CAST(pg_current_xact_id() AS text)")).scalar_one()
        mortal.process.send_signal(signal.SIGKILL)
        mortal.process.wait()
        restart(mortal)
        with mortal.connect(name) as other:
            again = [other.execute("SELECT CAST(pg_current_xact_id() AS text)").fetchone() for _ in range(5)]
        reused.append((number,) in again)

    sa.event.listen(database.engine, "commit", crash)
    async with asyncio.timeout(2 * LIMIT):
        await database.write(insert(1))
    assert reused == [True]
    assert await database.read(stored) == [1]
    await database.close()


def end_sessions(database: Database) -> None:
    """Have the server end every other session of this database."""
    with other_session(database) as session:
        session.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


async def test_a_url_need_not_name_the_driver(postgres_url: str) -> None:
    database = Database.open(postgres_url.replace("postgresql+psycopg://", "postgresql://"))
    assert await database.read(lambda conn: conn.execute(sa.text("select 41 + 1")).scalar_one()) == 42
    await database.close()


@pytest.mark.parametrize("url", ["mysql://localhost/nova", "kilonova.db", ""])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="sqlite or postgresql"):
        Database.open(url)


async def test_lost_connections_are_replaced(postgres_url: str) -> None:
    database = await opened(postgres_url)
    for number in range(3):
        end_sessions(database)
        assert await database.write(insert(number)) == number
        end_sessions(database)
        assert await database.read(stored) == list(range(number + 1))
    await database.close()


@pytest.mark.parametrize("committed", [True, False])
async def test_a_connection_lost_at_the_commit_neither_repeats_nor_loses(
    postgres_url: str, committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is asked how the transaction ended."""
    database = await opened(postgres_url)
    genuine = sa.engine.default.DefaultDialect.do_commit
    left = [1]

    def lost(dialect: Any, connection: Any) -> None:
        if not left:
            genuine(dialect, connection)
            return
        left.pop()
        if committed:
            genuine(dialect, connection)
        connection.driver_connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(sa.engine.default.DefaultDialect, "do_commit", lost)
    await database.write(count_up)
    assert not left
    assert await database.read(counted) == 1
    await database.close()


async def test_deadlocks_are_resolved(postgres_url: str) -> None:
    database = await opened(postgres_url)
    for number in (1, 2):
        await database.write(insert(number, "0"))
    appended = sa.update(items).values(value=items.c.value.concat("x"))

    def swap(first: int, second: int) -> Callable[[sa.Connection], None]:
        def unit(conn: sa.Connection) -> None:
            conn.execute(appended.where(items.c.id == first))
            conn.execute(sa.text("SELECT pg_sleep(0.05)"))
            conn.execute(appended.where(items.c.id == second))

        return unit

    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*(database.write(swap(*pair)) for pair in ((1, 2), (2, 1))))
    values = await database.read(lambda conn: list(conn.execute(sa.select(items.c.value)).scalars()))
    assert values == ["0xx", "0xx"]
    await database.close()


async def test_no_server_is_an_error_after_the_limit(tmp_path: Path) -> None:
    database = Database.open(f"postgresql+psycopg://kilonova@/x?host={tmp_path}", locked_limit=0.2)
    started = time.monotonic()
    with pytest.raises(ServiceUnavailable, match="does not answer"):
        await database.read(stored)
    assert 0.15 < time.monotonic() - started < 10
    await database.close()
