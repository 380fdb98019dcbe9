"""Flavors, key pairs, quotas and aggregates on both databases."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from kilonova.db import aggregates, flavors, keypairs, quotas
from kilonova.db.database import Database
from kilonova.db.flavors import SORT_KEYS, FlavorQuery
from kilonova.db.keypairs import Keypair
from kilonova.db.placement import hosts, search
from kilonova.db.placement.providers import find_provider
from kilonova.db.schema import api_metadata
from kilonova.domain.errors import Conflict, KilonovaError
from kilonova.domain.flavor import Flavor
from kilonova.hypervisor.guest import HostInventory

INVENTORY = HostInventory(
    hostname="h1", hypervisor_type="QEMU", hypervisor_version=7002022, vcpus=8, memory_mib=8704, local_gib=100,
    disk_available_gib=90, memory_free_mib=8000,
)


@pytest.fixture(params=["sqlite", "postgresql"])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite:///{tmp_path}/api.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    database = Database.open(url)
    await database.write(api_metadata.create_all)
    yield database
    await database.close()


def a_flavor(flavor_id: str, name: str = "", **fields: object) -> Flavor:
    given = {"vcpus": 1, "memory_mib": 64, "root_gib": 1, **fields}
    return Flavor(flavor_id=flavor_id, name=name or f"flavor {flavor_id}", **given)  # type: ignore[arg-type]


async def outcomes(*attempts: object) -> list[object]:
    """The results of attempts made at the same time; for those refused, the kind of the error."""
    found = await asyncio.gather(*attempts, return_exceptions=True)  # type: ignore[call-overload]
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, KilonovaError):
            raise one
    return [type(one) if isinstance(one, KilonovaError) else one for one in found]


async def test_one_of_many_equal_flavors_is_made(db: Database) -> None:
    made = await outcomes(*(
        db.write(lambda conn: flavors.create(conn, a_flavor("1", "x"), now=1.0)) for _ in range(6)
    ))
    assert made.count(Conflict) == 5
    assert len(await db.read(lambda conn: flavors.page(conn, FlavorQuery()))) == 1


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("key", SORT_KEYS)
async def test_pages_of_flavors_leave_out_nothing(db: Database, key: str, descending: bool) -> None:
    def fill(conn: sa.Connection) -> None:
        for number, name in enumerate(("b", "A", "a", "B-", "b a", "é")):
            flavors.create(conn, a_flavor(f"{name}{number}", name, vcpus=1 + number % 2, disabled=number % 3 == 0,
                                          is_public=number != 4, rxtx_factor=number / 3,
                                          description=name if number % 2 else None), now=float(number % 4))

    await db.write(fill)
    whole = await db.read(lambda conn: flavors.page(conn, FlavorQuery(sort_key=key, descending=descending)))
    found: list[Flavor] = []

    async def following() -> list[Flavor]:
        marker = found[-1].flavor_id if found else None
        query = FlavorQuery(sort_key=key, descending=descending, limit=2, marker=marker)
        return await db.read(lambda conn: flavors.page(conn, query))

    while batch := await following():
        found += batch
    assert len(whole) == 6
    assert found == whole


async def test_extra_specs_written_at_once_are_all_kept(db: Database) -> None:
    await db.write(lambda conn: flavors.create(conn, a_flavor("1"), now=1.0))

    async def write(number: int) -> None:
        specs = {f"k{number}": "v"}
        await db.write(lambda conn: flavors.set_extra_specs(conn, "1", specs, now=2.0))

    await asyncio.gather(*(write(number) for number in range(8)))
    found = await db.read(lambda conn: flavors.get(conn, "1"))
    assert found.extra_specs == {f"k{number}": "v" for number in range(8)}


async def test_one_of_many_equal_key_pairs_is_made(db: Database) -> None:
    keypair = Keypair(user_id="u", name="k", public_key="p", fingerprint="f")
    made = await outcomes(*(db.write(lambda conn: keypairs.create(conn, keypair)) for _ in range(6)))
    assert made.count(Conflict) == 5
    assert await db.read(lambda conn: keypairs.count(conn, "u")) == 1


@pytest.mark.spec("API-641")
async def test_limits_set_at_once(db: Database) -> None:
    async def write(limit: int) -> None:
        await db.write(lambda conn: quotas.set_limits(conn, "p", {"cores": limit}))
        await db.write(lambda conn: quotas.set_class_limits(conn, "default", {"ram": limit}))

    await asyncio.gather(*(write(limit) for limit in range(8)))
    await db.write(lambda conn: quotas.set_limits(conn, "p", {"cores": 3}, "u"))
    assert list(await db.read(lambda conn: quotas.of_project(conn, "p"))) == ["cores"]
    assert list(await db.read(lambda conn: quotas.of_class(conn, "default"))) == ["ram"]
    await db.write(lambda conn: quotas.forget(conn, "p", "u"))
    assert await db.read(lambda conn: quotas.of_project(conn, "p", "u")) == {}
    await db.write(lambda conn: quotas.forget(conn, "p"))
    assert await db.read(lambda conn: quotas.of_project(conn, "p")) == {}


@pytest.mark.spec("API-227")
async def test_a_host_never_gets_into_two_zones(db: Database) -> None:
    provider = await db.write(lambda conn: hosts.report(conn, "h1", "h1", INVENTORY, now=1.0))

    async def make(zone: str) -> aggregates.HostAggregate:
        return await db.write(lambda conn: aggregates.create(conn, zone, zone, now=1.0))

    made = [await make(f"zone {number}") for number in range(5)]

    async def join(number: int) -> str:
        joined = await db.write(lambda conn: aggregates.add_host(conn, number, "h1", now=2.0))
        return joined.uuid

    found = await outcomes(*(join(one.id) for one in made))
    assert found.count(Conflict) == 4
    (joined,) = [one for one in found if isinstance(one, str)]

    def memberships(conn: sa.Connection) -> list[str]:
        return search.aggregates_of_provider(conn, find_provider(conn, provider).id)

    assert await db.read(memberships) == [joined]
    zones = await db.read(aggregates.zones_of_hosts)
    assert zones == {"h1": next(one.zone for one in made if one.uuid == joined)}


async def test_one_of_many_equal_aggregates_is_made(db: Database) -> None:
    made = await outcomes(*(db.write(lambda conn: aggregates.create(conn, "a", None, now=1.0)) for _ in range(6)))
    assert made.count(Conflict) == 5
    (found,) = await db.read(aggregates.all_aggregates)
    assert uuid.UUID(found.uuid)
