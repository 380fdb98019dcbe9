"""Schemas: migrations give what the sources say, and databases that do not fit are refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from kilonova.db import migrate
from kilonova.db.database import Database
from kilonova.db.postgres import MARKS
from kilonova.db.schema import API, CELL
from kilonova.db.upgrade import Schema, SchemaUnfit, ensure, upgrade
from kilonova.domain.clock import SystemClock
from kilonova.embedded.identity.service import EmbeddedIdentity
from kilonova.embedded.image import EmbeddedImage
from kilonova.embedded.network.service import EmbeddedNetwork
from kilonova.embedded.network.wiring import FakeWiring
from kilonova.embedded.schema import IDENTITY, IMAGE, NETWORK, SCHEMAS

each_schema = pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'database.sqlite'}"
    else:
        url = request.getfixturevalue("postgres_url")
    opened = Database.open(url)
    yield opened
    await opened.close()


def description(conn: sa.Connection) -> dict[str, Any]:
    """All that the database knows of its tables, in an order of its own."""
    inspector = sa.inspect(conn)

    def told(things: Any) -> list[str]:
        return sorted(
            repr(sorted((key, str(value)) for key, value in thing.items() if key not in ("comment", "dialect_options")))
            for thing in things
        )

    return {
        table: {
            "columns": told(inspector.get_columns(table)),
            "key": str(inspector.get_pk_constraint(table)),
            "foreign keys": told(inspector.get_foreign_keys(table)),
            "unique": told(inspector.get_unique_constraints(table)),
            "indexes": told(inspector.get_indexes(table)),
            "checks": told(inspector.get_check_constraints(table)),
        }
        for table in set(inspector.get_table_names()) - {MARKS}
    }


@each_schema
async def test_migrations_give_the_tables_of_the_sources(database: Database, schema: Schema) -> None:
    def differences(conn: sa.Connection) -> list[Any]:
        context = MigrationContext.configure(conn, opts={
            "version_table": schema.version_table, "compare_type": True, "compare_server_default": True,
        })
        return list(compare_metadata(context, schema.metadata))

    assert await upgrade(database, schema) == schema.revisions
    advice = f"write a revision (docs/how-to/change-a-schema.md) for the schema {schema.name}"
    assert await database.read(differences) == [], advice
    migrated = await database.read(description)

    def start_again(conn: sa.Connection) -> None:
        schema.metadata.drop_all(conn)
        conn.execute(sa.text(f"DROP TABLE {schema.version_table}"))

    await database.write(start_again)
    await ensure(database, schema)
    assert await database.read(description) == migrated, advice


@each_schema
def test_the_constant_names_the_revisions_there_are(schema: Schema) -> None:
    script = migrate.scripts(schema)
    assert tuple(revision.revision for revision in reversed(list(script.walk_revisions()))) == schema.revisions
    assert script.get_heads() == [schema.head]
    files = sorted((migrate.DIRECTORY / schema.name).glob("*.py"))
    assert [path.name[1:5] for path in files] == list(schema.revisions)


def test_every_set_of_tables_in_the_sources_is_a_schema() -> None:
    """Found by importing everything: a new module with tables must not be forgotten."""
    program = (
        "import gc, importlib, pkgutil, sqlalchemy as sa, kilonova\n"
        "for module in pkgutil.walk_packages(kilonova.__path__, 'kilonova.'):\n"
        "    if not module.name.endswith('.__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "from kilonova.embedded.schema import SCHEMAS\n"
        "known = {id(schema.metadata) for schema in SCHEMAS}\n"
        "for found in gc.get_objects():\n"
        "    if type(found) is sa.MetaData and id(found) not in known:\n"
        "        print(*(name for name in found.tables if not name.startswith('pg_catalog.')), end='')\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout == ""


def test_schemas_can_share_a_database() -> None:
    names = Counter(
        name
        for schema in SCHEMAS
        for table in schema.metadata.tables.values()
        for name in {table.name, *(index.name for index in table.indexes)}
    )
    assert [name for name, count in names.items() if count > 1] == []


@each_schema
def test_every_constraint_can_be_named_by_a_migration(schema: Schema) -> None:
    unnamed = [
        f"{table.name}: {type(constraint).__name__}"
        for table in schema.metadata.tables.values()
        for constraint in table.constraints
        if constraint.name is None
    ]
    assert unnamed == []


@each_schema
async def test_an_empty_database_is_created_and_then_accepted(database: Database, schema: Schema) -> None:
    for _ in range(2):
        await ensure(database, schema)
    tables = await database.read(lambda conn: set(sa.inspect(conn).get_table_names()))
    assert tables - {MARKS} == {*schema.metadata.tables, schema.version_table}
    assert await revision(database, schema) == [schema.head]
    assert await upgrade(database, schema) == ()


async def test_all_schemas_live_in_one_database(database: Database) -> None:
    for schema in SCHEMAS:
        await ensure(database, schema)
    for schema in SCHEMAS:
        assert await revision(database, schema) == [schema.head]


async def test_a_database_in_memory_is_created_or_migrated_alike() -> None:
    database = Database.open("sqlite://")
    assert await upgrade(database, API) == API.revisions
    await ensure(database, API)
    await ensure(database, CELL)
    await database.close()


async def test_processes_that_start_together_create_it_once(database: Database) -> None:
    others = [Database.open(database.url) for _ in range(4)]
    await asyncio.gather(*(ensure(one, API) for one in others), *(ensure(one, CELL) for one in others))
    assert await revision(database, API) == [API.head]
    for one in others:
        await one.close()


async def revision(database: Database, schema: Schema) -> list[str]:
    query = sa.text(f"SELECT version_num FROM {schema.version_table}")
    return list(await database.read(lambda conn: conn.execute(query).scalars().all()))


async def test_tables_of_unknown_origin_are_refused(database: Database) -> None:
    await database.write(CELL.metadata.create_all)
    for attempt in (ensure, upgrade):
        with pytest.raises(SchemaUnfit, match="no revision"):
            await attempt(database, CELL)


@pytest.mark.parametrize("schema", [IDENTITY, IMAGE, NETWORK], ids=lambda schema: schema.name)
async def test_embedded_services_refuse_a_database_of_another_release(
    database: Database, schema: Schema, tmp_path: Path
) -> None:
    """On their own, as tools open them: not only where a whole installation looks first."""
    identity = EmbeddedIdentity(database, tmp_path / "keys", SystemClock(), "http://cloud.test")

    async def told(name: str, instance_uuid: str, *, tag: str, status: str) -> None:
        raise AssertionError("nothing happens")

    start: dict[str, Callable[[], Awaitable[object]]] = {
        "identity": lambda: identity.bootstrap("secret"),
        "image": EmbeddedImage(database, tmp_path / "images", SystemClock(), identity, "").recover,
        "network": EmbeddedNetwork(database, SystemClock(), identity, "", FakeWiring(), told).start,
    }
    await ensure(database, schema)
    newer = sa.text(f"UPDATE {schema.version_table} SET version_num = '9999'")
    await database.write(lambda conn: conn.execute(newer))
    with pytest.raises(SchemaUnfit, match="9999"):
        await start[schema.name]()
    identity.close()


async def test_a_newer_database_is_refused_and_left_alone(database: Database) -> None:
    await ensure(database, CELL)
    await database.write(lambda conn: conn.execute(sa.text("UPDATE alembic_version_cell SET version_num = '9999'")))
    before = await database.read(description)
    for attempt in (ensure, upgrade):
        with pytest.raises(SchemaUnfit, match=r"9999.*newer release"):
            await attempt(database, CELL)
    assert await database.read(description) == before


# --- a schema with a second revision ---------------------------------------------------------------------


FIRST = '''
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None


def upgrade():
    op.create_table("shelves", sa.Column("id", sa.Integer(), nullable=False), sa.PrimaryKeyConstraint("id", name="pk"))
    op.create_table(
        "books",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("shelf", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_books"),
        sa.ForeignKeyConstraint(["shelf"], ["shelves.id"], name="fk_books_shelf", ondelete="CASCADE"),
    )
'''
SECOND = '''
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade():
    with op.batch_alter_table("shelves") as shelves:
        shelves.add_column(sa.Column("place", sa.String(9), nullable=False, server_default="hall"))
        shelves.create_check_constraint("ck_place", "place != ''")
    {more}
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Schema:
    """A schema at its second revision."""
    monkeypatch.setattr(migrate, "DIRECTORY", tmp_path / "migrations")
    versions = tmp_path / "migrations" / "library"
    versions.mkdir(parents=True)
    (versions / "r0001_first.py").write_text(FIRST)
    (versions / "r0002_place.py").write_text(SECOND.format(more="pass"))
    tables = sa.MetaData()
    sa.Table("shelves", tables, sa.Column("id", sa.Integer, primary_key=True))
    sa.Table("books", tables, sa.Column("id", sa.Integer, primary_key=True))
    return Schema("library", tables, ("0001", "0002"))


async def stock(database: Database, library: Schema) -> None:
    """Bring the database to the first revision, and fill it."""
    await upgrade(database, replace(library, revisions=("0001",)))

    def fill(conn: sa.Connection) -> None:
        conn.execute(sa.text("INSERT INTO shelves VALUES (1)"))
        conn.execute(sa.text("INSERT INTO books VALUES (7, 1)"))

    await database.write(fill)


async def test_an_older_database_is_refused_until_upgraded_and_keeps_its_rows(
    database: Database, library: Schema
) -> None:
    await stock(database, library)
    with pytest.raises(SchemaUnfit, match="kilonova db upgrade"):
        await ensure(database, library)
    assert await upgrade(database, library) == ("0002",)
    assert await upgrade(database, library) == ()
    await ensure(database, library)
    shelves = await database.read(lambda conn: conn.execute(sa.text("SELECT * FROM shelves")).fetchall())
    books = await database.read(lambda conn: conn.execute(sa.text("SELECT * FROM books")).fetchall())
    assert [tuple(row) for row in (*shelves, *books)] == [(1, "hall"), (7, 1)]


@pytest.mark.parametrize("more", ["raise RuntimeError('broken')", "op.execute('SELECT nothing FROM nowhere')"])
async def test_a_migration_that_fails_changes_nothing(database: Database, library: Schema, more: str) -> None:
    await stock(database, library)
    (migrate.DIRECTORY / "library" / "r0002_place.py").write_text(SECOND.format(more=more))
    before = await database.read(description)
    with pytest.raises((RuntimeError, sa.exc.DBAPIError)):
        await upgrade(database, library)
    assert await database.read(description) == before
    assert await revision(database, library) == ["0001"]


async def test_on_sqlite_a_migration_must_leave_no_reference_to_nothing(tmp_path: Path, library: Schema) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'database.sqlite'}")
    await stock(database, library)
    careless = SECOND.format(more="op.execute('DELETE FROM shelves')")
    (migrate.DIRECTORY / "library" / "r0002_place.py").write_text(careless)
    with pytest.raises(SchemaUnfit, match="books"):
        await upgrade(database, library)
    assert await revision(database, library) == ["0001"]
    await database.close()


async def test_upgrades_that_begin_together_run_once(database: Database, library: Schema) -> None:
    await stock(database, library)
    done = await asyncio.gather(*(upgrade(database, library) for _ in range(4)))
    assert sorted(done) == [(), (), (), ("0002",)]


async def test_starting_does_not_load_alembic(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from kilonova.db.database import Database\n"
        "from kilonova.db.upgrade import ensure\n"
        "from kilonova.embedded.schema import SCHEMAS\n"
        "async def main():\n"
        "    database = Database.open(sys.argv[1])\n"
        "    for schema in SCHEMAS: await ensure(database, schema)\n"
        "    await database.close()\n"
        "asyncio.run(main())\n"
        "sys.exit('alembic' in sys.modules)\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, f"sqlite:///{tmp_path / 'db'}")
    async with asyncio.timeout(60):
        assert await process.wait() == 0
