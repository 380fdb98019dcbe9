"""The store of secrets: what it keeps, from whom, and until when."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from kilonova.db import instances, upgrade
from kilonova.db.database import Database
from kilonova.db.schema import CELL
from kilonova.db.secrets import secrets
from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import InstanceNotFound, KilonovaError, NotFound, NotSupported
from kilonova.domain.flavor import Flavor
from kilonova.domain.instance import Instance
from kilonova.embedded.secrets import EmbeddedSecrets
from kilonova.services.secrets import NoSecrets, Purpose

KEY = bytes(range(32))
TINY = Flavor(flavor_id="1", name="tiny", vcpus=1, memory_mib=64, root_gib=1)


@pytest.fixture
async def cell() -> AsyncIterator[Database]:
    database = Database.open("sqlite://")
    await upgrade.ensure(database, CELL)
    yield database
    await database.close()


@pytest.fixture
def store(cell: Database) -> EmbeddedSecrets:
    return EmbeddedSecrets(cell, KEY, SystemClock())


@pytest.fixture
async def server(cell: Database) -> str:
    made = Instance(uuid=str(uuid.uuid4()), project_id="p", user_id="u", flavor=TINY)
    await cell.write(lambda conn: instances.insert(conn, made))
    return made.uuid


async def rows(cell: Database) -> list[sa.Row[tuple[str, str]]]:
    return await cell.read(lambda conn: list(conn.execute(sa.select(secrets.c.owner, secrets.c.sealed))))


async def test_a_secret_is_made_once_and_told_again(store: EmbeddedSecrets, server: str) -> None:
    await store.make(server, Purpose.TPM, "u")
    first = await store.value(server, Purpose.TPM)
    await store.make(server, Purpose.TPM, "u")
    assert await store.value(server, Purpose.TPM) == first
    await store.make(server, Purpose.DISKS, "u")
    assert await store.value(server, Purpose.DISKS) != first
    assert len(first) == 64


async def test_the_database_does_not_tell_it(cell: Database, store: EmbeddedSecrets, server: str) -> None:
    await store.make(server, Purpose.TPM, "u")
    ((owner, sealed),) = await rows(cell)
    assert owner == "u"
    assert (await store.value(server, Purpose.TPM)) not in sealed
    with pytest.raises(KilonovaError, match="cannot be decrypted"):
        await EmbeddedSecrets(cell, bytes(32), SystemClock()).value(server, Purpose.TPM)


@pytest.mark.parametrize("change", [{"owner": "somebody"}, {"purpose": "disks"}])
async def test_a_row_opens_only_as_what_it_was_made(
    cell: Database, store: EmbeddedSecrets, server: str, change: dict[str, str]
) -> None:
    await store.make(server, Purpose.TPM, "u")
    await cell.write(lambda conn: conn.execute(sa.update(secrets).values(**change)))
    with pytest.raises(KilonovaError, match="cannot be decrypted"):
        await store.value(server, Purpose(change.get("purpose", "tpm")))


async def test_it_goes_with_its_server(cell: Database, store: EmbeddedSecrets, server: str) -> None:
    await store.make(server, Purpose.TPM, "u")
    await cell.write(lambda conn: instances.update(conn, server, now=1.0, display_name="new"))
    assert len(await rows(cell)) == 1
    await cell.write(lambda conn: instances.update(conn, server, now=2.0, deleted_at=2.0))
    assert await rows(cell) == []
    with pytest.raises(NotFound):
        await store.value(server, Purpose.TPM)
    for gone in (server, str(uuid.uuid4())):
        with pytest.raises(InstanceNotFound):
            await store.make(gone, Purpose.TPM, "u")
    assert await rows(cell) == []


async def test_a_host_without_a_store_says_so() -> None:
    with pytest.raises(NotSupported):
        await NoSecrets().make("server", Purpose.TPM, "u")
    with pytest.raises(NotFound):
        await NoSecrets().value("server", Purpose.TPM)
