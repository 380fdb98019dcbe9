"""Console tokens on both databases."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from kilonova.db import console_tokens
from kilonova.db.database import Database
from kilonova.db.schema import cell_metadata
from kilonova.domain.console import ConsoleAddress, ConsoleToken


@pytest.fixture(params=["sqlite", "postgresql"])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite:///{tmp_path}/cell.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    database = Database.open(url)
    await database.write(cell_metadata.create_all)
    yield database
    await database.close()


def a_right(server: str = "", *, expires_at: float = 100.0, host: str = "host-1") -> ConsoleToken:
    address = ConsoleAddress(host="192.0.2.1", port=5901, tls_port=5902, internal_access_path="/a")
    return ConsoleToken(
        instance_uuid=server or str(uuid.uuid4()), type="novnc", compute_host=host, address=address,
        access_url_base="http://x", expires_at=expires_at,
    )


async def put(db: Database, token: str, right: ConsoleToken) -> None:
    await db.write(lambda conn: console_tokens.insert(conn, token, right, now=0.0))


async def find(db: Database, token: str, now: float) -> ConsoleToken | None:
    return await db.read(lambda conn: console_tokens.find(conn, token, now=now))


async def count(db: Database) -> int:
    query = sa.select(sa.func.count()).select_from(console_tokens.console_tokens)
    return await db.read(lambda conn: conn.execute(query).scalar_one())


async def test_a_token_is_found_until_it_expires_and_is_not_stored_itself(db: Database) -> None:
    right = a_right()
    await put(db, "secret", right)
    assert await find(db, "secret", 99.9) == right
    assert await find(db, "secret", 100.0) is None
    assert await find(db, "other", 1.0) is None
    rows = await db.read(lambda conn: conn.execute(sa.select(console_tokens.console_tokens)).all())
    assert "secret" not in repr(rows)


async def test_revoking_takes_all_of_one_server(db: Database) -> None:
    mine, other = a_right(), a_right()
    for number in range(3):
        await put(db, f"mine-{number}", mine)
    await put(db, "other", other)
    await db.write(lambda conn: console_tokens.revoke(conn, mine.instance_uuid))
    assert [await find(db, f"mine-{number}", 0.0) for number in range(3)] == [None] * 3
    assert await find(db, "other", 0.0) == other


@pytest.mark.spec("PER-110", "PER-111")
async def test_expired_tokens_of_all_hosts_go_in_batches(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_tokens, "BATCH", 4)
    for number in range(10):
        await put(db, f"old-{number}", a_right(expires_at=50.0, host=f"host-{number % 3}"))
    await put(db, "live", a_right(expires_at=50.1))

    async def remove() -> int:
        return await db.write(lambda conn: console_tokens.remove_expired(conn, now=50.0))

    both = await asyncio.gather(remove(), remove())
    assert max(both) == 4
    while await remove():
        continue
    assert await count(db) == 1
    assert await find(db, "live", 50.0) is not None


@pytest.mark.spec("PER-111")
async def test_nobody_waits_for_somebody_else_who_removes(postgres_url: str) -> None:
    first, second = Database.open(postgres_url), Database.open(postgres_url)
    await first.write(cell_metadata.create_all)
    for number in range(3):
        await put(first, f"old-{number}", a_right(expires_at=50.0))

    def slow(conn: sa.Connection) -> int:
        removed = console_tokens.remove_expired(conn, now=50.0)
        with second.engine.begin() as other:
            other.execute(sa.text("SET LOCAL lock_timeout = '2s'"))
            assert console_tokens.remove_expired(other, now=50.0) == 0
        return removed

    assert await first.write(slow) == 3
    await first.close()
    await second.close()
