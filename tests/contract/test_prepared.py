"""Prepared statements give what SQLAlchemy would, on both databases."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from kilonova.db.columns import EnumValue, Json, new_metadata
from kilonova.db.database import Database
from kilonova.db.prepared import Prepared


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


metadata = new_metadata()
things = sa.Table(
    "things",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("colour", EnumValue(Colour), nullable=False),
    sa.Column("parts", Json(tuple[str, ...]), nullable=False),
    sa.Column("note", sa.Text),
)
ADD = Prepared(sa.insert(things).values({c.name: sa.bindparam(c.name) for c in things.columns}))
BY_COLOUR = Prepared(sa.select(things).where(things.c.colour == sa.bindparam("colour")).order_by(things.c.id))
SOME = Prepared(
    sa.select(things.c.id)
    .where(things.c.id.in_((sa.bindparam("one"), sa.bindparam("other"))), things.c.note != "n")
    .order_by(things.c.id)
)
REPAINT = Prepared(
    sa.update(things).where(things.c.colour == sa.bindparam("old")).values(colour=sa.bindparam("new"))
)
TAKE = Prepared(
    sa.update(things).where(things.c.id == sa.bindparam("b_id")).values(note="taken").returning(
        things.c.parts, things.c.note
    )
)


@pytest.fixture(name="db", params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite:///{tmp_path}/some.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    database = Database.open(url)
    await database.write(metadata.create_all)
    await database.write(_fill)
    yield database
    await database.close()


def _fill(conn: sa.Connection) -> None:
    ADD.run(conn, id=1, colour=Colour.RED, parts=("a", "b"), note=None)
    ADD.run(conn, id=2, colour=Colour.RED, parts=(), note="n")
    ADD.run(conn, id=3, colour=Colour.BLUE, parts=("ü",), note="it's")


async def test_values_are_converted_as_their_columns_say(db: Database) -> None:
    rows = await db.read(lambda conn: BY_COLOUR.all(conn, colour=Colour.RED))
    assert [(row.id, row.colour, row.parts, row.note) for row in rows] == [
        (1, Colour.RED, ("a", "b"), None), (2, Colour.RED, (), "n")
    ]
    usual = await db.read(lambda conn: conn.execute(BY_COLOUR.statement, {"colour": Colour.RED}).all())
    assert [tuple(row) for row in rows] == [tuple(row) for row in usual]


async def test_constants_stay_and_parameters_change(db: Database) -> None:
    assert await db.read(lambda conn: SOME.scalars(conn, one=3, other=2)) == [3]
    assert await db.read(lambda conn: SOME.scalar(conn, one=2, other=4)) is None


async def test_changes_tell_what_they_changed(db: Database) -> None:
    assert await db.write(lambda conn: REPAINT.run(conn, old=Colour.RED, new=Colour.BLUE)) == 2
    assert await db.write(lambda conn: REPAINT.run(conn, old=Colour.RED, new=Colour.BLUE)) == 0
    taken = await db.write(lambda conn: TAKE.first(conn, b_id=3))
    assert (taken.parts, taken.note) == (("ü",), "taken")
    assert await db.write(lambda conn: TAKE.first(conn, b_id=4)) is None
    assert len(await db.read(lambda conn: BY_COLOUR.all(conn, colour=Colour.BLUE))) == 3


async def test_errors_are_those_of_sqlalchemy(db: Database) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        await db.write(lambda conn: ADD.run(conn, id=1, colour=Colour.RED, parts=(), note=None))


async def test_a_missing_or_surplus_value_is_refused(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/some.db")
    await database.write(metadata.create_all)
    with pytest.raises(TypeError):
        await database.write(lambda conn: ADD.run(conn, id=1, colour=Colour.RED, parts=()))
    with pytest.raises(TypeError):
        await database.read(lambda conn: SOME.all(conn, one=1, other=2, third=3))
    await database.close()


def test_what_is_filled_in_at_execution_is_refused() -> None:
    table = sa.Table("more", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True),
                     sa.Column("count", sa.Integer, default=0))
    engine = sa.create_engine("sqlite://")
    with engine.connect() as conn, pytest.raises(TypeError):
        Prepared(sa.insert(table).values(id=sa.bindparam("id"))).run(conn, id=1)
    with engine.connect() as conn, pytest.raises(TypeError):
        Prepared(sa.select(table).where(table.c.id.in_((1, 2)))).all(conn)
    engine.dispose()
