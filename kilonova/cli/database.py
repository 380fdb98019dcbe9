"""`kilonova db`: the schemas of the databases of an installation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer

from kilonova.cli.installation import DataDir, Json, configuration, directory, is_served
from kilonova.domain.errors import KilonovaError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kilonova.config import Config
    from kilonova.db.upgrade import Schema

app = typer.Typer(help="The schemas of the databases.", no_args_is_help=True)


class SchemaState(msgspec.Struct, frozen=True, kw_only=True):
    """A schema in its database. revision: None if it is not there yet. problem: "" if it fits."""

    schema: str
    revision: str | None
    needed: str
    problem: str


@app.command("check")
def check(data_dir: DataDir = None, json: Json = False) -> None:
    """Tell whether the databases fit this release. Fails if one does not."""
    import asyncio

    from kilonova.cli.output import columns

    states = asyncio.run(schema_states(configuration(data_dir)))
    if json:
        print(msgspec.json.encode({"schemas": states}).decode())
    else:
        rows = [(one.schema, one.revision or "none yet", one.needed, one.problem or "fits") for one in states]
        print(columns(("SCHEMA", "REVISION", "NEEDED", ""), rows))
    raise typer.Exit(1 if any(one.problem for one in states) else 0)


@app.command("upgrade")
def upgrade(data_dir: DataDir = None) -> None:
    """Bring the databases to what this release needs. Everything that uses them must be stopped."""
    import asyncio

    base = directory(data_dir)
    if is_served(base):
        raise KilonovaError(f"The installation in {base} is running.", hint="stop it with `kilonova down` first")
    asyncio.run(_upgrade(configuration(data_dir)))


async def schema_states(config: Config) -> list[SchemaState]:
    """Every schema that an installation has. Databases that are not there yet are not made."""
    from kilonova.db.database import Database
    from kilonova.db.upgrade import SchemaUnfit
    from kilonova.db.upgrade import check as check_schema

    states = []
    for url, schema in _schemas(config):
        revision, problem = None, ""
        if _exists(url):
            database = Database.open(url, pool_size=1)
            try:
                revision = await check_schema(database, schema)
            except SchemaUnfit as error:
                problem = str(error)
            finally:
                await database.close()
        states.append(SchemaState(schema=schema.name, revision=revision, needed=schema.head, problem=problem))
    return states


async def _upgrade(config: Config) -> None:
    from kilonova.db.database import Database
    from kilonova.db.upgrade import upgrade as upgrade_schema

    for url, schema in _schemas(config):
        if not _exists(url):
            continue
        database = Database.open(url, pool_size=1)
        try:
            applied = await upgrade_schema(database, schema)
        finally:
            await database.close()
        print(f"{schema.name}: {', '.join(applied) if applied else f'is at {schema.head}'}", flush=True)


def _schemas(config: Config) -> Iterator[tuple[str, Schema]]:
    """(URL of the database, schema) of everything that one machine keeps."""
    from kilonova.db.schema import API, CELL
    from kilonova.embedded.schema import HOST, IDENTITY, IMAGE, NETWORK

    for schema in (API, IDENTITY, IMAGE, NETWORK):
        yield config.database_url("api"), schema
    yield config.database_url("cell"), CELL
    yield f"sqlite:///{config.directory}/agent.db", HOST


def _exists(url: str) -> bool:
    return not url.startswith("sqlite") or Path(url.removeprefix("sqlite:///")).exists()
