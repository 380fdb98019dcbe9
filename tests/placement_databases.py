"""Databases with the tables of placement: SQLite and PostgreSQL, to be held to the same tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.db.api_schema import api_metadata
from kilonova.db.database import Database
from kilonova.db.placement import tables

TABLES = [
    tables.providers,
    tables.deleted_providers,
    tables.inventories,
    tables.provider_traits,
    tables.provider_aggregates,
    tables.consumers,
    tables.allocations,
    tables.layouts,
    tables.allocation_groups,
    tables.custom_traits,
    tables.custom_classes,
    tables.hosts,
]


@pytest.fixture(name="db", params=["sqlite", "postgresql"])
async def placement_db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite:///{tmp_path}/api.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    database = Database.open(url)
    await database.write(lambda connection: api_metadata.create_all(connection, tables=TABLES))
    yield database
    await database.close()
